"""The model card beside a slim checkpoint, with the fields of Hugging Face's cards."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from mmengine.config import Config
from torch import nn

from mcf_mm.compat.versions import environment
from mcf_mm.files import whole_file
from mcf_mm.pruning import Units
from mcf_mm.registry import split_type
from mcf_mm.weights.card_usage import data_folders, ways_to_load
from mcf_mm.weights.files import read_header
from mcf_mm.weights.portable import command_line

#: Released weights whose name has a hash in it, so that it says which file it is, and their place
#: on Hugging Face's hub. All are under the licence below.
RELEASED = {
    'deit_tiny_patch16_224-a1311bcf.pth': 'facebook/deit-tiny-patch16-224',
    'deit_small_patch16_224-cd65a155.pth': 'facebook/deit-small-patch16-224',
    'deit_base_patch16_224-b5f2ef4d.pth': 'facebook/deit-base-patch16-224',
    'deit_tiny_distilled_patch16_224-b40b3cf7.pth': 'facebook/deit-tiny-distilled-patch16-224',
    'deit_small_distilled_patch16_224-649709d9.pth': 'facebook/deit-small-distilled-patch16-224',
    'deit_base_distilled_patch16_224-df68dfff.pth': 'facebook/deit-base-distilled-patch16-224',
}
RELEASED_LICENSE = 'apache-2.0'
#: Data sets that a class of mmpretrain stands for, and their place on the hub.
DATASETS_ON_HUB = {
    'ImageNet': 'ILSVRC/imagenet-1k',
    'CIFAR10': 'uoft-cs/cifar10',
    'CIFAR100': 'uoft-cs/cifar100',
}
TASKS = {'mmpretrain': 'image-classification', 'mmdet': 'object-detection'}
#: The last step that makes a network small; the others are ablations.
WHOLE = 'x_transformation'
#: How many classes a card names.
NAMED = 20
#: What a header holds besides settings.
_NO_SETTINGS = ('sizes', 'version', 'indices_sha256', 'dataset_meta', 'grids', 'origin')


def write_card(
    checkpoint: str | Path,
    model: nn.Module,
    units: Units,
    cfg: Config,
    costs: Sequence[Any] | None = None,
    measured: Mapping[str, float] | None = None,
    origin: str | None = None,
    shape: tuple[int, int] | None = None,
) -> Path:
    """Write the card of a slim checkpoint beside it.

    Args:
        checkpoint: ``slim.safetensors``, with a header; its config is beside it.
        model: The pruned network.
        units: Its units.
        cfg: The config that is beside the checkpoint.
        costs: What the dense and the pruned network cost, each with ``params`` and ``macs``.
            Defaults to None: the card says that MACs were not counted.
        measured: Figures of its last validation, by name. Defaults to None: not measured.
        origin: Weights that pruning started from, a file. Defaults to None: not known.
        shape: Height and width in pixels of the images that it evaluates, for a detector of the
            largest one. Defaults to None: the card says nothing of it.

    Returns:
        Path of the card, ``slim.md``.
    """
    checkpoint = Path(checkpoint)
    header = read_header(checkpoint)
    base = released_base(origin)
    ways, not_ways = ways_to_load(model, units, cfg, checkpoint)
    before, after = costs or (None, None)
    params = sum(parameter.numel() for parameter in model.parameters())
    macs = 'not counted'
    templates = Environment(
        loader=PackageLoader('mcf_mm.weights', ''),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; what comes from files stands in code
    )
    text = templates.get_template('card.md.j2').render(
        front_matter=yaml.safe_dump(
            front_matter(model, cfg, base), sort_keys=False, allow_unicode=True
        ),
        title=plain(title_of(cfg, checkpoint)),
        what=_what(model, cfg, header, origin, base),
        before={
            'params': f'{before.params:,}' if before else 'not known',
            'macs': f'{before.macs:,}' if before else macs,
        },
        after={'params': f'{params:,}', 'macs': f'{after.macs:,}' if after else macs},
        counted=costs is not None,
        not_counted='MACs: `python tools/complexity.py` counts them.',
        facts=[(plain(name), plain(value)) for name, value in settings_of(header)],
        command=plain(command_line()),
        weights=checkpoint.name,
        config=checkpoint.with_suffix('.py').name,
        takes=_takes(header, shape),
        ways=ways,
        not_ways=not_ways,
        data=[plain(path) for path in data_folders(cfg)],
        limits=_limits(measured, 'trained' in header),
        versions=list(environment().items()),
    )
    path = checkpoint.with_suffix('.md')
    with whole_file(path) as partial:
        partial.write_text(text, encoding='utf-8')
    return path


def front_matter(model: nn.Module, cfg: Config, base: str | None) -> dict[str, Any]:
    """The fields of Hugging Face's card; what is not known is left out."""
    scope = cfg.get('default_scope')
    fields: dict[str, Any] = {}
    if base is not None:
        fields['license'] = RELEASED_LICENSE
    fields['library_name'] = scope if scope in TASKS else 'mcf_mm'
    if task := TASKS.get(scope):
        fields['pipeline_tag'] = task
    kinds = [type(model).__name__.lower(), 'vision-transformer', 'pruning', 'mcf_mm', 'openmmlab']
    fields['tags'] = kinds
    if base is not None:
        fields['base_model'] = base
    if datasets := known_datasets(cfg):
        fields['datasets'] = datasets
    return fields


def known_datasets(cfg: Config) -> list[str]:
    """Data sets of the training loader that the hub knows under a name of its own."""
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    scope, kind = split_type(dataset.get('type', ''))
    if (scope or cfg.get('default_scope')) != 'mmpretrain' or kind not in DATASETS_ON_HUB:
        return []
    return [DATASETS_ON_HUB[kind]]


def released_base(origin: str | None) -> str | None:
    """Where the hub has the weights of a file, by its name or what its header says of it."""
    if origin is None:
        return None
    names = [Path(origin).name]
    if Path(origin).suffix == '.safetensors' and Path(origin).is_file():
        header = read_header(origin)
        if 'sizes' not in header:  # it was pruned before: then it is a base of its own
            names.append(str(header.get('origin')))
    return next((RELEASED[name] for name in names if name in RELEASED), None)


def settings_of(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings that a header tells of, in words; those that are None are left out."""
    return [
        (name.replace('_', ' '), in_words(value))
        for name, value in header.items()
        if name not in _NO_SETTINGS and value is not None
    ]


def in_words(value: Any) -> str:
    """A setting to be read: ``'obs, metric=fisher'`` of ``dict(type='obs', metric='fisher')``."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        parts = [str(value['type'])] if 'type' in value else []
        parts += [
            f'{key}=({in_words(part)})' if isinstance(part, Mapping) else f'{key}={in_words(part)}'
            for key, part in value.items()
            if key != 'type'
        ]
        return ', '.join(parts) or 'none'
    if isinstance(value, list | tuple):
        return ', '.join(map(in_words, value)) or 'none'
    return json.dumps(value)


def title_of(cfg: Config, checkpoint: Path) -> str:
    """What to call a network: the name of the config it was made of, or of its folder."""
    folder = checkpoint.absolute().parent.name
    name = Path(cfg.filename).stem if cfg.filename else folder
    name = folder if name == checkpoint.stem else name  # 'slim' says nothing
    return f'{name}, pruned'


def plain(text: Any) -> str:
    """Text that stays within its line and its code span."""
    return ' '.join(str(text).replace('`', "'").split())


def _takes(header: Mapping[str, Any], shape: tuple[int, int] | None) -> list[str]:
    """Lines on what goes into a network and what comes out."""
    lines = [] if shape is None else [f'Images: {shape[0]} x {shape[1]} pixels.']
    if classes := (header.get('dataset_meta') or {}).get('classes'):
        names = ', '.join(f'`{plain(name)}`' for name in classes[:NAMED])
        more = len(classes) - NAMED
        names += f' and {more} more (in the header, under `dataset_meta`)' if more > 0 else ''
        lines.append(f'Classes ({len(classes)}): {names}.')
    return lines


def _what(
    model: nn.Module, cfg: Config, header: Mapping, origin: str | None, base: str | None
) -> str:
    backbone = '.'.join(filter(None, split_type((cfg.model.get('backbone') or {}).get('type', ''))))
    what = f'A pruned `{type(model).__name__}`'
    what += f' with the backbone `{plain(backbone)}`' if backbone else ''
    what += ', written by mcf_mm: '
    if header.get('last_step') in (None, WHOLE):  # None: of a method without such steps
        what += 'an ordinary dense network with fewer elements, without masks.'
    else:
        what += 'of full size, with zeros in place of what would be dropped (an ablation).'
    trained = 'trained' in header
    pruned = 'What is pruned of it came from' if trained else 'It was pruned from'
    since = ', and it was trained since' if trained else ''
    if base is not None:
        return f'{what} {pruned} `{base}` (`{plain(Path(origin).name)}`){since}.'
    if origin is not None:
        return f'{what} {pruned} `{plain(Path(origin).name)}`{since}.'
    return f'{what} Which weights it started from is not known.'


def _limits(measured: Mapping[str, float] | None, trained: bool) -> list[str]:
    if measured:
        figures = ', '.join(f'{plain(name)} {value:.4g}' for name, value in measured.items())
        accuracy = f'Accuracy by the last validation of the run that made it: {figures}.'
    else:
        accuracy = 'Accuracy not measured.'
    return [
        accuracy,
        'Speed not measured: fewer MACs are not as much faster on every machine; '
        '`tools/throughput.py` times it.',
        'It has the biases of the network that it was pruned from'
        + (', and of what it was trained on since.' if trained else ', and its classes.'),
    ]
