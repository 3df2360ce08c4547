"""``import mcf_mm``, its lazy names, and what a config has to import."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from environments import ROOT, run_python
from mmengine.config import Config

import mcf_mm
import mcf_mm.pruning
from mcf_mm.weights.files import save_state_dict
from mcf_mm.weights.timm import to_timm

HEAVY = 'torch torchvision timm numpy packaging transformers mmengine mmcv mmdet mmpretrain'


def test_import_is_silent_and_light():
    code = f"""
before = set(sys.modules)
import mcf_mm
assert mcf_mm.__version__ and set(mcf_mm.__all__) <= set(dir(mcf_mm))
loaded = {{name.partition('.')[0] for name in set(sys.modules) - before}}
assert not loaded & {set(HEAVY.split())}, loaded
assert {{name for name in sys.modules if name.startswith('mcf_mm')}} == {{
    'mcf_mm', 'mcf_mm.compat', 'mcf_mm.compat.mmcv_ops', 'mcf_mm.compat.onedl',
    'mcf_mm.compat.transformers'
}}
"""
    done = run_python(code, options=('-W', 'error'))
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_openmmlab_is_imported_without_noise():
    code = 'import mcf_mm; mcf_mm.register(); import mmdet.datasets, mmpretrain.datasets'
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, ''), done.stderr
    assert 'faster_coco_eval' not in done.stderr


def test_what_else_a_quiet_module_prints_is_printed(tmp_path):
    (tmp_path / 'mmpretrain').mkdir()
    (tmp_path / 'mmpretrain/__init__.py').touch()
    (tmp_path / 'mmpretrain/datasets.py').write_text(
        'print("Could not import OneDL")\nprint("a data set is missing")\n'
    )
    done = run_python('import mcf_mm, mmpretrain.datasets', tmp_path)
    assert (done.returncode, done.stdout) == (0, 'a data set is missing\n'), done.stderr


def test_public_names():
    assert mcf_mm.__all__ == ['find_units', 'prune', 'register', 'to_timm']
    assert mcf_mm.to_timm is to_timm
    for name in ('find_units', 'prune'):
        assert getattr(mcf_mm, name, None) is getattr(mcf_mm.pruning, name, None)
    mcf_mm.register()
    assert not hasattr(mcf_mm, 'prune_it')
    with pytest.raises(AttributeError, match="module 'mcf_mm' has no attribute 'prune_it'"):
        _ = mcf_mm.prune_it


def test_version_can_be_read_without_importing():
    """As setuptools does it for pyproject.toml."""
    assignments = [
        node
        for node in ast.parse(Path(mcf_mm.__file__).read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == '__version__'
    ]
    assert [ast.literal_eval(node.value) for node in assignments] == [mcf_mm.__version__]


def test_pruning_needs_torch_alone(tmp_path):
    """In an environment whose only packages are those that torch and timm need."""
    site = Path(torch.__file__).parents[1]
    for entry in site.iterdir():
        if not entry.name.lower().startswith(('mm', 'onedl')):
            (tmp_path / entry.name).symlink_to(entry)
    code = f"""
sys.path[:] = [folder for folder in sys.path if folder != {str(site)!r}]
import pkgutil, warnings
from importlib import import_module
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import mcf_mm
    assert callable(mcf_mm.prune) and callable(mcf_mm.to_timm)
    for module in pkgutil.walk_packages(mcf_mm.pruning.__path__, 'mcf_mm.pruning.'):
        import_module(module.name)
print(*[w.message for w in caught if 'mcf_mm' in str(w.message)], sep='\\n', end='')
for use in (mcf_mm.register, lambda: import_module('mcf_mm.registry')):
    try:
        use()
    except ImportError as error:
        print(error)
"""
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    for name in ('mmengine', 'mmcv', 'mmdet', 'mmpretrain'):
        assert f'{name} is missing (supported: >=' in first
    assert "pip install -e '.[mm]' in " in first


def test_one_custom_import_does_everything(tmp_path):
    """For programs that do not know mcf_mm, such as mmdet.apis."""
    save_state_dict(tmp_path / 'slim.safetensors', {'a': torch.ones(1)}, {'origin': 'a.pth'})
    (tmp_path / 'config.py').write_text("custom_imports = dict(imports=['mcf_mm.registry'])")
    code = f"""
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
Config.fromfile({str(tmp_path / 'config.py')!r})
checkpoint = CheckpointLoader.load_checkpoint({str(tmp_path / 'slim.safetensors')!r})
print('read', checkpoint['meta']['origin'])
import mmcv.ops, mmdet.models, mmpretrain.models
print('found', MODELS.get('mcf_mm.SlimVisionTransformer').__name__)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert 'read a.pth\n' in done.stdout
    assert 'found SlimVisionTransformer\n' in done.stdout


def test_configs_of_mcf_mm_0_1_import_the_registry(monkeypatch):
    """By the name ``mcf_mm.checkpoint``; this config was written then."""
    monkeypatch.delitem(sys.modules, 'mcf_mm.checkpoint', raising=False)
    cfg = Config.fromfile(ROOT / 'tests' / 'stored' / 'before_units' / 'slim.py')
    assert cfg.custom_imports.imports == ['mcf_mm.checkpoint']
    assert sys.modules['mcf_mm.checkpoint'].registry is sys.modules['mcf_mm.registry']
