"""Runs images through a network once and keeps what the criteria need, in bounded memory."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from mcf_mm.pruning.dependence import Dependence, DependenceObserver
from mcf_mm.pruning.find import find_classifier
from mcf_mm.pruning.moments import MomentObserver, Moments
from mcf_mm.pruning.observers import (
    ActivationObserver,
    Activations,
    AttentionObserver,
    CalibrationError,
    GradientObserver,
    Observer,
)
from mcf_mm.pruning.pairs import PairObserver, Pairs
from mcf_mm.pruning.streams import Rows, Tokens, gather
from mcf_mm.pruning.unit import Unit


class Seen:
    """What calibration found.

    Attributes:
        results: What each observer found, by its key.
        output: Input of the classifier for each image, ``(S, C)``; None without classifier.
        classes: Predicted class of each image, ``(S,)``; None without classifier.
        images: How many images were seen; None where that is not known.

    Example:
        >>> seen['blocks.0.mlp', 'hidden'].rms  # (H,)
    """

    def __init__(
        self,
        results: dict[tuple, Any],
        output: Tensor | None = None,
        classes: Tensor | None = None,
        images: int | None = None,
    ):
        self.results, self.images = results, images
        self.output, self.classes = output, classes

    def _get(self, observer: type[Observer], unit: Unit | str, kind: str) -> Any:
        name = unit if isinstance(unit, str) else unit.name
        for place in (kind, 'v' if kind == 'heads' else kind):
            if (observer.__name__, name, place) in self.results:
                return self.results[observer.__name__, name, place]
        raise KeyError(
            f'calibration has not gathered {observer.__name__} of {kind!r} of {name}: the '
            'criterion must ask for it in its observers'
        )

    def __getitem__(self, place: tuple[Unit | str, str]) -> Activations:
        """Activations of a unit at a kind; of ``heads`` those of all its value channels."""
        return self._get(ActivationObserver, *place)

    def __contains__(self, place: tuple[Unit | str, str]) -> bool:
        return self.has(ActivationObserver, *place)

    def moments(self, unit: Unit | str, kind: str) -> Moments:
        """Second moments of what the layer reads that reads ``kind``, and its metric."""
        return self._get(MomentObserver, unit, kind)

    def pairs(self, unit: Unit | str) -> Pairs:
        """How much each direction of queries and keys matters."""
        return self._get(PairObserver, unit, 'qk')

    def has(self, observer: type[Observer], unit: Unit | str, kind: str) -> bool:
        """Whether there is a result of an observer at a place."""
        try:
            return self._get(observer, unit, kind) is not None
        except KeyError:
            return False

    def replaced(self, observer: type[Observer], unit: str, kind: str, result: Any) -> 'Seen':
        """The same with another result of one observer."""
        results = {**self.results, (observer.__name__, unit, kind): result}
        return Seen(results, self.output, self.classes, self.images)

    def attention(self, unit: Unit | str) -> Tensor:
        """Attention that each token gets, ``(heads, N)``."""
        return self._get(AttentionObserver, unit, 'qk')

    def gradient(self, unit: Unit | str, kind: str) -> Tensor:
        """Fisher score of each element, ``(count,)``."""
        return self._get(GradientObserver, unit, kind)

    def dependence(self, unit: Unit | str, kind: str) -> Dependence:
        """How much the prediction depends on heads or on hidden units."""
        return self._get(DependenceObserver, unit, kind)


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    observers: Iterable[Observer],
    forward: Callable[[Any], Any] | None = None,
    image_names: Callable[[Any], Sequence[str]] | None = None,
    shared: bool = False,
    loss: Callable[[Any, Any], Tensor] | None = None,
    labels: str = 'predicted',
) -> Seen:
    """Stream images through ``model`` in evaluation mode, without gradients if nobody needs them.

    Memory is what the observers keep, whatever the image size.

    Args:
        model: The network; its modes are restored.
        batches: Batches of images, each a tensor ``(B, 3, H, W)`` or what ``forward`` takes.
        observers: What to gather; equal ones are joined.
        forward: Runs the network on one batch. Defaults to ``model`` itself.
        image_names: Names of the images in a batch, for error messages. Defaults to their
            running numbers.
        shared: The processes of ``torch.distributed`` share the work: ``batches`` is every n-th
            of all batches, n being the number of processes, from the one with the number of this
            rank on. Every process gets the result of one process over all batches, equal to the
            last bit except for the covariances (a sum of doubles in another order). Defaults to
            False.
        loss: For observers of gradients: the sum over images of a loss, from the batch and what
            ``forward`` gave. Defaults to the cross-entropy of the class scores with ``labels``.
        labels: ``'predicted'`` are the classes that the network itself predicts; ``'sampled'``
            ones are drawn with the probabilities that it gives them, which makes the squares of
            the gradients the Fisher matrix of its predictions. The draw depends on the place of
            the batch alone. Defaults to ``'predicted'``.

    Raises:
        CalibrationError: Activations are not finite for some image, or there are no images. With
            ``shared`` it is raised in all processes.
        ValueError: Gradients are needed of a network without classifier, and there is no ``loss``;
            or its class scores are needed.
    """
    joined: dict[tuple, Observer] = {}
    for observer in observers:
        if observer.key in joined:
            joined[observer.key].join(observer)
        else:
            joined[observer.key] = observer
    classifier = find_classifier(model)
    gradients = any(observer.needs_gradients for observer in joined.values())
    if gradients and loss is None and classifier is None:
        raise ValueError(
            f'{type(model).__name__} has no classifier to take the gradient of: give a loss'
        )
    if classifier is None and any(observer.needs_scores for observer in joined.values()):
        raise ValueError(without_scores(model))
    tokens = Tokens(model)
    outputs, classes = Rows(), Rows()

    def keep_prediction(module, args, given):
        outputs.append(args[0].detach().float())
        classes.append(given.detach().argmax(-1))
        tokens.scores = given

    units = {observer.unit.name: observer.unit for observer in joined.values()}
    handles = tokens.attach(list(units.values()))
    for observer in joined.values():
        handles += observer.attach(tokens)
    if classifier is not None:
        handles.append(classifier.register_forward_hook(keep_prediction))
    training = [module for module in model.modules() if module.training]
    frozen = [p for p in model.parameters() if gradients and p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    model.train(False)
    error = None
    rank, processes = (distributed.get_rank(), distributed.get_world_size()) if shared else (0, 1)
    try:
        with torch.enable_grad() if gradients else torch.inference_mode():
            for place, batch in enumerate(batches):
                result = (model if forward is None else forward)(batch)
                if gradients:
                    if loss is not None:
                        total = loss(batch, result)
                    elif tokens.scores is None:
                        raise ValueError(
                            f'forward does not run the classifier of {type(model).__name__}: give '
                            'a loss'
                        )
                    else:
                        chosen = _labels(tokens.scores, labels, place * processes + rank)
                        total = F.cross_entropy(tokens.scores.float(), chosen, reduction='sum')
                    total.backward()
                names = image_names(batch) if image_names else None
                for observer in joined.values():
                    observer.end_batch(names)
                tokens.scores = None
                outputs.end_batch()
                classes.end_batch()
    except CalibrationError as caught:
        error = caught
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
        for parameter in frozen:
            parameter.requires_grad_(True)
    if shared:
        # First of all, so that no process waits for one that has given up.
        error = next(filter(None, gather(error)), None)
    if error is not None:
        raise error
    images = max((observer.count for observer in joined.values()), default=0)
    if shared:
        images = sum(gather(images))
        device = next(model.parameters()).device
        for rows in (outputs, classes):
            rows.merge(device)
        for observer in joined.values():
            observer.merge()
    # A head that is fed something else than one vector per image cannot guide.
    guided = outputs.rows is not None and len(outputs) > 0 and outputs.rows.dim() == 2
    return Seen(
        {key: observer.result() for key, observer in joined.items()},
        outputs.result() if guided else None,
        classes.result() if guided else None,
        images,
    )


def without_scores(model: nn.Module) -> str:
    """What to do about a network without classifier, for an error message."""
    return (
        f'{type(model).__name__} has no classifier whose predictions could be looked at: take a '
        "criterion that needs none, such as 'activation'"
    )


def _labels(scores: Tensor, labels: str, place: int) -> Tensor:
    """Classes ``(B,)`` for scores ``(B, K)``, see :func:`calibrate`."""
    if labels == 'predicted':
        return scores.detach().argmax(-1)
    generator = torch.Generator().manual_seed(place)
    # On the CPU, so that the draw is the same on every device.
    chances = scores.detach().float().softmax(-1).cpu()
    return torch.multinomial(chances, 1, generator=generator)[:, 0].to(scores.device)
