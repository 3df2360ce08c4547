"""Writes the config of a detector for a data set of one's own."""

import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mcf_mm.datasets.own_data import Boxes
from mcf_mm.engine.detector_plan import Schedule
from mcf_mm.shipped import command, shipped
from mcf_mm.weights.checkpoint import read_state_dict

#: Width and number of blocks of the DeiTs that mmpretrain knows by name.
ARCHS = {'deit-tiny': (192, 12), 'deit-small': (384, 12), 'deit-base': (768, 12)}
DETECTORS = {
    'retinanet': 'RetinaNet',
    'faster-rcnn': 'Faster R-CNN',
    'yolos': 'YOLOS',
}
#: What is not in a checkpoint of a backbone.
NEW_PARTS = {
    'retinanet': ('neck', 'bbox_head'),
    'faster-rcnn': ('neck', 'rpn_head', 'roi_head'),
    'yolos': ('bbox_head',),
}


class Backbone(NamedTuple):
    """A backbone to start from."""

    arch: str
    checkpoint: str
    is_slim: bool

    @property
    def width(self) -> int:
        return ARCHS[self.arch][0]


def find_backbone(name: str, checkpoint: str | None = None) -> Backbone:
    """The backbone of that name, or that a slim checkpoint holds.

    Args:
        name: ``'deit-tiny'``, ``'deit-small'``, ``'deit-base'``, or a ``slim.safetensors``.
        checkpoint: Weights of a dense one. Defaults to None,
            ``checkpoints/deit_tiny_in1k.safetensors`` and so on.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The name is unknown, or the weights are of no such backbone.
    """
    if is_slim := name not in ARCHS:
        if Path(name).suffix not in ('.safetensors', '.pth'):
            raise ValueError(
                f'--backbone must be one of {", ".join(ARCHS)} or a slim.safetensors, got {name!r}'
            )
        if checkpoint is not None:
            raise ValueError(f'--checkpoint is for a dense backbone; {name} has its own weights')
        source = name
    else:
        source = checkpoint or f'checkpoints/{name.replace("-", "_")}_in1k.safetensors'
    if not Path(source).is_file():
        advice = ''
        if not is_slim:
            timm_name = f'{name.replace("-", "_")}_patch16_224'
            advice = (
                f'. Save the weights of timm ({timm_name}) and convert them: python -c "import '
                f"timm, torch; torch.save(timm.create_model('{timm_name}', pretrained=True)"
                f".state_dict(), '{timm_name}.pth')\"; {command('convert_checkpoint')} "
                f'{timm_name}.pth {source} --to mmpretrain'
            )
        raise FileNotFoundError(f'no weights {source}{advice}')
    return Backbone(_arch(source, None if is_slim else name), source, is_slim)


def _arch(source: str, wanted: str | None) -> str:
    """Which DeiT the weights are of; the header of a slim file has sizes, but not this."""
    weights = read_state_dict(source)
    patches = weights.get('backbone.patch_embed.projection.weight')
    if patches is None:
        raise ValueError(
            f'{source} has no backbone.patch_embed.projection.weight, but such as '
            f'{list(weights)[:3]}: convert it with tools/convert_checkpoint.py --to mmpretrain'
        )
    width, _, *patch = patches.shape
    depth = len({key.split('.')[2] for key in weights if key.startswith('backbone.layers.')})
    found = next((name for name, sizes in ARCHS.items() if sizes == (width, depth)), None)
    if found is None or patch != [16, 16] or wanted not in (None, found):
        raise ValueError(
            f'{source} is {width} wide, has {depth} blocks and patches of {patch} pixels: expected '
            f'{wanted or "one of " + ", ".join(ARCHS)} with patches of 16'
        )
    return found


def config_text(
    detector: str,
    backbone: Backbone,
    classes: Sequence[str],
    files: dict[str, tuple[str, str]],
    boxes: Boxes,
    size: int,
    schedule: Schedule,
    out: str | Path,
    command: str,
) -> str:
    """The config, as text.

    Args:
        detector: A key of :data:`DETECTORS`.
        backbone: See :func:`find_backbone`.
        classes: Names of the classes, in the order of the annotation files.
        files: For ``'train'`` and ``'val'``, annotation file and folder of images.
        boxes: Of the training set.
        size: Longer side of the images in pixels.
        schedule: See :func:`plan`.
        out: Where the config will be.
        command: What wrote it, for its docstring.

    Raises:
        ValueError: The detector is unknown.
        FileNotFoundError: The detector is YOLOS and the configs of mcf_mm are not there.
    """
    if detector not in DETECTORS:
        raise ValueError(f'--detector must be one of {", ".join(DETECTORS)}, got {detector!r}')
    model = _yolos(backbone, boxes, size, out) if detector == 'yolos' else _sfp(detector, backbone)
    interval = max(1, schedule.epochs // 10)
    # Not a key 'backbone': it would switch flat_decay_mult off in the whole backbone.
    new_parts = ', '.join(f'{name}=new' for name in NEW_PARTS[detector])
    (train, train_images), (val, val_images) = files['train'], files['val']
    wrapped = '\n'.join(textwrap.wrap(command, 96, break_long_words=False, break_on_hyphens=False))
    title = f'{DETECTORS[detector]} on {"a pruned " if backbone.is_slim else ""}{backbone.arch}'
    return f'''"""{title} for {len(boxes.images)} images of one's own, by tools/new_detector.py.

{wrapped.replace(chr(92), '/')}
"""

_base_ = [
{model['bases']}
]
custom_imports = dict(imports=['mcf_mm.registry'])

classes = {tuple(classes)!r}
data_root = ''  # not COCO's of the base
image_size = {size}  # the longer side in pixels
max_epochs = {schedule.epochs}

{model['text']}
dataset = dict(data_root=data_root, metainfo=dict(classes=classes), filter_cfg=None)
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
{model['resize']}
workers = dict(num_workers={schedule.workers}, persistent_workers={schedule.workers > 0})
train_dataloader = dict(batch_size={schedule.batch}, **workers, dataset=dict(
    ann_file={train!r},
    data_prefix=dict(img={train_images!r}), pipeline=train_pipeline, **dataset))
val_dataloader = dict(**workers, dataset=dict(
    ann_file={val!r},
    data_prefix=dict(img={val_images!r}), pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={val!r}, classwise={len(classes) > 1})
test_evaluator = val_evaluator
new = dict(lr_mult=2.0)  # what starts from random values learns faster
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr={schedule.lr:.3g}, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0), paramwise_cfg=dict(
        flat_decay_mult=0.0,  # biases and norms of the backbone
        custom_keys=dict({new_parts})))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end={schedule.warmup}, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=max_epochs, end=max_epochs, eta_min=1e-6)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval={interval})
val_cfg, test_cfg = dict(type='ValLoop'), dict(type='TestLoop')
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
'''


def _backbone(backbone: Backbone, **settings: Any) -> str:
    parts = [f'{key}={value!r}' for key, value in dict(arch=backbone.arch, **settings).items()]
    if backbone.is_slim:
        parts.append("sizes='auto'")  # read from the weights
    return (
        f'{", ".join(parts)},\n        init_cfg=dict(\n'
        f"            type='Pretrained', prefix='backbone.',\n"
        f'            checkpoint={backbone.checkpoint!r})'
    )


def _sfp(detector: str, backbone: Backbone) -> dict[str, str]:
    """mmdet's detector on a plain backbone with the simple feature pyramid."""
    width = neck_width(backbone)
    if detector == 'retinanet':
        base, start = 'retinanet_r50_fpn', 'start_level=1'  # strides 8 to 128
        head = (
            f'bbox_head=dict(num_classes=len(classes), in_channels={width}, feat_channels={width})'
        )
    else:
        base, start = 'faster-rcnn_r50_fpn', 'start_level=0'  # strides 4 to 64
        head = (
            f'rpn_head=dict(in_channels={width}, feat_channels={width}),\n    roi_head=dict(\n'
            f'        bbox_roi_extractor=dict(out_channels={width}),\n'
            f'        bbox_head=dict(in_channels={width}, num_classes=len(classes)))'
        )
    text = f"""model = dict(
    backbone=dict(
        _delete_=True, type='mcf_mm.SlimVisionTransformer', out_type='featmap',
        {_backbone(backbone)}),
    neck=dict(
        _delete_=True, type='mcf_mm.SimpleFeaturePyramid', in_channels={backbone.width},
        out_channels={width}, {start}),
    {head})
"""
    names = (f'models/{base}', 'datasets/coco_detection', 'default_runtime')
    bases = '\n'.join(f"    'mmdet::_base_/{name}.py'," for name in names)
    resize = 'train_pipeline[2].scale = test_pipeline[1].scale = (image_size, image_size)'
    return dict(bases=bases, text=text, resize=resize)


def neck_width(backbone: Backbone) -> int:
    """Channels of neck and heads; 256 as in mmdet would be wider than DeiT-Tiny."""
    return 128 if backbone.width < 256 else 256


def _yolos(backbone: Backbone, boxes: Boxes, size: int, out: str | Path) -> dict[str, str]:
    base = shipped('configs') / 'yolos' / 'yolos_deit-small_8xb1-150e_coco.py'
    relative = Path(os.path.relpath(base, Path(out).resolve().parent)).as_posix()
    height = math.ceil(float((boxes.images.min(1) / boxes.images.max(1)).mean()) * size / 16) * 16
    settings = dict(
        img_size=(height, size), with_mid_pos_embed=False, num_det_tokens=det_tokens(boxes)
    )
    text = f"""model = dict(
    backbone=dict(
        {_backbone(backbone, **settings)}),
    bbox_head=dict(embed_dims={backbone.width}, num_classes=len(classes)))
"""
    resize = (
        "train_pipeline[3] = dict(type='mcf_mm.PatchResize', scale=(image_size, image_size))\n"
        'test_pipeline[1].scale = (image_size, image_size)'
    )
    return dict(bases=f'    {relative!r},', text=text, resize=resize)


def det_tokens(boxes: Boxes) -> int:
    """Detection tokens: a quarter more than the fullest image has boxes, from 20 to 100."""
    most = int(max(map(len, _by_image(boxes)), default=0))
    return min(max(math.ceil(most * 1.25 / 10) * 10, 20), 100)


def _by_image(boxes: Boxes) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for number, row in enumerate(boxes.rows.tolist()):
        found.setdefault(row, []).append(number)
    return list(found.values())
