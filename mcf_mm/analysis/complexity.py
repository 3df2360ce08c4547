"""Parameters and multiply-accumulate operations (MACs) of a network, by part.

MACs come from torch's ``FlopCounterMode`` and include the products inside attention, which
MMEngine's own counter leaves out (it reads DeiT-S as 4.25 G where 4.60 G are computed).
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mcf_mm.models.widths import check_widths
from mcf_mm.pruning.slim import RowSparseLinear
from mcf_mm.pruning.structure import kept_size
from mcf_mm.pruning.surgery import resize_ffn
from mcf_mm.pruning.targets import find_ffns

PARTS = ('attention', 'ffn', 'patch embedding', 'head', 'other')


@dataclass(frozen=True)
class Cost:
    """What something costs.

    Attributes:
        params: Number of parameters; index buffers are none.
        macs: Multiply-accumulate operations for one image.
    """

    params: int
    macs: int


@dataclass(frozen=True)
class Complexity(Cost):
    """What a network costs.

    Attributes:
        parts: :class:`Cost` of each of :data:`PARTS`. They add up to the whole; normalisation,
            position embeddings and everything else not named are in ``'other'``.
    """

    parts: dict[str, Cost]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ``{"params": int, "macs": int, "parts": {name: {...}}}``."""
        return asdict(self)


def count_complexity(model: nn.Module, shape: tuple[int, int]) -> Complexity:
    """Counts what one image costs.

    Nothing is computed: the forward pass runs on shapes alone. A network that looks at values on
    the way (a two-stage detector at its proposals) runs for real instead. Operations of a module
    whose ``forward`` is called by name, as DETR calls its head, count as ``'other'``.

    Args:
        model: mmpretrain classifier, mmdet detector or any network that takes ``(1, 3, H, W)``.
            It stays as it is.
        shape: Height and width of the image in pixels.
    """
    modules = _modules_by_part(model)
    paths = [name for names in modules.values() for name in names]
    try:
        macs = _count_macs(copy.deepcopy(model).to('meta'), shape, paths)
    except RuntimeError:
        macs = _count_macs(copy.deepcopy(model), shape, paths)
    parts = {
        part: Cost(
            _num_parameters(model.get_submodule(name) for name in names),
            sum(macs[name] for name in names),
        )
        for part, names in modules.items()
    }
    params = _num_parameters([model])
    parts['other'] = Cost(
        params - sum(cost.params for cost in parts.values()),
        macs[''] - sum(cost.macs for cost in parts.values()),
    )
    return Complexity(params, macs[''], parts)


def _count_macs(
    model: nn.Module, shape: tuple[int, int], paths: Iterable[str]
) -> Mapping[str, int]:
    """MACs of the modules at ``paths``, and of the whole network under the name ``''``."""
    device = next(model.parameters()).device
    images = torch.zeros(1, 3, *shape, device=device)
    counter = FlopCounterMode(display=False)
    macs = Counter()
    # They multiply with their zeros, which layers of their own would not.
    sparse = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, RowSparseLinear)
    }

    # The counter's own account by module is not used: in torch 2.1 it unpacks the tuples that
    # modules return.
    def total() -> int:
        return counter.get_total_flops() // 2

    for name in (*paths, *sparse):
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda *_, name=name: macs.subtract({name: total()}))
        module.register_forward_hook(lambda *_, name=name: macs.update({name: total()}))
    # With gradients: without them nn.MultiheadAttention takes one fused operator for which the
    # counter has no formula, and mcf_mm's own layers compute a few columns more than they need.
    with torch.enable_grad(), counter:
        # Not eval(), which returns None for mmpretrain's backbones.
        model.train(False)
        model(images, **tensor_arguments(model, shape))
    macs[''] = total()
    for name, module in sparse.items():
        zeros = round(macs[name] * (1 - module.density))
        for around in ('', *(path for path in paths if f'{name}.'.startswith(f'{path}.'))):
            macs[around] -= zeros
    return macs


def tensor_arguments(
    model: nn.Module, shape: tuple[int, int], batch_size: int = 1
) -> dict[str, Any]:
    """What ``model(images, ...)`` needs beside the images to run without post-processing.

    Args:
        model: mmpretrain classifier, mmdet detector, or any other network: that needs nothing.
        shape: Height and width of the images in pixels.
        batch_size: Number of images. Defaults to 1.
    """
    if not hasattr(model, 'data_preprocessor'):
        return {}
    sample = BaseDataElement(
        metainfo=dict(
            img_shape=shape,
            ori_shape=shape,
            pad_shape=shape,
            batch_input_shape=shape,
            scale_factor=(1.0, 1.0),
        )
    )
    return dict(data_samples=[sample] * batch_size, mode='tensor')


def _modules_by_part(model: nn.Module) -> dict[str, list[str]]:
    """Paths of the modules of each part but ``'other'``, outermost modules only."""
    ffns = {ffn.name for ffn in find_ffns(model)}
    parts = {part: [] for part in PARTS[:-1]}
    taken: tuple[str, ...] = ()
    for name, module in model.named_modules():
        part = None if name.startswith(taken) else _part(name, module, ffns)
        if part:
            parts[part].append(name)
            taken += (f'{name}.',)
    return parts


def _part(name: str, module: nn.Module, ffns: set[str]) -> str | None:
    kind = type(module).__name__
    if name in ffns:
        return 'ffn'
    if 'Attention' in kind or kind.endswith('MSA'):
        return 'attention'
    if kind == 'PatchEmbed':
        return 'patch embedding'
    # The children of the network itself: head, bbox_head, rpn_head, roi_head, ...
    return 'head' if '.' not in name and name.endswith('head') else None


def _num_parameters(modules: Iterable[nn.Module]) -> int:
    parameters = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(parameters.values())


def shrink_by_ratio(
    model: nn.Module,
    input_ratio: float,
    hidden_ratio: float,
    multiple: int = 1,
    last_step: str = 'x_transformation',
) -> nn.Module:
    """A copy of ``model`` whose FFNs have the sizes that pruning leaves; the weights mean nothing.

    Args:
        model: Any network with FFNs. It stays as it is.
        input_ratio: Share of the inputs of each FFN that goes.
        hidden_ratio: Share of the hidden units that goes.
        multiple: See :func:`mcf_mm.pruning.kept_size`. Defaults to 1.
        last_step: See :func:`mcf_mm.pruning.prune`. Defaults to ``'x_transformation'``.

    Raises:
        ValueError: A ratio is not in [0, 1), or there is no FFN.
    """
    model = copy.deepcopy(model)
    ffns = find_ffns(model)
    if not ffns:
        raise ValueError(f'{type(model).__name__} has no FFN that could be pruned')
    if last_step == 'fis':
        return model  # zeros cost as much as other numbers
    for ffn in ffns:
        resize_ffn(
            ffn,
            kept_size(ffn.sizes[0], input_ratio, multiple),
            kept_size(ffn.sizes[1], hidden_ratio, multiple),
            'row' if last_step == 'crs' else 'layer',
        )
    return model


def build_model(config: Config) -> nn.Module:
    """Builds the network of a config of mmpretrain or mmdet, without loading weights.

    Raises:
        ValueError: See :func:`mcf_mm.models.widths.check_widths`.
    """
    # For this one call only: a notebook may go on with a config of another library.
    model = copy.deepcopy(config.model)
    # As the Runner does: mmpretrain's bases have the preprocessor beside the model.
    if config.get('data_preprocessor'):
        model.setdefault('data_preprocessor', config.data_preprocessor)
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        network = MODELS.build(model)
    check_widths(network, config.model)
    return network


def pruning_arguments(config: Config) -> dict[str, Any] | None:
    """What :func:`shrink_by_ratio` takes, from the config's pruning hook; None without a hook.

    Raises:
        ValueError: An argument of the hook is out of range.
    """
    for hook in config.get('custom_hooks') or []:
        if hook['type'] in ('mcf_mm.MCFPruningHook', 'MCFPruningHook'):
            # Built, because the class alone knows its defaults and checks its arguments.
            built = HOOKS.build(dict(hook, type='mcf_mm.MCFPruningHook'))
            names = ('input_ratio', 'hidden_ratio', 'multiple', 'last_step')
            return {name: getattr(built, name) for name in names}
    return None


def mean_complexity(model: nn.Module, shapes: Sequence[tuple[int, int]]) -> Complexity:
    """Counts what an image costs in the mean; MACs are rounded to whole ones.

    Args:
        model: See :func:`count_complexity`.
        shapes: Height and width of each image in pixels. Equal ones are counted once.

    Raises:
        ValueError: There is no shape.
    """
    if not shapes:
        raise ValueError('there is no image to count')
    counts = [(count_complexity(model, shape), times) for shape, times in Counter(shapes).items()]

    def mean(macs: Callable[[Complexity], int]) -> int:
        return round(sum(macs(count) * times for count, times in counts) / len(shapes))

    whole = counts[0][0]
    parts = {
        part: Cost(cost.params, mean(lambda count, part=part: count.parts[part].macs))
        for part, cost in whole.parts.items()
    }
    return Complexity(whole.params, mean(lambda count: count.macs), parts)


def dataset_shapes(config: Config, num_images: int) -> list[tuple[int, int]]:
    """Height and width of the first images that the config evaluates, as the network gets them.

    First by their number in the annotations: YOLOS and DETR publish the mean MACs of the first 100
    images of COCO's validation set in that order. Each is a batch of its own, padded as the
    config's preprocessor pads.

    Args:
        config: A config of mmdet or mmpretrain with a ``test_dataloader`` or ``val_dataloader``.
        num_images: How many images.

    Raises:
        ValueError: The config has no such loader, or its dataset has fewer images.
    """
    loader = config.get('test_dataloader') or config.get('val_dataloader')
    if not loader:
        raise ValueError('the config has neither test_dataloader nor val_dataloader')
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        dataset = DATASETS.build(copy.deepcopy(loader.dataset))
    if not 0 < num_images <= len(dataset):
        raise ValueError(
            f'{num_images} images are asked for, the dataset that the config evaluates has '
            f'{len(dataset)}'
        )
    numbers = [dataset.get_data_info(i).get('img_id', i) for i in range(len(dataset))]
    first = sorted(range(len(dataset)), key=numbers.__getitem__)[:num_images]
    preprocessor = config.model.get('data_preprocessor') or {}
    divisor = preprocessor.get('pad_size_divisor', 1)
    console = Console(stderr=True)
    return [
        tuple(math.ceil(side / divisor) * divisor for side in dataset[i]['inputs'].shape[-2:])
        for i in track(first, 'reading images', console=console, transient=True)
    ]


def input_shape(config: Config) -> tuple[int, int]:
    """Height and width of the images that the config evaluates.

    The last crop or resize of the test (or validation) pipeline, or the backbone's ``img_size``
    where there is no such step. A detector that keeps the aspect ratio is counted at the largest
    landscape image it can meet (800 x 1333 for the usual scale; images of COCO are smaller in the
    mean), rounded up to what the batch is padded to.

    Raises:
        ValueError: The config has neither.
    """
    loader = config.get('test_dataloader') or config.get('val_dataloader') or {}
    dataset = loader.get('dataset', {})
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    size = config.model.get('backbone', {}).get('img_size')
    for step in dataset.get('pipeline', []):
        kind = step['type'].rpartition('.')[2]
        if kind == 'CenterCrop':
            size = step['crop_size']
        elif kind.endswith('Resize') and step.get('scale'):
            scale = step['scale']
            size = scale if isinstance(scale, int) else scale[::-1]
            # Every other resize with a pair of numbers takes it as a limit, whatever the order.
            if not isinstance(scale, int) and step.get('keep_ratio', kind != 'Resize'):
                size = sorted(scale)
    if size is None:
        raise ValueError(
            'the config says no image size (no CenterCrop or Resize in the pipeline of '
            'test_dataloader, no img_size of the backbone); set one, or give tools/complexity.py '
            '--shape HEIGHT WIDTH'
        )
    preprocessor = config.model.get('data_preprocessor') or {}
    divisor = preprocessor.get('pad_size_divisor', 1)
    height, width = (size, size) if isinstance(size, int) else size
    return math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor
