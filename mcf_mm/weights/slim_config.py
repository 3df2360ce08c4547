"""Writes a pruned model: the slim checkpoint, a config that builds it and its model card."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from mcf_mm.files import whole_file
from mcf_mm.pruning import Unit, Units, find_units
from mcf_mm.registry import split_type
from mcf_mm.weights.card import write_card
from mcf_mm.weights.check import check_finite
from mcf_mm.weights.files import save_state_dict
from mcf_mm.weights.portable import HERE, portable

#: Backbones whose pruned form has a class that takes sizes, and that class. mmpretrain's T2T_ViT is
#: none of them: SlimT2T_ViT computes the published function, which is another one.
SLIM_TYPES = {
    'VisionTransformer': 'mcf_mm.SlimVisionTransformer',
    'DistilledVisionTransformer': 'mcf_mm.SlimDistilledVisionTransformer',
    'SwinTransformer': 'mcf_mm.SlimSwinTransformer',
    'SlimVisionTransformer': 'mcf_mm.SlimVisionTransformer',
    'SlimDistilledVisionTransformer': 'mcf_mm.SlimDistilledVisionTransformer',
    'SlimSwinTransformer': 'mcf_mm.SlimSwinTransformer',
    'SlimT2T_ViT': 'mcf_mm.SlimT2T_ViT',
    'YOLOSVisionTransformer': 'mcf_mm.YOLOSVisionTransformer',
}
SLIM_MODEL = 'mcf_mm.SlimModel'
PRUNING_HOOKS = ('MCFPruningHook', 'PruningHook', 'ScoreSearchHook')
#: Arguments of slim classes that mcf_mm 0.1 had instead of ``sizes``.
OLD_ARGUMENTS = ('ffn_inputs', 'ffn_hiddens', 'ffn_selection')
#: What a config imports so that programs that know nothing of mcf_mm can use it (mmdet.apis): all
#: that ``import mcf_mm`` does, and the reading of ``.safetensors`` files.
CUSTOM_IMPORT = 'mcf_mm.registry'


def write_slim(
    model: nn.Module,
    cfg: Config,
    out_dir: str | Path,
    facts: dict,
    dataset: Any = None,
    stem: str = 'slim',
    costs: Sequence[Any] | None = None,
    measured: Mapping[str, float] | None = None,
    shape: tuple[int, int] | None = None,
) -> Path:
    """Write ``slim.safetensors``, ``slim.py`` and ``slim.md`` to ``out_dir``.

    The three can go elsewhere as they are: no path in them is absolute, see
    :func:`mcf_mm.weights.portable.portable`.

    Args:
        model: The pruned network.
        cfg: Config of the dense one.
        out_dir: Folder, made if need be.
        facts: How it was made (origin, sizes, method ...), for the header.
        dataset: What it was trained on; its class names go to the header as ``dataset_meta``,
            where mmdet and mmpretrain look for them. Defaults to None.
        stem: What to call the files. Defaults to ``'slim'``.
        costs: For the card, see :func:`mcf_mm.weights.card.write_card`.
        measured: For the card likewise.
        shape: For the card likewise.

    Returns:
        Path of the checkpoint.

    Raises:
        ValueError: Weights are NaN or infinite; nothing is written.
    """
    out_dir = Path(out_dir)
    checkpoint = out_dir / f'{stem}.safetensors'
    check_finite(model.state_dict(), 'the pruned network', model)
    units, origin = find_units(model), facts.get('origin')
    facts = portable({**copy.deepcopy(facts), 'sizes': units.sizes})
    if classes := getattr(dataset, 'metainfo', {}).get('classes'):
        facts['dataset_meta'] = dict(classes=list(classes))
    config = slim_config(model, cfg, checkpoint)
    if stem == 'masked':
        config.custom_hooks = [*config.custom_hooks, dict(type='mcf_mm.HoldZerosHook')]
    save_state_dict(checkpoint, model.state_dict(), facts)
    # MMEngine would take a bare name for a file of the folder in which it is started.
    config.load_from = f'{HERE}/{checkpoint.name}'
    portable(config, out_dir)
    with whole_file(out_dir / f'{stem}.py') as partial:
        config.dump(partial)
    write_card(checkpoint, model, units, config, costs, measured, origin, shape)
    return checkpoint


def slim_config(model: nn.Module, cfg: Config, checkpoint: str | Path) -> Config:
    """The config of a pruned model: sizes where its units are, weights from ``checkpoint``.

    A backbone with a slim class (:data:`SLIM_TYPES`) gets that class; any other backbone, or the
    whole model where units are outside the backbone, is built by ``mcf_mm.SlimModel``.

    Args:
        model: The pruned network.
        cfg: Config of the dense one.
        checkpoint: Its weights.
    """
    cfg = copy.deepcopy(cfg)
    units = find_units(model)
    backbone = cfg.model.get('backbone')
    pruned = [unit for unit in units.every if unit.is_pruned]
    if (kind := slim_class(pruned, cfg)) is not None:
        for key in ('init_cfg', *OLD_ARGUMENTS):
            backbone.pop(key, None)
        backbone.update(type=kind, sizes=sizes_by_kind(units))
    else:
        part, prefix = (backbone, 'backbone.') if _in_backbone(pruned) else (cfg.model, '')
        sizes = {unit.name.removeprefix(prefix): unit.sizes for unit in pruned}
        part.pop('init_cfg', None)
        if 'pretrained' in part:
            part.pretrained = False  # timm would download the dense weights
        scope, name = split_type(part['type'])
        if f'{scope}.{name}' != SLIM_MODEL:
            part.base = f'{scope or cfg.default_scope}.{name}'
        part.pop('ffn_sizes', None)
        part.update(type=SLIM_MODEL, sizes=sizes)
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
        if split_type(hook['type'])[1] not in PRUNING_HOOKS
    ]
    return cfg


def sizes_by_kind(units: Units) -> dict[str, list[int]]:
    """Sizes for the argument ``sizes`` of a slim class: of each kind, one for each unit.

    FFNs of which none was pruned are left out with all their kinds, attentions likewise.
    """
    pruned = {type(unit) for unit in units.every if unit.is_pruned}
    sizes: dict[str, list[int]] = {}
    for unit in units.every:
        if type(unit) in pruned:
            for kind, size in unit.sizes.items():
                sizes.setdefault(kind, []).append(size)
    return sizes


def slim_class(pruned: Sequence[Unit], cfg: Config) -> str | None:
    """The slim class for the network's backbone, None without one or with units elsewhere too."""
    if not cfg.model.get('backbone') or not _in_backbone(pruned):
        return None
    scope, kind = split_type(cfg.model.backbone['type'])
    # mmdet has a Swin Transformer of its own, with other parts.
    if kind == 'SwinTransformer' and (scope or cfg.default_scope) == 'mmdet':
        return None
    return SLIM_TYPES.get(kind)


def _in_backbone(units: Sequence[Unit]) -> bool:
    return all(unit.name.startswith('backbone.') for unit in units)
