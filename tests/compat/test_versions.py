"""Versions of OpenMMLab and what mcf_mm says about them."""

import warnings

import pytest
from environments import fake_distribution, run_python

from mcf_mm.compat import versions


def test_the_advice_names_the_mmcv_that_is_installed(tmp_path, monkeypatch):
    lite = versions.installed_version('mmcv-lite')
    assert (f':all: mmcv=={lite} ' if lite else ':all: onedl-mmcv;') in (
        versions.build_operators_advice()
    )
    fake_distribution(tmp_path, 'mmcv-lite', '2.1.1')
    monkeypatch.syspath_prepend(tmp_path)
    assert ':all: mmcv==2.1.1 (after: pip uninstall mmcv-lite)' in versions.build_operators_advice()


def test_this_environment_is_supported():
    assert versions.openmmlab_problems() == []
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        versions.require_openmmlab()


def test_unsupported_version_is_said_by_name(tmp_path, monkeypatch):
    fake_distribution(tmp_path, 'mmdet', '2.28.0')
    fake_distribution(tmp_path, 'onedl-mmcv', '2.4.0rc1')
    monkeypatch.syspath_prepend(tmp_path)
    assert versions.openmmlab_problems() == [
        'mmcv is 2.4.0rc1 from onedl-mmcv (supported: >=2.1,<2.4)',
        'mmdet is 2.28.0 from mmdet (supported: >=3.3,<4)',
    ]
    advice = r"mmdet is 2\.28\.0.*pip install -e '\.\[mm\]' in "
    with pytest.warns(UserWarning, match=advice), pytest.raises(ImportError, match=advice):
        versions.require_openmmlab()


def test_mmengine_does_not_hide_the_reason(tmp_path):
    """It catches the ImportError of a registry that it looks up and raises KeyError."""
    fake_distribution(tmp_path, 'mmdet', '2.28.0')
    code = "from mmengine.registry import HOOKS\nHOOKS.build(dict(type='mcf_mm.MCFPruningHook'))"
    done = run_python(code, tmp_path)
    assert "KeyError: 'mcf_mm.MCFPruningHook is not in" in done.stderr
    assert 'UserWarning: mcf_mm.pruning works with torch alone' in done.stderr
    assert 'mmdet is 2.28.0 from mmdet' in done.stderr


@pytest.mark.parametrize(
    'name, version',
    [('mmengine', '0.10.7'), ('mmcv', '2.1.0'), ('mmdet', '3.3.0'), ('mmpretrain', '1.2.0')],
)
def test_original_packages_are_supported(tmp_path, monkeypatch, name, version):
    fake_distribution(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    assert versions.openmmlab_problems() == []
