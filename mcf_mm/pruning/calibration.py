"""Runs images through a network once and keeps what the criteria need, in bounded memory."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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

    Raises:
        CalibrationError: A layer's activations are not finite for some image, or there are no
            images.
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
    num_images = 0
    try:
        with torch.inference_mode():
            for batch in batches:
                (model if forward is None else forward)(batch)
                names = image_names(batch) if image_names else None
                for _, stream in watched.values():
                    num_images = stream.check(names)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    if num_images == 0:
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

    def __init__(self):
        self.rows: Tensor | None = None
        self.used = 0

    def __len__(self) -> int:
        return self.used

    def append(self, rows: Tensor) -> None:
        """Copies ``rows`` to the end."""
        needed = self.used + len(rows)
        if self.rows is None or needed > len(self.rows):
            larger = rows.new_empty(max(1024, 2 * needed), *rows.shape[1:])
            if self.rows is not None:
                larger[: self.used] = self.rows[: self.used]
            self.rows = larger
        self.rows[self.used : needed] = rows
        self.used = needed

    def result(self) -> Tensor:
        """What was appended; a copy, which is no inference tensor."""
        return self.rows[: self.used].clone()


class _Stream:
    """Gathers the activations at the input of one linear layer."""

    def __init__(self, name: str, use_cls: bool, second_moments: bool):
        self.name = name
        self.use_cls = use_cls
        self.second_moments = second_moments
        self.tokens = _Rows()
        self.checked = 0
        self.count = self.moment_count = 0
        self.total = self.total_square = self.moment_total = self.moments = 0

    def update(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of the layer."""
        u = args[0].detach()
        u = u.reshape(u.shape[0], -1, u.shape[-1]).float()  # (B, N, I)
        self.tokens.append(u[:, 0] if self.use_cls else u.mean(1))
        flat = u.flatten(0, 1)
        self.count += len(flat)
        # Sums over one batch are short enough for fp32; the running totals are not.
        self.total += flat.sum(0).double()
        self.total_square += flat.square().sum(0).double()
        if self.second_moments:
            stride = max(1, u.shape[1] // MOMENT_TOKENS)
            some = u[:, ::stride][:, :MOMENT_TOKENS].flatten(0, 1)
            self.moment_count += len(some)
            self.moment_total += some.sum(0).double()
            self.moments += (some.T @ some).double()

    def check(self, names: Sequence[str] | None) -> int:
        """Refuses values that are not finite; returns the number of images so far."""
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
        return self.checked

    def result(self) -> Activations:
        covariance = None
        if self.second_moments:
            mean = self.moment_total / self.moment_count
            covariance = self.moments / self.moment_count - torch.outer(mean, mean)
        return Activations(
            tokens=self.tokens.result(),
            mean=(self.total / self.count).float(),
            mean_square=(self.total_square / self.count).float(),
            covariance=covariance,
        )
