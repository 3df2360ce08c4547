"""Runs images through a network once and keeps what the criteria need, in bounded memory."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, distributed, nn

from mcf_mm.pruning.targets import FFN, find_classifier, find_ffns

#: Tokens per image that enter the second moments (ours): evenly spaced, the first among them.
#: Neighbouring tokens are so alike that more cost time and gain nothing (tools/benchmarks).
MOMENT_TOKENS = 32


class CalibrationError(ValueError):
    """Calibration met values that are not finite, or no images."""


@dataclass
class Activations:
    """What calibration keeps of the input u of one linear layer.

    Attributes:
        tokens: u for each image, ``(S, I)``: of the CLS token, or the mean over tokens.
        mean: Mean over images and tokens, ``(I,)``.
        mean_square: Mean square over images and tokens, ``(I,)``.
        covariance: Centred second moments, ``(I, I)``; None unless asked for.
    """

    tokens: Tensor
    mean: Tensor
    mean_square: Tensor
    covariance: Tensor | None

    @property
    def rms(self) -> Tensor:
        """Root mean square of each input, ``(I,)``."""
        return self.mean_square.sqrt()


@dataclass
class Calibration:
    """What :func:`calibrate` found.

    Attributes:
        inputs: Activations at the input of fc1, by FFN name.
        hiddens: Activations at the input of fc2, by FFN name.
        output: Input of the classifier for each image, ``(S, C)``; None without classifier.
        classes: Predicted class of each image, ``(S,)``; None without classifier.
    """

    inputs: dict[str, Activations]
    hiddens: dict[str, Activations]
    output: Tensor | None
    classes: Tensor | None


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any], Any] | None = None,
    ffns: Sequence[FFN] | None = None,
    second_moments: bool = False,
    image_names: Callable[[Any], Sequence[str]] | None = None,
    shared: bool = False,
) -> Calibration:
    """Streams images through ``model`` in evaluation mode and without gradients.

    The CLS token stands for the image where the network has one, the mean over tokens where it
    has none (section 3.2). Memory is S * (C + H) floats for each FFN, and C^2 + H^2 more with
    ``second_moments``, whatever the image size.

    Args:
        model: The network; its training flag is restored.
        batches: Batches of images, each a tensor ``(B, 3, H, W)`` or what ``forward`` takes.
        forward: Runs the network on one batch. Defaults to ``model`` itself.
        ffns: FFNs to watch. Defaults to all of the model.
        second_moments: Also gather covariances, for least-squares compensation. Defaults to
            False.
        image_names: Names of the images in a batch, for error messages. Defaults to their
            running numbers.
        shared: The processes of ``torch.distributed`` share the work: ``batches`` is every n-th
            of all batches, n being the number of processes, from the one with the number of this
            rank on. Every process gets the result of one process over all batches, equal to the
            last bit except for the covariances (a sum of doubles in another order). Defaults to
            False.

    Raises:
        CalibrationError: A layer's activations are not finite for some image, or there are no
            images. With ``shared`` it is raised in all processes.
    """
    ffns = find_ffns(model) if ffns is None else list(ffns)
    classifier = find_classifier(model)
    use_cls = any(name.rpartition('.')[2] == 'cls_token' for name, _ in model.named_parameters())
    # Ordered as the data flows, so that the first layer with bad values is the one named.
    watched = {}
    for ffn in ffns:
        for path, linear in ((ffn.fc1_path, ffn.fc1), (ffn.fc2_path, ffn.fc2)):
            watched[f'{ffn.name}.{path}'] = (
                linear,
                _Stream(f'{ffn.name}.{path}', use_cls, second_moments),
            )
    outputs, classes = _Rows(), _Rows()

    def keep_prediction(module, args, scores):
        outputs.append(args[0].detach().float())
        classes.append(scores.detach().argmax(-1))

    handles = [
        linear.register_forward_pre_hook(stream.update) for linear, stream in watched.values()
    ]
    if classifier is not None:
        handles.append(classifier.register_forward_hook(keep_prediction))
    training = [module for module in model.modules() if module.training]
    model.train(False)
    error = None
    try:
        with torch.inference_mode():
            for batch in batches:
                (model if forward is None else forward)(batch)
                names = image_names(batch) if image_names else None
                for _, stream in watched.values():
                    stream.end_batch(names)
                outputs.end_batch()
                classes.end_batch()
    except CalibrationError as caught:
        error = caught
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    if shared:
        # First of all, so that no process waits for one that has given up.
        error = next(filter(None, _gather(error)), None)
    if error is not None:
        raise error
    if shared:
        device = next(model.parameters()).device
        for rows in (outputs, classes):
            rows.merge(device)
        for linear, stream in watched.values():
            stream.merge(linear)
    if not all(len(stream.tokens) for _, stream in watched.values()):
        raise CalibrationError('calibration got no images: the data loader is empty')

    streams = {name: stream.result() for name, (_, stream) in watched.items()}
    # A head that is fed something else than one vector per image cannot guide.
    guided = len(outputs) > 0 and outputs.rows.dim() == 2
    return Calibration(
        inputs={ffn.name: streams[f'{ffn.name}.{ffn.fc1_path}'] for ffn in ffns},
        hiddens={ffn.name: streams[f'{ffn.name}.{ffn.fc2_path}'] for ffn in ffns},
        output=outputs.result() if guided else None,
        classes=classes.result() if guided else None,
    )


class _Rows:
    """A tensor that grows by rows, ``(S, ...)``.

    It doubles now and then. A small tensor kept for each batch would lie between the large ones
    that come and go, and hold the memory around it: gigabytes for 1,024 images.
    """

    def __init__(self, first: int = 1024):
        self.first = first
        self.rows: Tensor | None = None
        self.used = 0
        self.batches: list[int] = []

    def __len__(self) -> int:
        return self.used

    def append(self, rows: Tensor) -> None:
        """Copies ``rows`` to the end."""
        needed = self.used + len(rows)
        if self.rows is None or needed > len(self.rows):
            larger = rows.new_empty(max(self.first, 2 * needed), *rows.shape[1:])
            if self.rows is not None:
                larger[: self.used] = self.rows[: self.used]
            self.rows = larger
        self.rows[self.used : needed] = rows
        self.used = needed

    def end_batch(self) -> None:
        """Remembers that the rows since the last call came from one batch."""
        self.batches.append(self.used - sum(self.batches))

    def merge(self, device: torch.device) -> None:
        """Gathers the rows of all processes, in the order in which one would have seen them."""
        own = self.result().cpu() if len(self) else None
        parts = [
            rows.split(batches) if rows is not None else ()
            for rows, batches in _gather((own, self.batches))
        ]
        # Process r has the batches r, r + n, r + 2n ...
        merged = [rows for turn in zip_longest(*parts) for rows in turn if rows is not None]
        if merged:
            self.rows = torch.cat(merged).to(device)
            self.used = len(self.rows)

    def result(self) -> Tensor:
        """What was appended; a copy, which is no inference tensor."""
        return self.rows[: self.used].clone()


def _gather(value: Any) -> list[Any]:
    """What all processes have, by rank."""
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


class _Stream:
    """Gathers the activations at the input of one linear layer."""

    def __init__(self, name: str, use_cls: bool, second_moments: bool):
        self.name = name
        self.use_cls = use_cls
        self.second_moments = second_moments
        self.tokens = _Rows()
        # Sums of u and of u^2 over one batch, (2, I) for each: a total that is summed at the end
        # does not depend on who has seen which batch.
        self.sums = _Rows(first=16)
        self.checked = 0
        self.count = self.moment_count = 0
        self.moment_total = self.moments = 0

    def update(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of the layer."""
        u = args[0].detach()
        u = u.reshape(u.shape[0], -1, u.shape[-1]).float()  # (B, N, I)
        self.tokens.append(u[:, 0] if self.use_cls else u.mean(1))
        flat = u.flatten(0, 1)
        self.count += len(flat)
        # Sums over one batch are short enough for fp32; the totals are not.
        self.sums.append(torch.stack((flat.sum(0), flat.square().sum(0))).double()[None])
        if self.second_moments:
            stride = max(1, u.shape[1] // MOMENT_TOKENS)
            some = u[:, ::stride][:, :MOMENT_TOKENS].flatten(0, 1)
            self.moment_count += len(some)
            self.moment_total += some.sum(0).double()
            self.moments += (some.T @ some).double()

    def end_batch(self, names: Sequence[str] | None) -> None:
        """Refuses values that are not finite."""
        new = self.tokens.rows[self.checked : len(self.tokens)]
        finite = new.isfinite().all(1)
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            image = names[bad] if names else f'number {self.checked + bad}'
            raise CalibrationError(
                f'calibration: the input of {self.name} is not finite for image {image}; '
                'check that image and the weights of the network'
            )
        self.checked = len(self.tokens)
        self.tokens.end_batch()
        self.sums.end_batch()

    def merge(self, linear: nn.Linear) -> None:
        """Takes in what the other processes have seen of ``linear``."""
        device, size = linear.weight.device, linear.in_features
        self.tokens.merge(device)
        self.sums.merge(device)
        counts = _gather((self.count, self.moment_count))
        self.count, self.moment_count = (sum(column) for column in zip(*counts, strict=True))
        if self.second_moments:
            zeros = torch.zeros(size, size, dtype=torch.double, device=device)
            # A process without images has no sums yet.
            self.moment_total = _sum_over_processes(zeros[0] + self.moment_total)
            self.moments = _sum_over_processes(zeros + self.moments)

    def result(self) -> Activations:
        covariance = None
        if self.second_moments:
            mean = self.moment_total / self.moment_count
            covariance = self.moments / self.moment_count - torch.outer(mean, mean)
        mean, mean_square = (self.sums.result().sum(0) / self.count).float()
        return Activations(self.tokens.result(), mean, mean_square, covariance)


def _sum_over_processes(values: Tensor) -> Tensor:
    """Adds in one process and sends the sum to all, so that they agree to the last bit."""
    distributed.reduce(values, dst=0)
    distributed.broadcast(values, src=0)
    return values
