"""Exports networks, dense or pruned, to ONNX: the work of ``tools/export_onnx.py``."""

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
from mcf_mm.compat.versions import install_command
from mcf_mm.files import whole_file
from mcf_mm.weights.exported import ExportedClassifier, ExportedNetwork, ExportedYOLOS

#: Largest difference between ONNX Runtime and torch; a file with more is not written.
TOLERANCE = 1e-3
#: torch's exporter by graph capture from this version on, the one by tracing before.
CAPTURE_SINCE = Version('2.6')
#: Detectors of mmdet that are exported with NMS.
ONE_STAGE = ('RetinaNet', 'ATSS', 'FCOS')
PACKAGES = ('onnx', 'onnxruntime', 'onnxscript')


def exportable(model: nn.Module) -> ExportedNetwork:
    """The network as it is exported.

    Raises:
        ValueError: It is no classifier of mmpretrain, YOLOS, RetinaNet, ATSS or FCOS.
    """
    kind = type(model).__name__
    kinds = {'ImageClassifier': ExportedClassifier, 'YOLOS': ExportedYOLOS}
    if kind in ONE_STAGE:
        # Needs mmdet and torchvision, which classifiers do without.
        from mcf_mm.weights.exported_detectors import ExportedOneStage

        kinds[kind] = ExportedOneStage
    if kind not in kinds:
        raise ValueError(
            f'{kind} cannot be exported: only mmpretrain.ImageClassifier, mcf_mm.YOLOS and '
            f"mmdet's {', '.join(ONE_STAGE)} can"
        )
    return kinds[kind](model)


def export_onnx(
    model: nn.Module,
    path: str | Path,
    shape: tuple[int, int],
    facts: Mapping[str, Any] | None = None,
    opset: int | None = None,
) -> float:
    """Write a network as an ONNX graph, once ONNX Runtime has given the same results as torch.

    The input ``images`` is float32 ``(batch, 3, H, W)``, RGB, 0 to 255: any number of images that
    were resized to one fixed size, for RetinaNet, ATSS and FCOS one image. Normalisation is in the
    graph. The outputs are those of :class:`ExportedClassifier`, :class:`ExportedYOLOS` or
    :class:`mcf_mm.weights.exported_detectors.ExportedOneStage`. The metadata of the file says
    ``mean`` and ``std`` (both are in the graph already), ``mcf_mm``, the version, and ``facts``,
    each as JSON.

    Args:
        model: An mmpretrain classifier, YOLOS, RetinaNet, ATSS or FCOS, with its weights.
        path: File to write, which appears whole or not at all.
        shape: Height and width of the images in pixels.
        facts: More for the metadata. Defaults to none.
        opset: Version of ONNX's operators. Defaults to the one that torch recommends.

    Returns:
        Largest difference between ONNX Runtime and torch, of logits, or of scores and boxes.

    Raises:
        ImportError: A package that this needs is missing.
        RuntimeError: ONNX Runtime gives other results than torch.
        ValueError: The network is none of these, or sides are not multiples of what the detector
            needs.
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
            _write_graph(
                network,
                _images(1 if network.one_image else 2, shape, network.channels),
                partial,
                opset,
            )
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
            f'the export to ONNX needs {", ".join(missing)}: {install_command("onnx")}'
        )


def check_shape(model: nn.Module, shape: tuple[int, int]) -> None:
    """Check the size of the images: whole patches for YOLOS, no padding for other detectors.

    Raises:
        ValueError: Sides are not multiples of the patch, or of what mmdet pads to.
    """
    kind = type(model).__name__
    if kind == 'YOLOS':
        name, unit = 'the patch', model.backbone.patch_embed.projection.kernel_size
    elif kind in ONE_STAGE:
        name, unit = 'pad_size_divisor', (model.data_preprocessor.pad_size_divisor,) * 2
    else:
        return
    if any(side < 1 or side % size for side, size in zip(shape, unit, strict=True)):
        raise ValueError(
            f'shape is {shape[0]} x {shape[1]} pixels; the sides must be multiples of {name}, '
            f'{unit[0]} x {unit[1]}'
        )


def _images(number: int, shape: tuple[int, int], channels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + number)
    return torch.rand(number, channels, *shape, generator=generator) * 255


def _write_graph(network: ExportedNetwork, images: Tensor, path: Path, opset: int | None) -> None:
    """Writes a graph for any number of images, or for one, all in one file."""
    # Position embeddings for this size are remembered, so that the graph has them ready.
    network(images)
    names = dict(input_names=['images'], output_names=list(network.outputs), opset_version=opset)
    with warnings.catch_warnings():
        # About the inside of torch and of the exporter; the result is checked below.
        warnings.simplefilter('ignore')
        if Version(torch.__version__) >= CAPTURE_SINCE:
            shapes = dict(images={0: torch.export.Dim('batch')})
            torch.onnx.export(
                network,
                (images,),
                path,
                dynamo=True,
                external_data=False,
                verbose=False,
                dynamic_shapes=None if network.one_image else shapes,
                **names,
            )
        else:
            # Before 2.5 there was this one only, and no argument to choose.
            choice = dict(dynamo=False) if Version(torch.__version__) >= Version('2.5') else {}
            axes = {name: {0: 'batch'} for name in ('images', *network.outputs)}
            if network.one_image:
                axes = {name: {1: 'found'} for name in network.outputs}
            torch.onnx.export(network, (images,), str(path), dynamic_axes=axes, **names, **choice)


def _write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Adds the metadata, and checks that the file is a graph as ONNX wants it."""
    import onnx

    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {key: json.dumps(value) for key, value in facts.items()})
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _difference(network: ExportedNetwork, path: Path, shape: tuple[int, int]) -> float:
    """Largest difference between ONNX Runtime and torch.

    For batches of unlike size, or for several images one by one. Noise has hardly an object in it,
    so detectors with NMS are compared without their threshold of scores too.
    """
    differences = [_difference_of(network, path.read_bytes(), shape)]
    if network.one_image:
        threshold = network.score_threshold.clone()
        network.score_threshold.zero_()
        differences.append(_difference_of(network, _without_threshold(path), shape))
        network.score_threshold.copy_(threshold)
    return float(np.max(differences))  # NaN stays NaN


def _difference_of(network: ExportedNetwork, graph: bytes, shape: tuple[int, int]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=['CPUExecutionProvider'])
    batches = [(1, 0), (1, 1), (1, 2)] if network.one_image else [(1, 0), (3, 0)]
    differences = []
    for number, seed in batches:
        images = _images(number, shape, network.channels, seed)
        outputs = session.run(list(network.outputs), {'images': images.numpy()})
        outputs = [torch.from_numpy(output) for output in outputs]
        differences.append(network.difference(images, outputs))
    return float(np.max(differences))


def _without_threshold(path: Path) -> bytes:
    """The graph of a file with ``score_threshold`` at 0."""
    import onnx

    graph = onnx.load(path)
    found = [value for value in graph.graph.initializer if value.name == 'score_threshold']
    if len(found) != 1:
        raise RuntimeError('the graph has no score_threshold: this version of torch folds it')
    found[0].CopyFrom(onnx.numpy_helper.from_array(np.float32(0), 'score_threshold'))
    return graph.SerializeToString()
