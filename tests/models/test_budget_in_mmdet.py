"""What a budget leaves of a classifier, other sizes in each layer, is a backbone of detectors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from test_slim_backbone_in_mmdet import retinanet
from test_yolos import yolos

from mcf_mm.engine.networks import build_model
from mcf_mm.engine.prune import prune_checkpoint
from mcf_mm.pruning import find_units
from mcf_mm.weights.checkpoint import read_header, read_state_dict

ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)


@pytest.fixture
def slim(cfg, tmp_path) -> Path:
    """Checkpoint of a classifier that was pruned to a budget."""
    cfg.custom_hooks = []
    cfg.model.backbone.update(arch=ARCH, patch_size=16)
    cfg.model.head.in_channels = 32
    torch.manual_seed(0)
    model = build_model(cfg)
    for place, parameter in enumerate(model.parameters()):
        # Layers that differ, so that each of them keeps another number.
        parameter.data.add_(torch.randn_like(parameter) * (0.05 + 0.1 * (place % 5)))
    torch.save(model.state_dict(), tmp_path / 'dense.pth')
    dense = str(tmp_path / 'dense.pth')
    return prune_checkpoint(
        cfg, dense, tmp_path / 'slim', num_images=10, criterion='obs', budget='macs=65%'
    )


@pytest.mark.parametrize('kind', ['YOLOS', 'RetinaNet'])
def test_unequal_sizes_go_into_a_detector(slim, detection_cfg, kind):
    sizes = read_header(slim)['sizes']
    for part, names in (('attn', ('heads', 'qk', 'v')), ('ffn', ('hidden',))):
        own = [unit for name, unit in sizes.items() if name.endswith(part)]
        for name in names:
            assert len({unit[name] for unit in own}) > 1, (name, own)
    init = dict(type='Pretrained', checkpoint=str(slim), prefix='backbone.')
    settings = dict(arch=ARCH, img_size=(96, 96), sizes='auto', init_cfg=init)
    if kind == 'YOLOS':
        model = yolos(num_det_tokens=5, **settings)
    else:
        backbone = dict(type='mcf_mm.SlimVisionTransformer', out_type='featmap', **settings)
        model = retinanet(dict(backbone, patch_size=16))
    cfg = Config(dict(detection_cfg, model=model))
    network = build_model(cfg)
    assert find_units(network.backbone).sizes == {
        name.removeprefix('backbone.'): own for name, own in sizes.items()
    }
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    found, compared = runner.model.state_dict(), 0
    for name, weight in read_state_dict(str(slim)).items():
        if name.startswith('backbone.layers.'):
            assert torch.equal(found[name], weight), name
            compared += 1
    assert compared >= 4 * 12
    before = found['backbone.layers.0.attn.qkv.weight'].clone()
    runner.train()  # two batches of real images, and an evaluation
    scalars = runner.message_hub.log_scalars
    assert np.isfinite([scalars['train/loss'].min(), scalars['val/coco/bbox_mAP'].current()]).all()
    assert not runner.model.state_dict()['backbone.layers.0.attn.qkv.weight'].equal(before)
    assert find_units(runner.model.backbone).sizes == find_units(network.backbone).sizes
