"""RetinaNet, ATSS and FCOS in ONNX Runtime: what mmdet predicts, with NMS in the graph."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from packaging.version import Version
from torch import Tensor, nn

import mcf_mm.weights.onnx as onnx_export_module
from mcf_mm.engine.export import export_checkpoint
from mcf_mm.engine.networks import build_model
from mcf_mm.weights.checkpoint import save_state_dict
from mcf_mm.weights.exported_detectors import compare

onnxruntime, onnx, _ = (
    pytest.importorskip(name, reason=f'{name} is not installed: the extra onnx has it')
    for name in ('onnxruntime', 'onnx', 'onnxscript')
)

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (64, 96)
SIZES = dict(inputs=[9, 16], hidden=[24, 30])
CAPTURE = Version(torch.__version__) >= onnx_export_module.CAPTURE_SINCE


def small(detector: str, sizes: dict | None = None) -> Config:
    """A config for CPUs with narrow parts; the pipelines and test_cfg stay."""
    name = f'{detector}_deit-tiny_sfp_2cpu-12e_facemask.py'
    cfg = Config.fromfile(ROOT / 'configs' / 'experiments' / name)
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=40)
    cfg.model.backbone.update(arch=arch, sizes=sizes, init_cfg=None)
    cfg.model.neck.update(in_channels=16, out_channels=16)
    if 'bbox_head' in cfg.model:
        cfg.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
        if detector != 'retinanet':
            cfg.model.bbox_head.norm_cfg = dict(type='GN', num_groups=4)
    return cfg


def build(cfg: Config, path: Path) -> nn.Module:
    """The network with random weights, whose scores are from almost 0 to almost 1."""
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
        if cfg.model.type == 'FCOS':  # large boxes, which overlap
            model.bbox_head.conv_reg.bias.fill_(4)
    save_state_dict(path, model.state_dict(), {})
    model.train(False)
    return model


def predict(model: nn.Module, photo: Tensor) -> dict[str, Tensor]:
    """What mmdet's own loop predicts for an RGB photo, boxes in pixels."""
    meta = dict(img_shape=SHAPE, ori_shape=SHAPE, scale_factor=(1.0, 1.0))
    with DefaultScope.overwrite_default_scope('mmdet'):
        data = dict(inputs=[photo.flip(0)], data_samples=[BaseDataElement(metainfo=meta)])
        found = model.test_step(data)[0].pred_instances
    return {key: found[key] for key in ('scores', 'labels', 'bboxes')}


@torch.inference_mode()
def check(model: nn.Module, path: Path) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    head = model.bbox_head
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        photo = torch.randint(256, (3, *SHAPE), generator=generator, dtype=torch.uint8)
        outputs = session.run(
            ['scores', 'labels', 'boxes'], {'images': photo[None].float().numpy()}
        )
        scores, labels, boxes = (torch.from_numpy(output)[0] for output in outputs)
        expected = predict(model, photo)
        # NMS has work to do in several classes, and its end is not that of max_per_img alone.
        threshold, head.test_cfg.nms.iou_threshold = head.test_cfg.nms.iou_threshold, 1.0
        limit, head.test_cfg.max_per_img = head.test_cfg.max_per_img, 10_000
        candidates = Counter(predict(model, photo)['labels'].tolist())
        head.test_cfg.nms.iou_threshold = threshold
        kept = Counter(predict(model, photo)['labels'].tolist())
        head.test_cfg.max_per_img = limit
        assert len(kept) > 1 and all(candidates[label] - kept[label] > 5 for label in kept)

        assert len(scores) == len(expected['scores']) <= limit
        assert torch.equal(labels, expected['labels'])
        torch.testing.assert_close(scores, expected['scores'], atol=1e-3, rtol=0)
        sides = torch.tensor(SHAPE).flip(0).repeat(2)
        torch.testing.assert_close(boxes * sides, expected['bboxes'], atol=1e-2, rtol=0)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('detector', ['retinanet', 'atss', 'fcos'])
@pytest.mark.parametrize(
    'sizes, capture',
    [
        (None, False),
        pytest.param(SIZES, True, marks=pytest.mark.skipif(not CAPTURE, reason='older torch')),
    ],
    ids=['dense, traced', 'slim, captured'],
)
def test_detections_are_those_of_mmdet(detector, sizes, capture, tmp_path, monkeypatch):
    cfg = small(detector, sizes)
    model = build(cfg, tmp_path / 'net.safetensors')
    if not capture:
        monkeypatch.setattr(onnx_export_module, 'CAPTURE_SINCE', Version('999'))
    path = tmp_path / 'out' / 'net.onnx'
    assert export_checkpoint(cfg, tmp_path / 'net.safetensors', path, SHAPE) < 1e-3
    assert [file.name for file in path.parent.iterdir()] == ['net.onnx']
    graph = onnx.load(path).graph
    assert 'NonMaxSuppression' in {node.op_type for node in graph.node}
    assert [value.name for value in graph.output] == ['scores', 'labels', 'boxes']
    check(model, path)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_no_box_at_all(tmp_path, monkeypatch):
    """Nothing is above the threshold: no boxes, and the comparison has not been empty."""
    cfg = small('fcos')
    cfg.model.test_cfg.score_thr = 0.9999
    build(cfg, tmp_path / 'net.safetensors')
    monkeypatch.setattr(onnx_export_module, 'CAPTURE_SINCE', Version('999'))
    path = tmp_path / 'net.onnx'
    assert export_checkpoint(cfg, tmp_path / 'net.safetensors', path, SHAPE) > 0
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    outputs = session.run(None, {'images': torch.zeros(1, 3, *SHAPE).numpy()})
    assert [output.shape for output in outputs] == [(1, 0), (1, 0), (1, 0, 4)]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_an_nms_that_differs_is_not_written(tmp_path, monkeypatch):
    cfg = small('retinanet')
    build(cfg, tmp_path / 'net.safetensors')
    monkeypatch.setattr(onnx_export_module, 'CAPTURE_SINCE', Version('999'))
    write = onnx_export_module._write_graph

    def other(network, *arguments):
        threshold, network.cfg.nms.iou_threshold = network.cfg.nms.iou_threshold, 0.6
        write(network, *arguments)
        network.cfg.nms.iou_threshold = threshold

    monkeypatch.setattr(onnx_export_module, '_write_graph', other)
    with pytest.raises(RuntimeError, match='net.onnx was not written: .* differ by inf'):
        export_checkpoint(cfg, tmp_path / 'net.safetensors', tmp_path / 'net.onnx', SHAPE)
    assert not list(tmp_path.glob('*.onnx'))


def test_what_is_refused(tmp_path):
    arguments = (tmp_path / 'net.safetensors', tmp_path / 'net.onnx')
    cfg = small('atss')
    build(cfg, arguments[0])
    with pytest.raises(ValueError, match='64 x 80 pixels; .* multiples of pad_size_divisor, 32'):
        export_checkpoint(cfg, *arguments, (64, 80))
    cfg.model.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(ValueError, match="test_cfg.nms is {'type': 'soft_nms'.*; only dict"):
        export_checkpoint(cfg, *arguments, SHAPE)
    cfg = small('atss')
    cfg.model.test_cfg.nms_pre = -1
    with pytest.raises(ValueError, match='test_cfg.nms_pre is -1; it must be at least 1'):
        export_checkpoint(cfg, *arguments, SHAPE)
    cfg = Config.fromfile(ROOT / 'configs/detectors/faster-rcnn_deit-tiny_sfp_1x_coco.py')
    with pytest.raises(ValueError, match="FasterRCNN cannot be exported: only .* mmdet's R"):
        export_checkpoint(cfg, *arguments, SHAPE)


def test_comparison_of_detections():
    scores, labels = torch.tensor([0.9, 0.8, 0.3]), torch.tensor([0, 1, 0])
    boxes = torch.tensor([[0.0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.25]])
    sides = torch.tensor([100.0, 100, 100, 100])
    first = (scores, labels, boxes)
    order = torch.tensor([1, 0, 2])
    moved = (scores[order] + 1e-4, labels[order], boxes[order])
    assert compare(first, moved, 0.7, sides) == pytest.approx(1e-4, rel=1e-2)
    empty = tuple(value[:0] for value in first)
    assert compare(empty, empty, 0.7, sides) == 0
    assert compare(first, empty, 0.7, sides) == compare(empty, first, 0.7, sides) == float('inf')
    other = (scores, labels, boxes + torch.tensor([0, 0, 0.01, 0]))
    assert compare(first, other, 0.7, sides) == float('inf')
    # One of many boxes, whose IoU with a better one is at the threshold, may be there or not.
    far = torch.arange(30) / 40
    many = (
        torch.cat((scores, torch.linspace(0.2, 0.1, 30))),
        torch.cat((labels, torch.full((30,), 2))),
        torch.cat((boxes, torch.stack((far, far, far + 0.02, far + 0.02), dim=-1))),
    )
    less = tuple(torch.cat((value[:2], value[3:])) for value in many)
    assert compare(many, less, 0.5, sides) == 0
    assert compare(many, less, 0.6, sides) == float('inf')
