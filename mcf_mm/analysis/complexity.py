"""Parameters and multiply-accumulate operations (MACs) of a network, by part.

MACs come from torch's ``FlopCounterMode`` and include the products inside attention, which
MMEngine's own counter leaves out (it reads DeiT-S as 4.25 G where 4.60 G are computed).
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import nn

from mcf_mm.pruning import Sizes, find_ffns, find_units, resize
from mcf_mm.pruning.flop_counter import flop_counter

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
    the way (a two-stage detector at its proposals) runs for real instead.

    Args:
        model: mmpretrain classifier, mmdet detector or any network that takes images ``(1, C, H,
            W)``. It stays as it is.
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
            sum(_num_parameters(model.get_submodule(name)) for name in names),
            sum(macs[name] for name in names),
        )
        for part, names in modules.items()
    }
    params = _num_parameters(model)
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
    images = torch.zeros(1, num_channels(model), *shape, device=device)
    counter = flop_counter()
    macs = Counter()
    sparse = {name: module for name, module in model.named_modules() if _zeros(module)}

    # The counter's own account by module is not used: in torch 2.1 it unpacks the tuples that
    # modules return.
    def total() -> int:
        return counter.get_total_flops() // 2

    def count(name: str) -> None:
        module = model.get_submodule(name)
        forward = module.forward

        def counted(*args: Any, **kwargs: Any) -> Any:
            before = total()
            try:
                return forward(*args, **kwargs)
            finally:
                macs[name] += total() - before

        # No hooks: mmdet calls the forward of its heads by name, which passes them by.
        module.forward = counted

    for name in (*paths, *sparse):
        count(name)
    # With gradients: without them nn.MultiheadAttention takes one fused operator for which the
    # counter has no formula.
    with torch.enable_grad(), counter:
        # Not eval(), which returns None for mmpretrain's backbones.
        model.train(False)
        model(images, **tensor_arguments(model, shape))
    macs[''] = total()
    for name, module in sparse.items():
        free = round(macs[name] * _zeros(module) / module.weight.numel())
        for around in ('', *(path for path in paths if f'{name}.'.startswith(f'{path}.'))):
            macs[around] -= free
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


def _num_parameters(module: nn.Module) -> int:
    parameters = {id(p): p.numel() for p in module.parameters()}
    return sum(parameters.values()) - sum(_zeros(part) for part in module.modules())


def _zeros(module: nn.Module) -> int:
    """Weights of a masked layer that are not counted."""
    return getattr(module, 'free_zeros', 0)


def masked(model: nn.Module, sizes: Sizes) -> nn.Module:
    """A copy of ``model`` as CRS leaves it, each row with its own mask; its weights mean nothing.

    Parameters that a mask sets to zero, and the products with them, are not counted: row 3 of
    table 3 in the MCF paper.

    Args:
        model: Any network with FFNs. It stays as it is.
        sizes: Inputs and hidden units that each row keeps, by FFN.
    """
    model = copy.deepcopy(model)
    for ffn in find_ffns(model):
        own = {**ffn.sizes, **sizes.get(ffn.name, {})}
        for linear, kept in ((ffn.fc1, own['inputs']), (ffn.fc2, own['hidden'])):
            linear.free_zeros = linear.out_features * (linear.in_features - kept)
    return model


def num_channels(model: nn.Module) -> int:
    """Channels of the images that a network takes: those of its first convolution, or 3."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def resized(model: nn.Module, sizes: Sizes) -> nn.Module:
    """A copy of ``model`` with the sizes that pruning leaves; its weights mean nothing.

    Args:
        model: Any network. It stays as it is.
        sizes: How many elements are kept, ``{unit: {kind: n}}``.
    """
    model = copy.deepcopy(model)
    for unit in find_units(model).every:
        resize(unit, sizes.get(unit.name, {}))
    return model


def mean_complexity(
    model: nn.Module,
    shapes: Sequence[tuple[int, int]],
    count: Callable[[nn.Module, tuple[int, int]], Complexity] = count_complexity,
) -> Complexity:
    """Counts what an image costs in the mean; MACs are rounded to whole ones.

    Args:
        model: See :func:`count_complexity`.
        shapes: Height and width of each image in pixels. Equal ones are counted once.
        count: Counts one. Defaults to :func:`count_complexity`.

    Raises:
        ValueError: There is no shape.
    """
    if not shapes:
        raise ValueError('there is no image to count')
    counts = [(count(model, shape), times) for shape, times in Counter(shapes).items()]

    def mean(macs: Callable[[Complexity], int]) -> int:
        return round(sum(macs(count) * times for count, times in counts) / len(shapes))

    whole = counts[0][0]
    parts = {
        part: Cost(cost.params, mean(lambda count, part=part: count.parts[part].macs))
        for part, cost in whole.parts.items()
    }
    return Complexity(whole.params, mean(lambda count: count.macs), parts)
