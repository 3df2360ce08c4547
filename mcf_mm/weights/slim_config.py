"""Writes a pruned model: the slim checkpoint and a config that builds it."""

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from torch import nn

from mcf_mm.pruning import find_ffns
from mcf_mm.weights.check import check_finite
from mcf_mm.weights.files import save_state_dict, whole_file

#: Backbones whose pruned form has a class that takes sizes, and that class.
SLIM_TYPES = {
    'VisionTransformer': 'mcf_mm.SlimVisionTransformer',
    'DistilledVisionTransformer': 'mcf_mm.SlimDistilledVisionTransformer',
    'SwinTransformer': 'mcf_mm.SlimSwinTransformer',
    'SlimVisionTransformer': 'mcf_mm.SlimVisionTransformer',
    'SlimDistilledVisionTransformer': 'mcf_mm.SlimDistilledVisionTransformer',
    'SlimSwinTransformer': 'mcf_mm.SlimSwinTransformer',
    'YOLOSVisionTransformer': 'mcf_mm.YOLOSVisionTransformer',
}
SLIM_MODEL = 'mcf_mm.SlimModel'
#: What a config imports so that programs that know nothing of mcf_mm can use it (mmdet.apis): all
#: that ``import mcf_mm`` does, and the reading of ``.safetensors`` files.
CUSTOM_IMPORT = 'mcf_mm.registry'


def write_slim(
    model: nn.Module, cfg: Config, out_dir: str | Path, facts: dict, dataset: Any = None
) -> Path:
    """Writes ``slim.safetensors`` and ``slim.py`` to ``out_dir``.

    Args:
        model: The pruned network.
        cfg: Config of the dense one.
        out_dir: Folder, made if need be.
        facts: How it was made (origin, ratios, method ...), for the header.
        dataset: What it was trained on; its class names go to the header as ``dataset_meta``,
            where mmdet and mmpretrain look for them. Defaults to None.

    Returns:
        Path of the checkpoint.

    Raises:
        ValueError: Weights are NaN or infinite; nothing is written.
    """
    out_dir = Path(out_dir)
    checkpoint = out_dir / 'slim.safetensors'
    check_finite(model.state_dict(), 'the pruned network', model)
    sizes = {ffn.name: list(ffn.sizes) for ffn in find_ffns(model)}
    facts = {**facts, 'sizes': sizes}
    if classes := getattr(dataset, 'metainfo', {}).get('classes'):
        facts['dataset_meta'] = dict(classes=list(classes))
    save_state_dict(checkpoint, model.state_dict(), facts)
    with whole_file(out_dir / 'slim.py') as partial:
        slim_config(model, cfg, checkpoint).dump(partial)
    return checkpoint


def slim_config(model: nn.Module, cfg: Config, checkpoint: str | Path) -> Config:
    """The config of a pruned model: sizes where its FFNs are, weights from ``checkpoint``.

    A backbone with a slim class (:data:`SLIM_TYPES`) gets that class; any other backbone, or the
    whole model where FFNs are outside the backbone, is built by ``mcf_mm.SlimModel``.

    Args:
        model: The pruned network.
        cfg: Config of the dense one.
        checkpoint: Its weights.

    Raises:
        ValueError: The rows select inputs of their own, in a network without slim class.
    """
    cfg = copy.deepcopy(cfg)
    ffns = find_ffns(model)
    backbone = cfg.model.get('backbone')
    check_selection(model, cfg, ffns[0].selection)
    if (kind := slim_class(model, cfg)) is not None:
        inputs, hiddens = zip(*(ffn.sizes for ffn in ffns), strict=True)
        for key in ('sizes', 'init_cfg'):
            backbone.pop(key, None)
        backbone.update(type=kind, ffn_inputs=list(inputs), ffn_hiddens=list(hiddens))
        if ffns[0].selection != 'layer':
            backbone.ffn_selection = ffns[0].selection
    else:
        part, prefix = (backbone, 'backbone.') if _in_backbone(model) else (cfg.model, '')
        sizes = {ffn.name.removeprefix(prefix): list(ffn.sizes) for ffn in ffns}
        part.pop('init_cfg', None)
        if 'pretrained' in part:
            part.pretrained = False  # timm would download the dense weights
        if part.type != SLIM_MODEL:
            part.base = f'{_scope(cfg, part)}.{part.type.rpartition(".")[2]}'
        part.update(type=SLIM_MODEL, ffn_sizes=sizes)
    cfg.custom_imports = cfg.get('custom_imports') or dict(imports=[])
    imports = cfg.custom_imports.imports
    if CUSTOM_IMPORT not in imports:
        # A single name may stand there without a list around it.
        others = [imports] if isinstance(imports, str) else imports
        cfg.custom_imports.imports = [CUSTOM_IMPORT, *others]
    cfg.load_from, cfg.resume = str(checkpoint), False
    cfg.custom_hooks = [
        hook
        for hook in cfg.get('custom_hooks') or []
        if hook['type'].rpartition('.')[2] != 'MCFPruningHook'
    ]
    return cfg


def slim_class(model: nn.Module, cfg: Config) -> str | None:
    """The slim class for the network's backbone, None without one or with FFNs elsewhere too."""
    if not _in_backbone(model):
        return None
    kind = cfg.model.backbone['type'].rpartition('.')[2]
    # mmdet has a Swin Transformer of its own, with other parts.
    if kind == 'SwinTransformer' and _scope(cfg, cfg.model.backbone) == 'mmdet':
        return None
    return SLIM_TYPES.get(kind)


def check_selection(model: nn.Module, cfg: Config, selection: str) -> None:
    """Refuses rows with inputs of their own where no config could build them.

    Raises:
        ValueError: ``selection`` is ``'row'`` and the network has no slim class.
    """
    if selection == 'row' and slim_class(model, cfg) is None:
        raise ValueError(
            f'{type(model).__name__} has no slim class, so its rows cannot keep inputs of their '
            "own: use last_step='x_transformation'"
        )


def _in_backbone(model: nn.Module) -> bool:
    return all(ffn.name.startswith('backbone.') for ffn in find_ffns(model))


def _scope(cfg: Config, part: ConfigDict) -> str:
    """The library that a type of the config belongs to."""
    return part['type'].rpartition('.')[0] or cfg.default_scope
