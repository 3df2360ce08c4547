"""Writes a pruned model: the slim checkpoint and a config that builds it."""

import copy
import os
from pathlib import Path

from mmengine.config import Config
from torch import nn

from mcf_mm.checkpoint import save_state_dict
from mcf_mm.pruning import Structure, find_ffns

#: Backbones whose pruned form has a class that takes sizes, and that class.
SLIM_TYPES = {
    'VisionTransformer': 'mcf_mm.SlimVisionTransformer',
    'SlimVisionTransformer': 'mcf_mm.SlimVisionTransformer',
    'YOLOSVisionTransformer': 'mcf_mm.YOLOSVisionTransformer',
}


def slim_type(cfg: Config) -> str:
    """The class that can be built with the sizes of a pruned backbone.

    Args:
        cfg: Config of the dense network.

    Raises:
        ValueError: There is none for this backbone.
    """
    backbone = cfg.model.get('backbone') or {}
    kind = backbone.get('type', 'without type').rpartition('.')[2]
    if kind not in SLIM_TYPES:
        raise ValueError(
            f'model.backbone is {kind}, for which there is no slim class; there is one for '
            f'{sorted(SLIM_TYPES)}'
        )
    return SLIM_TYPES[kind]


def write_slim(
    model: nn.Module, cfg: Config, structure: Structure, out_dir: str | Path, facts: dict
) -> Path:
    """Writes ``slim.safetensors`` and ``slim.py`` to ``out_dir``.

    Args:
        model: The pruned network.
        cfg: Config of the dense one.
        structure: What was kept.
        out_dir: Folder, made if need be.
        facts: How it was made (origin, ratios, method ...), for the header.

    Returns:
        Path of the checkpoint.
    """
    out_dir = Path(out_dir)
    checkpoint = out_dir / 'slim.safetensors'
    save_state_dict(checkpoint, model.state_dict(), {**facts, 'sizes': structure.sizes})
    partial = out_dir / f'slim.{os.getpid()}.part.py'
    try:
        slim_config(model, cfg, checkpoint).dump(partial)
        os.replace(partial, out_dir / 'slim.py')
    finally:
        partial.unlink(missing_ok=True)
    return checkpoint


def slim_config(model: nn.Module, cfg: Config, checkpoint: str | Path) -> Config:
    """The config of a pruned model: sizes in the backbone, weights from ``checkpoint``.

    Args:
        model: The pruned network, with a ``backbone``.
        cfg: Config of the dense one.
        checkpoint: Its weights.

    Raises:
        ValueError: The backbone's type has no class that takes sizes.
    """
    cfg = copy.deepcopy(cfg)
    inputs, hiddens = zip(*(ffn.sizes for ffn in find_ffns(model.backbone)), strict=True)
    for key in ('sizes', 'init_cfg'):
        cfg.model.backbone.pop(key, None)
    cfg.model.backbone.update(
        type=slim_type(cfg), ffn_inputs=list(inputs), ffn_hiddens=list(hiddens)
    )
    cfg.load_from, cfg.resume = str(checkpoint), False
    cfg.custom_hooks = [
        hook
        for hook in cfg.get('custom_hooks') or []
        if hook['type'].rpartition('.')[2] != 'MCFPruningHook'
    ]
    return cfg
