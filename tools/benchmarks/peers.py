"""Other tools on the networks and images of these benchmarks."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mcf_mm.pruning import find_units


def torch_pruning(
    model: nn.Module,
    batches: Iterable[Any],
    importance: str,
    shape: tuple[int, int],
    ratio: float = 0.52,
) -> None:
    """Prune hidden units of a classifier with torch-pruning, in place.

    Args:
        model: Classifier of mmpretrain.
        batches: Its calibration images, with labels.
        importance: ``'Taylor'``, each layer alike, or ``'Hessian'``, over all layers, from the
            gradients of each image.
        shape: Height and width of an image.
        ratio: Share to drop. Defaults to 0.52.
    """
    import torch_pruning as tp

    hessian = importance == 'Hessian'
    scores = {'Taylor': tp.importance.GroupTaylorImportance}
    scores['Hessian'] = tp.importance.GroupHessianImportance
    score = scores[importance]()
    first = {unit.fc1 for unit in find_units(model).ffns}
    linear = {layer for layer in model.modules() if isinstance(layer, nn.Linear)}
    model.train(False)
    pruner = tp.pruner.BasePruner(
        model,
        torch.zeros(1, 3, *shape),
        score,
        global_pruning=hessian,
        pruning_ratio=ratio,
        ignored_layers=list(linear - first),
        root_module_types=[nn.Linear],
    )
    model.zero_grad()
    if hessian:
        score.zero_grad()
    for batch in batches:
        batch = model.data_preprocessor(batch, False)
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
        size = 1 if hessian else len(labels)
        for x, y in zip(batch['inputs'].split(size), labels.split(size), strict=True):
            if hessian:
                model.zero_grad()
            F.cross_entropy(model(x), y, reduction='sum').backward()
            if hessian:
                score.accumulate_grad(model)
    pruner.step()
    model.zero_grad()
