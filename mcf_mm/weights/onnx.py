"""Exports classifiers and YOLOS, dense or pruned, to ONNX: the work of ``tools/export_onnx.py``."""

import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from torch import Tensor, nn

import mcf_mm
from mcf_mm.files import whole_file

#: Largest difference between ONNX Runtime and torch; a file with more is not written.
TOLERANCE = 1e-3
#: torch's exporter by graph capture from this version on, the one by tracing before.
CAPTURE_SINCE = Version('2.6')
PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')


class ExportedNetwork(nn.Module):
    """What a graph computes from images: normalisation, then the network.

    Args:
        model: The network. It is put into evaluation mode.
    """

    outputs: tuple[str, ...]

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


def exportable(model: nn.Module) -> ExportedNetwork:
    """The network as it is exported.

    Raises:
        ValueError: It is neither a classifier of mmpretrain nor a YOLOS.
    """
    kinds = {'ImageClassifier': ExportedClassifier, 'YOLOS': ExportedYOLOS}
    if type(model).__name__ not in kinds:
        raise ValueError(
            f'{type(model).__name__} cannot be exported: only mmpretrain.ImageClassifier and '
            'mcf_mm.YOLOS can'
        )
    return kinds[type(model).__name__](model)


def export_onnx(
    model: nn.Module,
    path: str | Path,
    shape: tuple[int, int],
    facts: Mapping[str, Any] | None = None,
    opset: int | None = None,
) -> float:
    """Write a network as an ONNX graph, once ONNX Runtime has given the same results as torch.

    The input ``images`` is float32 ``(batch, 3, H, W)``, RGB, 0 to 255: any number of images that
    were resized to one fixed size. Normalisation is in the graph. The outputs are those of
    :class:`ExportedClassifier` or :class:`ExportedYOLOS`. The metadata of the file says ``mean``
    and ``std`` (both are in the graph already), ``mcf_mm``, the version, and ``facts``, each as
    JSON.

    Args:
        model: An mmpretrain classifier or a YOLOS, with its weights.
        path: File to write, which appears whole or not at all.
        shape: Height and width of the images in pixels.
        facts: More for the metadata. Defaults to none.
        opset: Version of ONNX's operators. Defaults to the one that torch recommends.

    Returns:
        Largest difference between ONNX Runtime and torch, of logits, or of scores and boxes.

    Raises:
        ImportError: A package that this needs is missing.
        RuntimeError: ONNX Runtime gives other results than torch.
        ValueError: The network is neither a classifier nor YOLOS, or sides are not multiples of
            YOLOS's patch size.
    """
    check_packages()
    network = exportable(model)
    check_shape(model, shape)
    facts = dict(
        mean=network.mean.flatten().tolist(),
        std=network.std.flatten().tolist(),
        mcf_mm=mcf_mm.__version__,
        **(facts or {}),
    )
    with whole_file(path) as partial:
        with torch.no_grad():
            _write_graph(network, _images(2, shape, network.channels), partial, opset)
            _write_facts(partial, facts)
            difference = _difference(network, partial, shape)
        if not difference <= TOLERANCE:  # nor NaN
            raise RuntimeError(
                f'{path} was not written: ONNX Runtime and torch differ by {difference:.3g}, '
                f'more than {TOLERANCE}'
            )
    return difference


def check_packages() -> None:
    """Check that what the export needs is installed.

    Raises:
        ImportError: A package is missing.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ImportError(
            f"the export to ONNX needs {', '.join(missing)}: pip install 'mcf-mm[onnx]'"
        )


def check_shape(model: nn.Module, shape: tuple[int, int]) -> None:
    """Check the size of the images, in whole patches for YOLOS.

    Raises:
        ValueError: Sides are not multiples of the patch.
    """
    if type(model).__name__ != 'YOLOS':
        return
    patch = model.backbone.patch_embed.projection.kernel_size
    if any(side < 1 or side % size for side, size in zip(shape, patch, strict=True)):
        raise ValueError(
            f'shape is {shape[0]} x {shape[1]} pixels; the sides must be multiples of the patch, '
            f'{patch[0]} x {patch[1]}'
        )


def _images(number: int, shape: tuple[int, int], channels: int) -> Tensor:
    return (
        torch.rand(number, channels, *shape, generator=torch.Generator().manual_seed(number)) * 255
    )


def _write_graph(network: ExportedNetwork, images: Tensor, path: Path, opset: int | None) -> None:
    """Writes a graph for any number of images, all in one file."""
    # Position embeddings for this size are remembered, so that the graph has them ready.
    network(images)
    names = dict(input_names=['images'], output_names=list(network.outputs), opset_version=opset)
    with warnings.catch_warnings():
        # About the inside of torch and of the exporter; the result is checked below.
        warnings.simplefilter('ignore')
        if Version(torch.__version__) >= CAPTURE_SINCE:
            torch.onnx.export(
                network,
                (images,),
                path,
                dynamo=True,
                external_data=False,
                verbose=False,
                dynamic_shapes=dict(images={0: torch.export.Dim('batch')}),
                **names,
            )
        else:
            # Before 2.5 there was this one only, and no argument to choose.
            choice = dict(dynamo=False) if Version(torch.__version__) >= Version('2.5') else {}
            axes = {name: {0: 'batch'} for name in ('images', *network.outputs)}
            torch.onnx.export(network, (images,), str(path), dynamic_axes=axes, **names, **choice)


def _write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Adds the metadata, and checks that the file is a graph as ONNX wants it."""
    import onnx

    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {key: json.dumps(value) for key, value in facts.items()})
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _difference(network: ExportedNetwork, path: Path, shape: tuple[int, int]) -> float:
    """Largest difference between ONNX Runtime and torch, for batches of unlike size."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    differences = []
    for number in (1, 3):
        images = _images(number, shape, network.channels)
        outputs = session.run(list(network.outputs), {'images': images.numpy()})
        outputs = [torch.from_numpy(output) for output in outputs]
        differences.append(network.difference(images, outputs))
    return float(np.max(differences))  # NaN stays NaN
