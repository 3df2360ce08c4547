"""torch-pruning on the networks and images of a comparison (the extra ``peers``)."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcf_mm.analysis.complexity import count_complexity, num_channels
from mcf_mm.pruning import Costs, find_classifier, find_units
from mcf_mm.pruning.budget import parse_budget, within_budget

ADVICE = "torch-pruning is not installed: pip install -e '.[peers]'"
IMPORTANCES = ('magnitude', 'Taylor', 'Hessian')
#: Halvings of the ratio that meets a budget: to a thousandth.
HALVINGS = 10


def is_installed() -> bool:
    """Whether torch-pruning can be imported."""
    return find_spec('torch_pruning') is not None


def torch_pruning(
    model: nn.Module,
    batches: Iterable[Any],
    importance: str,
    shape: tuple[int, int],
    ratio: float = 0.52,
    everything: bool = False,
) -> None:
    """Prune a classifier with torch-pruning, in place.

    Args:
        model: Classifier of mmpretrain.
        batches: Its calibration images, with labels.
        importance: ``'magnitude'`` or ``'Taylor'``, each layer alike, or ``'Hessian'`` from the
            gradients of each image, over all layers where hidden units alone are pruned.
        shape: Height and width of an image.
        ratio: Share to drop. Defaults to 0.52.
        everything: Whether it prunes what it finds, the width of the network and the heads' too,
            each layer alike: its default. Defaults to False, hidden units alone.
    """
    with torch_pruned(model, batches, importance, shape, everything) as cut:
        cut(ratio)


@contextmanager
def torch_pruned(
    model: nn.Module,
    batches: Iterable[Any],
    importance: str,
    shape: tuple[int, int],
    everything: bool = False,
) -> Iterator[Callable[[float], None]]:
    """Gather what :func:`torch_pruning` goes by, and yield the function that cuts by a ratio."""
    score = _scores(model, batches, importance)
    yield partial(_cut, model, score, importance, shape, everything)
    model.zero_grad()


def ratio_for(
    model: nn.Module,
    budget: str,
    costs: Costs,
    shape: tuple[int, int],
    importance: str,
    everything: bool = False,
) -> float:
    """The ratio at which torch-pruning meets a budget; the network stays as it is.

    Where each layer drops the same share it does not depend on the scores: hidden units as
    :func:`~mcf_mm.pruning.budget.within_budget` says, everything by trial cuts of copies. Over all
    layers (``'Hessian'``) as many hidden units go, which cost the same where layers are alike.

    Raises:
        ValueError: No ratio meets the budget.
    """
    units = find_units(model)
    if not everything:
        full = {unit.name: unit.sizes['hidden'] for unit in units.ffns}
        sizes = within_budget(units, costs, budget, ['hidden'])
        # Half an element more, because torch-pruning rounds down what stays.
        if importance == 'Hessian':
            kept = sum(own['hidden'] for own in sizes.values())
            return 1 - (kept + 0.5) / sum(full[name] for name in sizes)
        return 1 - min((own['hidden'] + 0.5) / full[name] for name, own in sizes.items())
    what, wanted = parse_budget(budget, costs)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle, trial = (low + high) / 2, copy.deepcopy(model)
        _cut(trial, _classes()['magnitude'](), 'magnitude', shape, True, middle)
        if getattr(count_complexity(trial, shape), what) > wanted:
            low = middle
        else:
            high = middle
    return high


def why_not_everything(model: nn.Module) -> str | None:
    """Why torch-pruning's default cannot be taken over a network; None where it can."""
    others = {
        type(unit.module).__name__
        for unit in find_units(model).attentions
        if not _is_plain(unit.module)
    }
    if others:
        return (
            "torch-pruning over everything needs attentions as mmpretrain's MultiheadAttention, "
            f'the network has {", ".join(sorted(others))}'
        )
    return None


def _is_plain(module: nn.Module) -> bool:
    names = ('qkv', 'num_heads', 'head_dims', 'embed_dims', 'scaled_dot_product_attention')
    return all(hasattr(module, name) for name in names)


def _classes() -> dict[str, Any]:
    import torch_pruning as tp

    names = dict(magnitude='GroupMagnitude', Taylor='GroupTaylor', Hessian='GroupHessian')
    return {key: getattr(tp.importance, f'{name}Importance') for key, name in names.items()}


def _scores(model: nn.Module, batches: Iterable[Any], importance: str) -> Any:
    """An importance of torch-pruning, and what it needs of the gradients."""
    score, hessian = _classes()[importance](), importance == 'Hessian'
    model.train(False)
    if importance == 'magnitude':
        return score
    model.zero_grad()
    if hessian:
        score.zero_grad()
    for batch in batches:
        batch = model.data_preprocessor(batch, False)
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
        size = 1 if hessian else len(labels)
        labels = labels.to(batch['inputs'].device)
        for x, y in zip(batch['inputs'].split(size), labels.split(size), strict=True):
            if hessian:
                model.zero_grad()
            F.cross_entropy(model(x, mode='tensor'), y, reduction='sum').backward()
            if hessian:
                score.accumulate_grad(model)
    return score


def _cut(
    model: nn.Module,
    score: Any,
    importance: str,
    shape: tuple[int, int],
    everything: bool,
    ratio: float,
) -> None:
    import torch_pruning as tp

    model.train(False)
    image = torch.zeros(1, num_channels(model), *shape, device=next(model.parameters()).device)
    if not everything:
        first = {unit.fc1 for unit in find_units(model).ffns}
        linear = {layer for layer in model.modules() if isinstance(layer, nn.Linear)}
        tp.pruner.BasePruner(
            model,
            image,
            score,
            global_pruning=importance == 'Hessian',
            pruning_ratio=ratio,
            ignored_layers=list(linear - first),
            root_module_types=[nn.Linear],
        ).step()
        return
    attentions = [unit.module for unit in find_units(model).attentions]
    for attention in attentions:
        # torch-pruning follows `unbind` from q, k and v to the layer that makes them.
        attention.forward = MethodType(_unbound, attention)
    pruner = tp.pruner.BasePruner(
        model,
        image,
        score,
        pruning_ratio=ratio,
        ignored_layers=[getattr(model, 'head', find_classifier(model))],
        num_heads={attention.qkv: attention.num_heads for attention in attentions},
    )
    pruner.step()
    for attention in attentions:
        del attention.forward
        scale = attention.head_dims**-0.5  # that of the dense network, as timm keeps it
        attention.head_dims = attention.qkv.out_features // (3 * attention.num_heads)
        attention.embed_dims = attention.num_heads * attention.head_dims
        attention.scaled_dot_product_attention = partial(
            F.scaled_dot_product_attention, scale=scale
        )


def _unbound(attention: nn.Module, x: Tensor) -> Tensor:
    """mmpretrain's attention, written as torch-pruning can follow it."""
    batch, tokens, _ = x.shape
    qkv = attention.qkv(x).reshape(batch, tokens, 3, attention.num_heads, attention.head_dims)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    x = attention.scaled_dot_product_attention(q, k, v)
    x = x.transpose(1, 2).reshape(batch, tokens, -1)
    return attention.out_drop(attention.gamma1(attention.proj_drop(attention.proj(x))))
