"""Fixtures that many tests share."""

from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

import mcf_mm  # noqa: F401  before any test imports mmcv.ops or mmdet.models

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared' / 'data'


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Folder of the real weights and photos; tests that need it skip where it is not."""
    if not SHARED.is_dir():
        pytest.skip(f'the real data is not here: no folder {SHARED.name} beside the checkout')
    return SHARED


@pytest.fixture(autouse=True)
def no_default_scope():
    """Forgets the default scope that a Runner leaves behind; the next test may be of mmdet."""
    yield
    DefaultScope._instance_dict.clear()
