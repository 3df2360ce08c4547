"""Classifiers and YOLOS in ONNX Runtime: the results of torch, at any batch size."""

import json
from pathlib import Path

import pytest
import torch
from fork_server import run_tool
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from packaging.version import Version
from torch import Tensor, nn

import mcf_mm.weights.onnx as onnx_export_module
from mcf_mm.engine.export import export_checkpoint
from mcf_mm.engine.networks import build_model
from mcf_mm.pruning import find_ffns
from mcf_mm.weights.checkpoint import save_state_dict

onnxruntime, onnx, _ = (
    pytest.importorskip(name, reason=f'{name} is not installed: the extra onnx has it')
    for name in ('onnxruntime', 'onnx', 'onnxscript')
)

ROOT = Path(__file__).resolve().parents[2]
ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
#: With and without a selection of inputs, and odd numbers: every layer that pruning leaves.
SIZES = dict(inputs=[19, 32], hidden=[33, 40])


@pytest.fixture
def yolos_cfg(detection_cfg) -> Config:
    """A small YOLOS of type I on the scenes, evaluated at up to 96 px."""
    detection_cfg.model = dict(
        type='mcf_mm.YOLOS',
        data_preprocessor=dict(
            type='DetDataPreprocessor', mean=[120.0, 115.0, 100.0], std=[60.0] * 3, bgr_to_rgb=True
        ),
        backbone=dict(
            type='mcf_mm.YOLOSVisionTransformer',
            arch=ARCH,
            img_size=(64, 96),
            num_det_tokens=5,
            with_mid_pos_embed=True,
        ),
        bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=2, embed_dims=32),
    )
    return detection_cfg


def build(cfg: Config, path: Path) -> nn.Module:
    """The network with random weights, which are written to ``path`` too."""
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for ffn in find_ffns(model):
            if 'inputs' in dict(ffn.fc1.named_buffers()):
                kept = torch.randperm(ffn.width)[: ffn.sizes['inputs']]
                ffn.fc1.inputs.copy_(kept.sort().values)
        for parameter in model.parameters():
            # Results that differ from token to token and from image to image.
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    save_state_dict(path, model.state_dict(), {})
    model.train(False)
    return model


def photos(number: int, shape: tuple[int, int]) -> Tensor:
    """RGB images, ``(B, 3, H, W)``, uint8."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(256, (number, 3, *shape), generator=generator, dtype=torch.uint8)


def run(path: Path, images: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    outputs = session.run(None, {'images': images.float().numpy()})
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}


def metadata(path: Path) -> dict:
    return {prop.key: json.loads(prop.value) for prop in onnx.load(path).metadata_props}


@torch.inference_mode()
@pytest.mark.parametrize(
    'sizes, to_rgb',
    [
        (None, True),
        (SIZES, False),
        (dict(SIZES, heads=[1, 2], qk=[16, 5], v=[7, 9]), True),
        (dict(SIZES, tokens=[10, 6]), True),
    ],
    ids=['dense', 'ffn', 'all kinds', 'tokens'],
)
def test_classifier(cfg, tmp_path, sizes, to_rgb):
    cfg.model.backbone.update(arch=ARCH, sizes=sizes)
    cfg.model.head.in_channels = 32
    cfg.data_preprocessor.update(to_rgb=to_rgb, mean=[127.0, 110.0, 90.0])
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].dataset.metainfo = dict(classes=('cat', 'dog'))
    model = build(cfg, tmp_path / 'net.safetensors')
    difference = export_checkpoint(
        cfg, tmp_path / 'net.safetensors', tmp_path / 'out' / 'net.onnx', shape=(32, 32)
    )
    assert difference < 1e-4
    assert [file.name for file in (tmp_path / 'out').iterdir()] == ['net.onnx']
    for number in (1, 3):
        images = photos(number, (32, 32))
        bgr = model.data_preprocessor(dict(inputs=list(images.flip(1))))['inputs']
        expected = model(bgr, mode='tensor')
        assert expected.std(dim=-1).min() > 0.01
        logits = run(tmp_path / 'out' / 'net.onnx', images)['logits']
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)
    facts = metadata(tmp_path / 'out' / 'net.onnx')
    assert facts['classes'] == ['cat', 'dog'] and facts['mean'] == [127, 110, 90]
    assert facts['origin'] == 'net.safetensors' and facts['mcf_mm'] == '0.1.0'


@torch.inference_mode()
def test_a_classifier_of_grey_images(cfg, tmp_path):
    cfg.model.backbone.update(arch=ARCH, in_channels=1)
    cfg.model.head.in_channels = 32
    cfg.data_preprocessor.update(mean=[127.0], std=[60.0])
    model = build(cfg, tmp_path / 'net.safetensors')
    path = tmp_path / 'net.onnx'
    export_checkpoint(cfg, tmp_path / 'net.safetensors', path, shape=(32, 32))
    images = photos(2, (32, 32))[:, :1].float()
    expected = model((images - 127) / 60, mode='tensor')
    torch.testing.assert_close(run(path, images)['logits'], expected, atol=1e-3, rtol=0)


def predict(model: nn.Module, images: Tensor) -> list:
    """What mmdet's own loop predicts, boxes in pixels of the images."""
    shape = tuple(images.shape[-2:])
    meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    samples = [BaseDataElement(metainfo=meta) for _ in images]
    with DefaultScope.overwrite_default_scope('mmdet'):
        found = model.test_step(dict(inputs=list(images.flip(1)), data_samples=samples))
    return [sample.pred_instances for sample in found]


def check_yolos(model: nn.Module, path: Path, shape: tuple[int, int]) -> None:
    for number in (1, 3):
        images = photos(number, shape)
        outputs = run(path, images)
        assert outputs['boxes'].shape == (number, 5, 4)
        for index, expected in enumerate(predict(model, images)):
            assert expected.scores.diff().abs().min() > 1e-5  # the order is not by chance
            scores, order = outputs['scores'][index].sort(descending=True)
            torch.testing.assert_close(scores, expected.scores, atol=1e-3, rtol=0)
            assert torch.equal(outputs['labels'][index][order], expected.labels)
            relative = expected.bboxes / torch.tensor(shape).flip(0).repeat(2)
            torch.testing.assert_close(outputs['boxes'][index][order], relative, atol=1e-3, rtol=0)


@torch.inference_mode()
def test_yolos(yolos_cfg, tmp_path):
    # Outputs that are no label and stand in another order, as in the public weights.
    yolos_cfg.model.bbox_head.update(num_classes=4, class_ids=[3, 1])
    model = build(yolos_cfg, tmp_path / 'net.safetensors')
    # Where training started from is not asked for.
    yolos_cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='nowhere.pth')
    export_checkpoint(yolos_cfg, tmp_path / 'net.safetensors', tmp_path / 'net.onnx')
    check_yolos(model, tmp_path / 'net.onnx', (96, 96))
    facts = metadata(tmp_path / 'net.onnx')
    assert facts['classes'] == ['red', 'green'] and facts['std'] == [60] * 3


@torch.inference_mode()
def test_pruned_yolos_with_the_tool(yolos_cfg, tmp_path):
    yolos_cfg.model.backbone.update(sizes=SIZES)
    model = build(yolos_cfg, tmp_path / 'slim.safetensors')
    # As in the configs: the sizes are the checkpoint's.
    yolos_cfg.model.backbone.sizes = 'auto'
    yolos_cfg.dump(tmp_path / 'slim.py')
    names = [str(tmp_path / name) for name in ('slim.py', 'slim.safetensors', 'slim.onnx')]
    done = run_tool([ROOT / 'tools' / 'export_onnx.py', *names, '--input-shape', 64, 112])
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    assert 'slim.onnx: 0.' in line and 'largest difference of ONNX Runtime and torch' in line
    assert float(line.split()[-1]) < 1e-4
    check_yolos(model, tmp_path / 'slim.onnx', (64, 112))


@torch.inference_mode()
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_the_exporter_of_older_torch(yolos_cfg, tmp_path, monkeypatch):
    yolos_cfg.model.backbone.update(sizes=SIZES)
    model = build(yolos_cfg, tmp_path / 'slim.safetensors')
    monkeypatch.setattr(onnx_export_module, 'CAPTURE_SINCE', Version('999'))
    export_checkpoint(
        yolos_cfg, tmp_path / 'slim.safetensors', tmp_path / 'x.onnx', (64, 112), opset=17
    )
    assert onnx.load(tmp_path / 'x.onnx').opset_import[0].version == 17
    check_yolos(model, tmp_path / 'x.onnx', (64, 112))


def test_what_differs_is_not_written(yolos_cfg, tmp_path, monkeypatch):
    build(yolos_cfg, tmp_path / 'net.safetensors')
    monkeypatch.setattr(onnx_export_module, 'CAPTURE_SINCE', Version('999'))  # it is faster
    monkeypatch.setattr(onnx_export_module, 'TOLERANCE', -1.0)
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x' / 'x.onnx').write_text('what was there before')
    with pytest.raises(RuntimeError, match=r'x.onnx was not written: .* differ by .*, more than'):
        export_checkpoint(yolos_cfg, tmp_path / 'net.safetensors', tmp_path / 'x' / 'x.onnx')
    assert [file.read_text() for file in (tmp_path / 'x').iterdir()] == ['what was there before']


def test_what_cannot_be_exported(yolos_cfg, tmp_path, monkeypatch):
    build(yolos_cfg, tmp_path / 'net.safetensors')
    arguments = (tmp_path / 'net.safetensors', tmp_path / 'x.onnx')
    with pytest.raises(ValueError, match='shape is 64 x 100 pixels; .* of the patch, 16 x 16'):
        export_checkpoint(yolos_cfg, *arguments, shape=(64, 100))
    with pytest.raises(FileNotFoundError, match='no checkpoint .*absent.safetensors'):
        export_checkpoint(yolos_cfg, tmp_path / 'absent.safetensors', tmp_path / 'x.onnx')
    yolos_cfg.model.bbox_head.num_classes = 3
    with pytest.raises(ValueError, match=r'bbox_head.fc_cls.4.weight is \(3, 32\), not \(4, 32\)'):
        export_checkpoint(yolos_cfg, *arguments)
    yolos_cfg.model = get_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py').model
    with pytest.raises(ValueError, match='YOLOX cannot be exported: only'):
        export_checkpoint(yolos_cfg, *arguments)
    monkeypatch.setattr(onnx_export_module, 'PACKAGES', ('onnx', 'no_such_package'))
    with pytest.raises(ImportError, match=r"needs no_such_package: pip install -e '\.\[onnx\]'"):
        export_checkpoint(yolos_cfg, *arguments)
    assert not list(tmp_path.glob('*.onnx'))
