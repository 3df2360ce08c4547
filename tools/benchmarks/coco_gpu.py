"""Detectors on COCO from dense and from pruned backbones: trains all, one table at the end.

python tools/benchmarks/coco_gpu.py --dry-run                 # what will be run and written
python tools/benchmarks/coco_gpu.py --gpus 8 --amp            # all of it
python tools/benchmarks/coco_gpu.py --gpus 8 --amp --resume   # after a kill: goes on
python tools/benchmarks/coco_gpu.py --only yolos-ti --images 64   # a trial, one epoch

Order: RetinaNet on DeiT-Ti and Mask R-CNN on DeiT-S, both with the windows of ViTDet, then YOLOS-Ti
and YOLOS-S; of each the dense one first. A run writes to OUT/NAME_KIND_seedN; results.json and
results.md in OUT are written anew after each run. Learning rates are scaled to the batch of the
machine. Needs data/coco, the weights of DeiT in checkpoints/, and pruned backbones where the
configs have them (tools/train.py configs/mcf/mcf_deit-tiny_8xb128_in1k.py, and -small), or
--pruned tiny=FILE small=FILE from elsewhere. Nobody has run all of it yet.
"""

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from runs import METRICS, ROOT, complete, last_scores, logged, started, train_command

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.analysis.throughput import compare
from mcf_mm.compat.mmcv_ops import has_operators
from mcf_mm.compat.versions import build_operators_advice
from mcf_mm.engine.config import input_shape, load_config
from mcf_mm.engine.networks import build_model
from mcf_mm.files import whole_file, write_json

CONFIGS = ROOT / 'configs'
WINDOWS = ('model.backbone.window_size=14',)
#: Configs of the dense and of the pruned one, size of the DeiT, options.
DETECTORS = {
    'retinanet-ti': ('detectors/retinanet_{}-tiny_sfp_1x_coco.py', 'tiny', WINDOWS),
    'mask-rcnn-s': ('detectors/mask-rcnn_{}-s_sfp_1x_coco.py', 'small', WINDOWS),
    'yolos-ti': ('yolos/yolos_{}-tiny_8xb2-300e_coco.py', 'tiny', ()),
    'yolos-s': ('yolos/yolos_{}-small_8xb1-150e_coco.py', 'small', ()),
}


@dataclass
class Run:
    """One training.

    Attributes:
        name: Such as ``'yolos-ti'``.
        kind: ``'dense'`` or ``'pruned'``.
        seed: Seed of the run.
        config: Config file.
        work_dir: Where it writes.
        options: ``KEY=VALUE`` for ``--cfg-options``.
        epochs: Its epochs, None for those of the config.
    """

    name: str
    kind: str
    seed: int
    config: Path
    work_dir: Path
    options: list[str]
    epochs: int | None

    def load(self) -> Config:
        """The config with the options."""
        options = dict(option.split('=', 1) for option in self.options)
        if window := options.get('model.backbone.window_size'):
            options['model.backbone.window_size'] = int(window)
        keys = [key for key in options if key.startswith('model.')]
        return load_config(str(self.config), None, {key: options[key] for key in keys})


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--only', nargs='+', choices=DETECTORS, help='default: all')
    parser.add_argument(
        '--pair',
        nargs=3,
        action='append',
        metavar=('NAME', 'DENSE.py', 'PRUNED.py'),
        help='train these configs in place of the usual ones; may be repeated',
    )
    parser.add_argument(
        '--pruned',
        nargs='+',
        default=[],
        metavar='SIZE=FILE',
        help='pruned backbones, tiny=FILE and small=FILE (default: those of the configs)',
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--gpus', type=int, default=1, help='GPUs of this machine (default: 1)')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--images', type=int, help='a trial: one epoch of so many images, whose AP means nothing'
    )
    parser.add_argument('--batch', type=int, default=8, help='batch of the timing (default: 8)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/coco_gpu'))
    parser.add_argument('--resume', action='store_true', help='go on with what was begun')
    parser.add_argument('--dry-run', action='store_true', help='only print what would be run')
    return parser.parse_args()


def plan(args: argparse.Namespace) -> list[Run]:
    """All trainings in their order.

    Raises:
        ValueError: ``--pruned`` or ``--images`` is not as it should be, or a config is not there.
    """
    pruned = dict(item.partition('=')[::2] for item in args.pruned)
    wrong = [item for item in args.pruned if not re.fullmatch('(tiny|small)=.+', item)]
    if wrong:
        raise ValueError(f'--pruned has {wrong}; it takes tiny=FILE and small=FILE')
    if args.images is not None and args.images < 1:
        raise ValueError(f'--images is {args.images}; it must be at least 1')
    pairs = {
        name: (CONFIGS / path.format('deit'), CONFIGS / path.format('mcf-deit'), size, options)
        for name, (path, size, options) in DETECTORS.items()
        if name in (args.only or DETECTORS)
    }
    if args.pair:
        pairs = {name: (Path(dense), Path(small), '', ()) for name, dense, small in args.pair}
    runs = []
    for name, (*configs, size, options) in pairs.items():
        for kind, config in zip(('dense', 'pruned'), configs, strict=True):
            if not config.exists():
                raise ValueError(f'there is no config {config}')
            settings = list(options)
            if kind == 'pruned' and size in pruned:
                settings.append(f'model.backbone.init_cfg.checkpoint={pruned[size]}')
            trial = f'_{args.images}images' if args.images else ''
            if args.images:
                settings += [
                    f'train_dataloader.dataset.indices={args.images}',
                    f'val_dataloader.dataset.indices={args.images}',
                    'train_cfg.max_epochs=1',
                ]
            for seed in args.seeds:
                work_dir = args.out / f'{name}_{kind}_seed{seed}{trial}'
                epochs = 1 if args.images else None
                runs.append(Run(name, kind, seed, config, work_dir, settings, epochs))
    return runs


def check(runs: list[Run], resume: bool) -> None:
    """Check that all runs can start, before the first one does.

    Raises:
        ValueError: Files are missing, a run was begun already, or mmcv lacks an operator.
    """
    missing: dict[str, None] = {}
    for run in runs:
        cfg = run.load()
        files = [str(cfg.model.backbone.init_cfg.checkpoint)] if cfg.model.backbone.init_cfg else []
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            files.append(str(Path(loader.dataset.get('data_root', ''), loader.dataset.ann_file)))
        missing.update(dict.fromkeys(file for file in files if not Path(file).exists()))
        focal = 'FocalLoss' in str(cfg.model)
        if focal and torch.cuda.is_available() and not has_operators():
            raise ValueError(
                f"{run.name}: mmdet's focal loss on a GPU needs an operator of mmcv that is not "
                f'here; {build_operators_advice()}; or choose others with --only'
            )
    if missing:
        raise ValueError(f'these files are missing: {", ".join(missing)}')
    begun = [str(run.work_dir) for run in runs if started(run.work_dir)]
    if begun and not resume:
        raise ValueError(f'{", ".join(begun)} hold runs already: add --resume, or another --out')


def speeds(runs: list[Run], batch: int) -> dict[str, dict]:
    """Parameters, MACs and images per second of the dense and the pruned network of a pair."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    configs = {run.kind: run.load() for run in runs}
    models = {kind: build_model(cfg).to(device) for kind, cfg in configs.items()}
    shape = input_shape(configs['dense'])
    found = compare(models, shape, batch_size=batch).networks
    return {
        kind: dict(
            params=speed.params,
            macs=speed.macs,
            images_per_second=round(speed.images_per_second, 1),
            shape=list(shape),
        )
        for kind, speed in found.items()
    }


def write_results(out: Path, rows: list[dict]) -> None:
    """Writes results.json and results.md, whole or not at all."""
    write_json(out / 'results.json', rows, indent=2)
    columns = ['mask AP', *METRICS] if any('mask AP' in row for row in rows) else list(METRICS)
    heads = ['detector', 'backbone', 'seed', *columns, 'params (M)', 'MACs (G)', 'images/s']
    lines = [f'| {" | ".join(heads)} |', f'|{" --- |" * len(heads)}']
    for row in rows:
        cells = [row['name'], row['kind'], str(row['seed'])]
        cells += [f'{row[key]:.3f}' if key in row else '' for key in columns]
        if 'params' in row:
            cells += [f'{row["params"] / 1e6:.3f}', f'{row["macs"] / 1e9:.3f}']
            cells.append(f'{row["images_per_second"]:.1f}')
        else:  # the pair is not complete
            cells += ['', '', '']
        lines.append(f'| {" | ".join(cells)} |')
    with whole_file(out / 'results.md') as partial:
        partial.write_text('\n'.join(lines) + '\n')


def main() -> None:
    args = parse_args()
    flags = ['--auto-scale-lr', *(['--amp'] if args.amp else [])]
    try:
        runs = plan(args)
        if not args.dry_run:
            check(runs, args.resume)
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')

    rows, measured = [], {}
    for run in runs:
        command = train_command(
            run.config, run.work_dir, run.seed, run.options, flags, gpus=args.gpus
        )
        done = complete(run.config, run.work_dir, run.epochs)
        if args.dry_run:
            print(f'# {run.work_dir}: {"complete" if done else "checkpoints and logs"}')
            print(shlex.join(command))
            continue
        if done:
            print(f'{run.work_dir} is complete', flush=True)
        elif subprocess.run(command).returncode:
            sys.exit(f'error: {run.work_dir} failed; the same command with --resume goes on')
        scores = logged(run.work_dir)
        row = dict(name=run.name, kind=run.kind, seed=run.seed, **last_scores(scores))
        if masks := last_scores(scores, 'segm'):
            row['mask AP'] = masks['AP']
        rows.append(row)
        if run.kind == 'pruned' and run.name not in measured:
            pair = [other for other in runs if other.name == run.name]
            measured[run.name] = speeds(pair, args.batch)
            for other in rows:
                other.update(measured[run.name][other['kind']] if other['name'] == run.name else {})
        elif run.name in measured:
            row.update(measured[run.name][run.kind])
        write_results(args.out, rows)
    if args.dry_run:
        print(f'# {args.out / "results.json"} and {args.out / "results.md"}: the table')
    else:
        print((args.out / 'results.md').read_text())


if __name__ == '__main__':
    main()
