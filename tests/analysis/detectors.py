"""Small detectors with random weights, and what they predict."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from torch import nn

from mcf_mm.engine.networks import build_model

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
#: Random weights are never sure of one of 80 classes.
THRESHOLD = 0.04


def small(name: str, **backbone) -> Config:
    """A config of ours with a small encoder; pipelines, data sets and all else stay."""
    (path,) = CONFIGS.glob(f'*/yolos_{name}.py')
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(arch=ARCH, img_size=(64, 96), num_det_tokens=7, **backbone)
    cfg.model.bbox_head.embed_dims = 32
    return cfg


def build(cfg: Config) -> nn.Module:
    """The network with random weights that find different things in different places."""
    torch.manual_seed(0)
    cfg.model.backbone.init_cfg = None
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.train(False)
    return model


def predict(config: Path, model: nn.Module, photo: Path) -> dict[str, torch.Tensor]:
    """What the network itself predicts for a photo in the config's test pipeline."""
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        pipeline = Compose(cfg.test_dataloader.dataset.pipeline)
        data = pipeline(dict(img_path=str(photo), img_id=0, instances=[]))
        with torch.inference_mode():
            found = model.test_step(pseudo_collate([data]))[0].pred_instances
    return {key: found[key] for key in ('bboxes', 'scores', 'labels')}
