"""One-shot pruning of a checkpoint, the work of ``tools/prune.py``."""

from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import load_checkpoint
from mmengine.utils import track_iter_progress

from mcf_mm.analysis.complexity import build_model, count_complexity, input_shape
from mcf_mm.analysis.report import write_report
from mcf_mm.engine.calibration_data import calibration_loader, image_names, tensor_forward
from mcf_mm.pruning import prune
from mcf_mm.weights.slim_config import check_selection, write_slim


def prune_checkpoint(
    cfg: Config,
    checkpoint: str,
    out_dir: str | Path,
    num_images: int = 1024,
    seed: int = 0,
    **arguments,
) -> Path:
    """Prunes a trained network and writes the slim checkpoint, its config and a report.

    Args:
        cfg: Config of the dense network, with a training set.
        checkpoint: Its weights.
        out_dir: Folder for ``slim.safetensors``, ``slim.py`` and ``report/``.
        num_images: Calibration images. Defaults to 1024.
        seed: Chooses them. Defaults to 0.
        **arguments: For :func:`mcf_mm.pruning.prune`: ratios, method, compensation ...

    Returns:
        Path of the slim checkpoint.

    Raises:
        ValueError: See :func:`mcf_mm.pruning.prune`.
    """
    model = build_model(cfg).to(get_device())
    check_selection(model, cfg, 'row' if arguments.get('last_step') == 'crs' else 'layer')
    load_checkpoint(model, checkpoint, map_location='cpu')
    loader = calibration_loader(cfg, num_images, seed)
    shape = input_shape(cfg)
    before = count_complexity(model, shape)
    importance = {}
    structure = prune(
        model,
        track_iter_progress((iter(loader), len(loader))),
        seed=seed,
        forward=tensor_forward(model),
        image_names=image_names,
        observe=lambda sparse: importance.update({n: ffn.scores for n, ffn in sparse.items()}),
        **arguments,
    )
    after = count_complexity(model, shape)
    facts = dict(arguments, origin=str(checkpoint), num_images=num_images, seed=seed)
    path = write_slim(model, cfg, out_dir, facts, loader.dataset.dataset)
    if structure is not None:
        write_report(Path(out_dir) / 'report', structure, importance, before, after)
    print(
        f'\nparameters {before.params / 1e6:.3f} M -> {after.params / 1e6:.3f} M, '
        f'MACs {before.macs / 1e9:.3f} G -> {after.macs / 1e9:.3f} G\n'
        f'wrote {path} and {path.with_suffix(".py")}'
    )
    return path
