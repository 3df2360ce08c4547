"""Fixtures that many tests share."""

from pathlib import Path

import pytest

import mcf_mm  # noqa: F401  before any test imports mmcv.ops or mmdet.models

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared' / 'data'


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Folder of the real weights and photos; tests that need it skip where it is not."""
    if not SHARED.is_dir():
        pytest.skip(f'the real data is not here: no folder {SHARED.name} beside the checkout')
    return SHARED
