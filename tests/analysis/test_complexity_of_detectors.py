"""Parts of detectors, whose heads mmdet calls in a way of its own."""

import math
from pathlib import Path

from mmengine.config import Config
from torch import nn

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.engine.networks import build_model

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


def test_heads_whose_forward_is_called_by_name_are_counted():
    """They were in ``'other'``."""
    cfg = Config.fromfile(CONFIGS / 'detectors/retinanet_deit-tiny_sfp_1x_coco.py')
    cfg.model.backbone.init_cfg = None
    model = build_model(cfg)
    parts = count_complexity(model, (64, 64)).parts
    cells = sum(math.ceil(64 / stride) ** 2 for stride in (8, 16, 32, 64, 128))
    convolutions = [m for m in model.bbox_head.modules() if isinstance(m, nn.Conv2d)]
    assert parts['head'].macs == cells * sum(m.weight.numel() for m in convolutions)
