"""How to load a slim network: what a model card says of it."""

from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from torch import nn

from mcf_mm.pruning import Units
from mcf_mm.pruning.token_units import Tokens
from mcf_mm.registry import split_type

_PLAIN = ('SlimVisionTransformer', 'SlimDistilledVisionTransformer')
_SWIN = 'SlimSwinTransformer'
#: timm's names of mmpretrain's architectures; of Swin with windows of 7 at 224 pixels.
_TIMM = {
    ('SlimVisionTransformer', 'deit-tiny'): 'deit_tiny_patch16_224',
    ('SlimVisionTransformer', 'deit-small'): 'deit_small_patch16_224',
    ('SlimVisionTransformer', 'deit-base'): 'deit_base_patch16_224',
    ('SlimDistilledVisionTransformer', 'deit-tiny'): 'deit_tiny_distilled_patch16_224',
    ('SlimDistilledVisionTransformer', 'deit-small'): 'deit_small_distilled_patch16_224',
    ('SlimDistilledVisionTransformer', 'deit-base'): 'deit_base_distilled_patch16_224',
    (_SWIN, 'tiny'): 'swin_tiny_patch4_window7_224',
    (_SWIN, 'small'): 'swin_small_patch4_window7_224',
    (_SWIN, 'base'): 'swin_base_patch4_window7_224',
}


def ways_to_load(
    model: nn.Module, units: Units, cfg: Config, checkpoint: Path
) -> tuple[list[tuple[str, str]], list[str]]:
    """Code that loads a slim network in other programs.

    Args:
        model: The pruned network.
        units: Its units.
        cfg: The config that is beside the checkpoint.
        checkpoint: ``slim.safetensors``.

    Returns:
        A line and a piece of code for each way, and a line for each way that there is none of.
    """
    config, weights = repr(checkpoint.with_suffix('.py').name), repr(checkpoint.name)
    detector = cfg.get('default_scope') == 'mmdet'
    package, function = ('mmdet', 'init_detector') if detector else ('mmpretrain', 'get_model')
    arguments = f'{config}, {weights}' if detector else f'{config}, pretrained={weights}'
    ways = [
        (
            f'With {package}, where `mcf_mm` is installed:',
            f'import mcf_mm\nfrom {package}.apis import {function}\n\n'
            f'model = {function}({arguments}{", device=" + repr("cpu") if detector else ""})',
        )
    ]
    missing = []
    kind = split_type((cfg.model.get('backbone') or {}).get('type', ''))[1]
    if not detector:
        if kind in (*_PLAIN, _SWIN) and (network := _timm(model, cfg.model.backbone, kind)):
            code = f'import mcf_mm\n\nmodel = mcf_mm.to_timm({weights}, {network}).eval()'
            if not network.startswith("'"):
                code = (
                    f'import mcf_mm\nimport timm\n\ndense = {network}\n'
                    f'model = mcf_mm.to_timm({weights}, dense).eval()'
                )
            ways.append(('In timm, without OpenMMLab:', code))
        else:
            missing.append('Not in timm: it has no such network that mcf_mm could name.')
        dropping = any(unit.is_pruned for unit in units.every if isinstance(unit, Tokens))
        if dropping:
            missing.append('Not as the backbone of a detector: it drops tokens.')
        elif kind in ('SlimVisionTransformer', _SWIN):
            ways.append(
                ("As the backbone in a detector's config:", _backbone(cfg.model, kind, weights))
            )
        else:
            missing.append(f'Not as the backbone of a detector: {kind} gives no feature map.')
    return ways, missing


def _timm(model: nn.Module, backbone: Mapping, kind: str) -> str | None:
    """What to give ``mcf_mm.to_timm`` as the model, as code; None where there is no such one."""
    arch = backbone.get('arch')
    size = backbone.get('img_size', 224)
    if isinstance(arch, str) and size == 224:
        return repr(_TIMM[kind, arch]) if (kind, arch) in _TIMM else None
    if kind != 'SlimVisionTransformer' or not isinstance(arch, Mapping):
        return None
    classes = getattr(getattr(model, 'head', None), 'num_classes', 0)
    arguments = dict(
        img_size=size,
        patch_size=backbone.get('patch_size', 16),
        num_classes=classes,
        embed_dim=arch['embed_dims'],
        depth=arch['num_layers'],
        num_heads=arch['num_heads'],
        mlp_ratio=arch['feedforward_channels'] / arch['embed_dims'],
    )
    text = ''.join(f'    {name}={value!r},\n' for name, value in arguments.items())
    return f'timm.models.VisionTransformer(\n{text})'


def _backbone(model: Mapping, kind: str, weights: str) -> str:
    """The backbone of a detector that reads its sizes and weights from the checkpoint."""
    own = model['backbone']
    kept = {key: own[key] for key in ('arch', 'img_size', 'patch_size') if key in own}
    lines = [f'    {key}={_plain(value)!r},' for key, value in kept.items()]
    if kind == 'SlimVisionTransformer':
        lines.append("    out_type='featmap',")
    return '\n'.join(
        [
            'backbone = dict(',
            f"    type='mcf_mm.{kind}',",
            *lines,
            "    sizes='auto',",
            f"    init_cfg=dict(type='Pretrained', checkpoint={weights}, prefix='backbone.'),",
            ')',
        ]
    )


def _plain(value):
    return dict(value) if isinstance(value, Mapping) else value


def data_folders(cfg: Config) -> list[str]:
    """Folders of images that a config evaluates, or trains on where it evaluates none."""
    for name in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset') or {}
        while 'dataset' in dataset:
            dataset = dataset['dataset']
        if root := dataset.get('data_root'):
            return [str(root)]
    return []
