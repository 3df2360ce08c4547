"""mmpretrain beside transformers of any version."""

from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from environments import run_python

from mcf_mm.compat import versions
from mcf_mm.compat.transformers import transformers_is_too_new

ONEDL = {'onedl-mmpretrain': '1.3.6'}
ORIGINAL = {'mmpretrain': '1.2.0'}


@pytest.mark.parametrize(
    'installed, expected',
    [
        (ONEDL, False),
        (ONEDL | {'transformers': '4.57.6'}, False),
        (ONEDL | {'transformers': '5.0.0rc1'}, True),
        (ONEDL | {'transformers': '5.23.0'}, True),
        (ORIGINAL | {'transformers': '4.55.4'}, False),
        (ORIGINAL | {'transformers': '4.56.0'}, True),
    ],
)
def test_versions_that_are_too_new(monkeypatch, installed, expected):
    monkeypatch.setattr(versions, 'installed_version', installed.get)
    assert transformers_is_too_new() is expected


@pytest.mark.skipif(
    not versions.installed_version('onedl-mmpretrain')
    or not versions.installed_version('transformers'),
    reason='needs onedl-mmpretrain and transformers',
)
def test_the_limit_is_where_the_installed_transformers_lost_a_name():
    source = Path(PathFinder.find_spec('transformers').origin).with_name('pytorch_utils.py')
    lost = 'def find_pruneable_heads_and_indices' not in source.read_text(encoding='utf-8')
    assert transformers_is_too_new() == lost


SEE_MULTIMODAL = """
import mmpretrain.models
from mmpretrain.registry import MODELS
from mmpretrain.utils.dependency import WITH_MULTIMODAL, satisfy_requirement
from mcf_mm.compat.transformers import transformers_is_too_new
fits = satisfy_requirement('transformers>=4.28.0') and not transformers_is_too_new()
assert WITH_MULTIMODAL == fits, (WITH_MULTIMODAL, fits)
assert MODELS.get('ImageClassifier') and MODELS.get('VisionTransformer')
if transformers_is_too_new():
    try:
        MODELS.build(dict(type='BlipCaption'))
    except ImportError as error:
        print(error)
"""


@pytest.mark.parametrize('first', ['import mcf_mm', 'import mmpretrain\nimport mcf_mm'])
def test_mmpretrain_beside_the_installed_transformers(first):
    """Whether transformers is absent, of a version that mmpretrain knows, or newer."""
    done = run_python(f'{first}\n{SEE_MULTIMODAL}')
    assert done.returncode == 0, done.stderr
    if transformers_is_too_new():
        installed = versions.installed_version('transformers')
        assert f'datasets cannot be used with transformers {installed}.' in done.stdout
        assert "pip install 'transformers<" in done.stdout
