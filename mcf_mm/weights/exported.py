"""Classifiers and YOLOS as they are exported: normalisation, the network, and plain outputs."""

import torch
from torch import Tensor, nn


class ExportedNetwork(nn.Module):
    """What a graph computes from images: normalisation, then the network.

    Args:
        model: The network. It is put into evaluation mode.
    """

    outputs: tuple[str, ...]
    one_image = False  # or batches of any number

    def __init__(self, model: nn.Module):
        super().__init__()
        preprocessor = model.data_preprocessor
        # OpenMMLab reads images as BGR. mmpretrain's preprocessor has another name for the switch.
        self.takes_rgb = getattr(preprocessor, 'to_rgb', False) or getattr(
            preprocessor, '_channel_conversion', False
        )
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        self.channels = first.in_channels
        zeros = torch.zeros(self.channels, 1, 1)
        self.register_buffer('mean', getattr(preprocessor, 'mean', zeros).clone())
        self.register_buffer('std', getattr(preprocessor, 'std', zeros + 1).clone())
        self.model = model
        self.train(False)

    def normalise(self, images: Tensor) -> Tensor:
        """From RGB images, 0 to 255, to what the network was trained on, ``(B, C, H, W)``.

        Images of one channel, or of more than three, are in the order of the training.
        """
        if self.channels == 3 and not self.takes_rgb:
            images = images.flip(1)
        return (images - self.mean) / self.std

    def difference(self, images: Tensor, outputs: list[Tensor]) -> float:
        """Largest difference between ``outputs`` and what torch makes of ``images``."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> 'ExportedNetwork':
        """As in torch; mmpretrain's backbones return None."""
        super().train(mode)
        return self


class ExportedClassifier(ExportedNetwork):
    """Puts out ``logits``, ``(B, classes)``, of an mmpretrain classifier."""

    outputs = ('logits',)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.normalise(images), mode='tensor')

    def difference(self, images: Tensor, outputs: list[Tensor]) -> float:
        return (self(images) - outputs[0]).abs().max().item()


class ExportedYOLOS(ExportedNetwork):
    """Puts out one box for each detection token of YOLOS, in no order, as its head predicts.

    ``scores`` and ``labels`` are ``(B, N)``, ``boxes`` ``(B, N, 4)`` with x1, y1, x2, y2 relative
    to the image, from 0 to 1: times its width and height, whatever it had before it was resized.
    """

    outputs = ('scores', 'labels', 'boxes')

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        probabilities, boxes = self.probabilities_and_boxes(images)
        scores, labels = probabilities.max(dim=-1)
        return scores, labels, boxes

    def probabilities_and_boxes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of each class, ``(B, N, classes)``, and the boxes."""
        # The size as plain numbers: a graph is for one size, its positions are constants.
        shape = tuple(int(side) for side in images.shape[-2:])
        (tokens,) = self.model.backbone(self.normalise(images), [shape])
        (logits,), (boxes,) = self.model.bbox_head(tokens[None])
        probabilities = logits.softmax(dim=-1)[..., :-1]
        if (class_ids := self.model.bbox_head.class_ids) is not None:
            probabilities = probabilities[..., class_ids]
        centres, sizes = boxes.chunk(2, dim=-1)
        corners = torch.cat((centres - sizes / 2, centres + sizes / 2), dim=-1)
        return probabilities, corners.clamp(0, 1)

    def difference(self, images: Tensor, outputs: list[Tensor]) -> float:
        probabilities, boxes = self.probabilities_and_boxes(images)
        scores, labels, found = outputs
        # Of two classes that are as likely either may win: the probability counts, not the label.
        chosen = probabilities.gather(-1, labels[..., None])[..., 0]
        gaps = (chosen - scores, probabilities.amax(dim=-1) - scores, boxes - found)
        return max(gap.abs().max().item() for gap in gaps)
