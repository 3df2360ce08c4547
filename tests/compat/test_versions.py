"""Versions of OpenMMLab, and the stand-in for mmcv's compiled operators."""

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from mmengine.utils.dl_utils import collect_env

from mcf_mm.compat import versions as compat  # first: mmcv.ops cannot be imported without it

# isort: split
import mmcv.ops

stand_in_only = pytest.mark.skipif(
    not importlib.util.find_spec('mmcv._ext').origin.endswith('operators.py'),
    reason='this mmcv has compiled operators',
)


def run_python(code: str, *folders: Path) -> subprocess.CompletedProcess:
    """Runs ``code`` in a new interpreter with ``folders`` first on the path."""
    path = f'import sys; sys.path[:0] = {[str(folder) for folder in folders]}\n'
    return subprocess.run([sys.executable, '-c', path + code], capture_output=True, text=True)


def some_boxes(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 40
    sizes = torch.rand(count, 2, generator=generator) * 30
    return torch.cat([corners, corners + sizes], 1), torch.rand(count, generator=generator)


def plain_nms(boxes, scores, threshold, offset):
    """The definition: from the best box on, drop what overlaps a kept box too much."""
    kept = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        x1, y1, x2, y2 = boxes[index].tolist()
        for other in kept:
            u1, v1, u2, v2 = boxes[other].tolist()
            width = min(x2, u2) - max(x1, u1) + offset
            height = min(y2, v2) - max(y1, v1) + offset
            both = max(width, 0) * max(height, 0)
            area = (x2 - x1 + offset) * (y2 - y1 + offset)
            area += (u2 - u1 + offset) * (v2 - v1 + offset)
            if both / (area - both) > threshold:
                break
        else:
            kept.append(index)
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.2, 0.5, 0.7])
def test_nms_follows_the_definition(offset, threshold):
    boxes, scores = some_boxes(150)
    dets, kept = mmcv.ops.nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == plain_nms(boxes, scores, threshold, offset)
    assert 10 < len(kept) < 150
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


def test_nms_options_and_empty_input():
    boxes, scores = some_boxes(80)
    _, kept = mmcv.ops.nms(boxes, scores, 0.5, score_threshold=0.3, max_num=5)
    expected = torchvision.ops.nms(boxes, scores, 0.5)
    assert kept.tolist() == expected[scores[expected] > 0.3][:5].tolist()
    assert mmcv.ops.nms(boxes[:0], scores[:0], 0.5)[1].shape == (0,)


@stand_in_only
def test_nms_compares_in_single_precision_like_mmcv():
    # IoU 6 / 10 reads 0.60000002 in single precision, which is more than 0.6 in double.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 6, 1]])
    assert len(mmcv.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.6)[1]) == 2


def test_batched_nms_equals_torchvision():
    boxes, scores = some_boxes(120)
    labels = torch.arange(120) % 3
    _, kept = mmcv.ops.batched_nms(boxes, scores, labels, dict(type='nms', iou_threshold=0.5))
    assert kept.tolist() == torchvision.ops.batched_nms(boxes, scores, labels, 0.5).tolist()


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_roi_align_forward_and_backward(aligned, sampling_ratio):
    torch.manual_seed(0)
    features = torch.randn(2, 3, 16, 20, dtype=torch.float64)
    boxes = some_boxes(6)[0].double()
    rois = torch.cat([torch.tensor([[0.0], [1], [0], [1], [1], [0]]).double(), boxes], 1)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    layer = mmcv.ops.RoIAlign((4, 5), 0.25, sampling_ratio, aligned=aligned)
    pooled = layer(ours, rois)
    expected = torchvision.ops.roi_align(theirs, rois, (4, 5), 0.25, sampling_ratio, aligned)
    torch.testing.assert_close(pooled, expected)
    weight = torch.randn_like(pooled)
    (pooled * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_roi_align_averages_bilinear_samples():
    """One bin, one sample in its middle: a bilinear lookup that can be done by hand."""
    features = torch.arange(12.0).view(1, 1, 3, 4)
    # The middle of the region is x = 1.75, y = 1.25; aligned subtracts half a pixel.
    rois = torch.tensor([[0.0, 1.0, 0.5, 2.5, 2.0]])
    for aligned, expected in [(True, 4 * 0.75 + 1.25), (False, 4 * 1.25 + 1.75)]:
        pooled = mmcv.ops.RoIAlign(1, 1.0, 1, aligned=aligned)(features, rois)
        assert pooled.item() == pytest.approx(expected)


@stand_in_only
def test_other_operators_say_their_name_and_the_cure():
    with pytest.raises(NotImplementedError, match="operator 'softnms' cannot run.*MMCV_WITH_OPS=1"):
        mmcv.ops.soft_nms(*some_boxes(3))
    with pytest.raises(NotImplementedError, match="roi_align_forward with pool_mode='max'"):
        mmcv.ops.RoIAlign(2, pool_mode='max')(torch.rand(1, 1, 4, 4), torch.zeros(1, 5))
    assert not hasattr(sys.modules['mmcv._ext'], '__wrapped__')


@stand_in_only
def test_stand_in_is_an_ordinary_module_for_environment_reports():
    assert importlib.util.find_spec('mmcv._ext').loader is not None
    assert collect_env()['MMEngine']
    assert mmcv.ops.get_compiler_version() == 'n/a (no compiled operators)'
    assert mmcv.ops.get_compiling_cuda_version() == 'n/a (no compiled operators)'


def test_the_advice_names_the_mmcv_that_is_installed(tmp_path, monkeypatch):
    lite = compat._version('mmcv-lite')
    assert (f':all: mmcv=={lite} ' if lite else ':all: onedl-mmcv;') in (
        compat.build_operators_advice()
    )
    fake_distribution(tmp_path, 'mmcv-lite', '2.1.1')
    monkeypatch.syspath_prepend(tmp_path)
    assert ':all: mmcv==2.1.1 (after: pip uninstall mmcv-lite)' in compat.build_operators_advice()


def test_real_operators_are_preferred(tmp_path):
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / '_ext.py').write_text('nms = "the real one"')
    code = (
        'import mcf_mm, sys\nassert "mmcv" not in sys.modules\nimport mmcv._ext as e\nprint(e.nms)'
    )
    assert run_python(code, tmp_path).stdout == 'the real one\n'


def test_finder_is_installed_once():
    before = list(sys.meta_path)
    compat.install_operator_stand_in()
    assert sys.meta_path == before


def test_this_environment_is_supported():
    assert compat.openmmlab_problems() == []
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compat.warn_about_openmmlab()
    compat.require_openmmlab()


def fake_distribution(folder: Path, name: str, version: str) -> None:
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')


def test_unsupported_version_is_said_by_name(tmp_path, monkeypatch):
    fake_distribution(tmp_path, 'mmdet', '2.28.0')
    fake_distribution(tmp_path, 'onedl-mmcv', '2.4.0rc1')
    monkeypatch.syspath_prepend(tmp_path)
    assert compat.openmmlab_problems() == [
        'mmcv is 2.4.0rc1 from onedl-mmcv (supported: >=2.1,<2.4)',
        'mmdet is 2.28.0 from mmdet (supported: >=3.3,<4)',
    ]
    with pytest.raises(ImportError, match=r"mmdet is 2\.28\.0.*pip install 'mcf-mm\[mm\]'"):
        compat.require_openmmlab()
    with pytest.warns(UserWarning, match=r'mmdet is 2\.28\.0 from mmdet') as caught:
        compat.warn_about_openmmlab()
    assert len(caught) == 1


@pytest.mark.parametrize(
    'name, version',
    [('mmengine', '0.10.7'), ('mmcv', '2.1.0'), ('mmdet', '3.3.0'), ('mmpretrain', '1.2.0')],
)
def test_original_packages_are_supported(tmp_path, monkeypatch, name, version):
    fake_distribution(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    assert compat.openmmlab_problems() == []


def test_pruning_needs_torch_alone(tmp_path):
    """In an environment whose only packages are those that torch needs."""
    site = Path(torch.__file__).parents[1]
    for entry in site.iterdir():
        if not entry.name.lower().startswith(('mm', 'onedl')):
            (tmp_path / entry.name).symlink_to(entry)
    code = f"""
sys.path[:] = [folder for folder in sys.path if folder != {str(site)!r}]
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import mcf_mm.pruning
    from mcf_mm.pruning import structure, surgery, targets
print(*[w.message for w in caught if 'mcf_mm' in str(w.message)], sep='\\n')
try:
    import mcf_mm.registry
except ImportError as error:
    print(error)
"""
    done = run_python(code, tmp_path, Path(compat.__file__).parents[2])
    assert done.returncode == 0, done.stderr
    warning, error = done.stdout.splitlines()
    assert warning == error
    for name in ('mmengine', 'mmcv', 'mmdet', 'mmpretrain'):
        assert f'{name} is missing (supported: >=' in error


NEEDED = (
    'from transformers.pytorch_utils import prune_linear_layer, gone\nfrom transformers import A'
)


@pytest.mark.parametrize(
    'source, expected',
    [
        ('def prune_linear_layer(): ...', ['transformers.pytorch_utils.gone']),
        ('from .other import prune_linear_layer, gone', []),
        (
            None,
            ['transformers.pytorch_utils.gone', 'transformers.pytorch_utils.prune_linear_layer'],
        ),
    ],
)
def test_names_gone_from_transformers(tmp_path, monkeypatch, source, expected):
    """Names are found where they are defined or passed on; without transformers none is gone."""
    for folder in ('mmpretrain/models/multimodal/blip', 'transformers/utils'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'mmpretrain/__init__.py').touch()
    needed = f'{NEEDED}\nfrom transformers.utils import logging\n'
    (tmp_path / 'mmpretrain/models/multimodal/blip/model.py').write_text(needed)
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    (tmp_path / 'transformers').rename(tmp_path / 'later')
    assert compat.names_gone_from_transformers() == []

    (tmp_path / 'later').rename(tmp_path / 'transformers')
    importlib.invalidate_caches()
    (tmp_path / 'transformers/__init__.py').touch()
    (tmp_path / 'transformers/utils/__init__.py').touch()
    (tmp_path / 'transformers/utils/logging.py').touch()  # a module is a name, too
    if source:
        (tmp_path / 'transformers/pytorch_utils.py').write_text(source)
    assert compat.names_gone_from_transformers() == expected


SEE_MULTIMODAL = """
import mmpretrain.models
from mmpretrain.registry import MODELS
from mmpretrain.utils.dependency import WITH_MULTIMODAL, satisfy_requirement
from mcf_mm.compat.versions import names_gone_from_transformers
fits = satisfy_requirement('transformers>=4.28.0') and not names_gone_from_transformers()
assert WITH_MULTIMODAL == fits, (WITH_MULTIMODAL, fits)
assert MODELS.get('ImageClassifier') and MODELS.get('VisionTransformer')
if names_gone_from_transformers():
    try:
        MODELS.build(dict(type='BlipCaption'))
    except ImportError as error:
        print(error)
"""


@pytest.mark.parametrize('first', ['import mcf_mm', 'import mmpretrain\nimport mcf_mm'])
def test_mmpretrain_beside_the_installed_transformers(first):
    """Whether transformers is absent, of a version that mmpretrain knows, or newer."""
    done = run_python(f'{first}\n{SEE_MULTIMODAL}', Path(compat.__file__).parents[2])
    assert done.returncode == 0, done.stderr
    if compat.names_gone_from_transformers():
        assert 'multimodal networks and datasets cannot be used with transformers' in done.stdout
        assert 'transformers.pytorch_utils.find_pruneable_heads_and_indices' in done.stdout
