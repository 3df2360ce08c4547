"""The stand-in for mmcv's compiled operators."""

import importlib.util
import sys

import pytest
import torch
import torchvision
from environments import run_python
from mmengine.utils.dl_utils import collect_env, mmcv_full_available

from mcf_mm.compat.mmcv_ops import install_operator_stand_in, operator_names

# isort: split
import mmcv.ops  # cannot be imported before mcf_mm
from mmcv.utils import ext_loader

stand_in_only = pytest.mark.skipif(
    not importlib.util.find_spec('mmcv._ext').origin.endswith('mmcv_ops.py'),
    reason='this mmcv has compiled operators',
)


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


def test_nms_takes_what_autocast_gives():
    # Beyond 256 bfloat16 knows even pixels alone: the IoU must not be computed in it.
    boxes = torch.tensor([[300.0, 300, 340, 340], [304, 300, 344, 340], [308, 300, 348, 340]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    half = mmcv.ops.nms(boxes.bfloat16(), scores.bfloat16(), 0.7)[1]
    assert half.tolist() == plain_nms(boxes, scores, 0.7, 0) == [0, 2]


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
    assert mmcv_full_available()


@stand_in_only
def test_offers_exactly_what_mmcv_asks_for():
    code = """
import mcf_mm
from mmcv.utils import ext_loader
asked, load_ext = set(), ext_loader.load_ext
def recorded(name, funcs):
    asked.update(funcs)
    return load_ext(name, funcs)
ext_loader.load_ext = recorded
import mmcv.ops
from mmcv import _ext
offered = {name for name in vars(_ext) if not name.startswith('_')}
assert offered == asked, offered ^ asked
print(len(offered))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


@stand_in_only
def test_a_foreign_name_is_missing():
    """Or else others would never take their fallback for an operator that mmcv lacks."""
    ext = sys.modules['mmcv._ext']
    assert hasattr(ext, 'nms') and hasattr(ext, 'softnms')
    assert not hasattr(ext, 'nms_of_the_future')
    with pytest.raises(AttributeError, match=r"'mmcv\._ext' has no attribute 'nms_of_the_future'"):
        _ = ext.nms_of_the_future
    with pytest.raises(AssertionError, match='nms_of_the_future miss in module _ext'):
        ext_loader.load_ext('_ext', ['nms', 'nms_of_the_future'])
    with pytest.raises(ImportError, match='nms_of_the_future'):
        from mmcv.ops import nms_of_the_future  # noqa: F401


@stand_in_only
def test_what_mmcv_computes_in_plain_pytorch_needs_no_operator():
    attention = mmcv.ops.MultiScaleDeformableAttention(8, num_heads=2, num_levels=1, num_points=2)
    out = attention(
        torch.rand(3, 1, 8),
        value=torch.rand(4, 1, 8),
        reference_points=torch.rand(1, 3, 1, 2),
        spatial_shapes=torch.tensor([[2, 2]]),
        level_start_index=torch.tensor([0]),
    )
    assert out.shape == (3, 1, 8)


def test_operator_names_are_read_in_the_sources(tmp_path):
    (tmp_path / 'ops').mkdir()
    assert operator_names(str(tmp_path)) == set()
    (tmp_path / 'ops' / 'a.py').write_text("""
ext_module = ext_loader.load_ext(
    '_ext',
    ['a_forward', 'a_backward',
     'act_'])
other = ext_loader.load_ext('_other', ['b'])
""")
    (tmp_path / 'ops' / 'b.py').write_text('e = load_ext("_ext", ["nms"])\nn = ["c"]')
    assert operator_names(str(tmp_path)) == {'a_forward', 'a_backward', 'act_', 'nms'}


def test_an_mmcv_without_sources_is_an_import_error(tmp_path):
    (tmp_path / 'mmcv' / 'ops').mkdir(parents=True)
    (tmp_path / 'mmcv' / '__init__.py').touch()
    done = run_python('import mcf_mm\nimport mmcv._ext', tmp_path)
    assert 'ImportError: no load_ext call found in' in done.stderr


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
    install_operator_stand_in()
    assert sys.meta_path == before
