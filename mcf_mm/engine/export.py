"""ONNX of a checkpoint, the work of ``tools/export_onnx.py``."""

import copy
from pathlib import Path

from mmengine.config import Config

from mcf_mm.engine.config import input_shape
from mcf_mm.engine.networks import build_model
from mcf_mm.weights.checkpoint import dataset_meta, load_weights
from mcf_mm.weights.onnx import check_packages, check_shape, export_onnx, exportable


def export_checkpoint(
    cfg: Config,
    checkpoint: str | Path,
    path: str | Path,
    shape: tuple[int, int] | None = None,
    opset: int | None = None,
) -> float:
    """Write the network of a config and a checkpoint as an ONNX graph.

    Args:
        cfg: Config of an mmpretrain classifier, or of a detector that can be exported.
        checkpoint: Its weights, ``.pth`` or ``.safetensors``.
        path: File to write, see :func:`mcf_mm.weights.onnx.export_onnx`; its metadata says
            ``classes`` and ``origin`` besides.
        shape: Height and width of the images in pixels. Defaults to what the config evaluates;
            for detectors the largest landscape image, for YOLOS of whole patches.
        opset: Version of ONNX's operators. Defaults to the one that torch recommends.

    Returns:
        Largest difference between ONNX Runtime and torch.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ImportError: A package that this needs is missing.
        ValueError: The checkpoint is not one of this network.
    """
    check_packages()
    cfg = copy.deepcopy(cfg)
    # The checkpoint has all weights; those that training started from may not be here.
    cfg.model.get('backbone', {}).pop('init_cfg', None)
    model = build_model(cfg)
    exportable(model)  # before the weights are read
    if shape is None:
        shape = input_shape(cfg)
        if type(model).__name__ == 'YOLOS':
            patch = model.backbone.patch_embed.projection.kernel_size
            shape = tuple(side // size * size for side, size in zip(shape, patch, strict=True))
    check_shape(model, shape)
    meta, _ = load_weights(model, checkpoint)
    facts = dict(
        classes=list(dataset_meta(cfg, meta).get('classes') or ()), origin=Path(checkpoint).name
    )
    return export_onnx(model, path, shape, facts, opset)
