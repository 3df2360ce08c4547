"""Writes the report of a pruned network: pictures, and a page that needs no other file.

The page, ``report/index.html`` beside the weights, says what was cut where, why, what it saves, how
the network trained and how it was made. tools/prune.py and the pruning hooks write it too; what
takes more work is added here, each only where it is asked for:

    python tools/report.py work_dirs/pruned
    python tools/report.py work_dirs/pruned --throughput --dense checkpoints/dense.pth
    python tools/report.py work_dirs/detector --dense dense.pth --dense-config dense.py \\
        --images photos/*.jpg
    python tools/report.py slim.safetensors --config slim.py --out report
"""

import argparse
import sys
from pathlib import Path

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.analysis.record import sampled_curves
from mcf_mm.engine.config import load_config
from mcf_mm.engine.report import (
    REPORT,
    check_options,
    dense_config,
    find_run,
    known_record,
    record_of_checkpoint,
    report_checkpoint,
    time_networks,
)
from mcf_mm.engine.run_page import report_run
from mcf_mm.engine.samples import classify_samples, draw_samples
from mcf_mm.pruning.curves import read_curves


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'checkpoint', help='work directory of a run, or pruned weights such as slim.safetensors'
    )
    parser.add_argument(
        '--config',
        help='slim.py, or the config of the dense network (default: the .py file beside the '
        'weights)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='folder for the page and the PNG files (default: report beside the weights)',
    )
    parser.add_argument('--curves', metavar='FILE', help='cost curves, of tools/prune.py --curves')
    parser.add_argument(
        '--throughput', action='store_true', help='time the dense and the pruned network'
    )
    parser.add_argument('--batch', type=int, default=16, help='images at a time when timing')
    parser.add_argument('--rounds', type=int, default=9, help='passes of each network when timing')
    parser.add_argument(
        '--dense', metavar='CHECKPOINT', help='dense weights: show what both networks predict'
    )
    parser.add_argument(
        '--dense-config', help='config of --dense (default: that of the pruned one, without sizes)'
    )
    parser.add_argument(
        '--images', nargs='+', metavar='FILE', help='images in which two detectors are compared'
    )
    parser.add_argument(
        '--samples', type=int, default=8, help='images on which two classifiers are compared'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        checkpoint, path = find_run(args.checkpoint, args.config)
        config = load_config(str(path))
        check_options(config, args.dense, args.images)
        out = args.out or checkpoint.parent / REPORT
        curves = None if args.curves is None else sampled_curves(read_curves(args.curves))
        pictures = report_checkpoint(config, checkpoint, out)
        record = known_record(out, checkpoint) or known_record(
            checkpoint.parent / REPORT, checkpoint
        )
        record = record or record_of_checkpoint(config, checkpoint)
        if curves is not None:
            record.curves = curves
        if args.throughput:
            record.throughput = time_networks(config, record.sizes, args.batch, args.rounds)
        found: dict = {}
        if args.dense is not None:
            dense = load_config(args.dense_config) if args.dense_config else dense_config(config)
            networks = {'dense': (dense, args.dense), 'pruned': (config, checkpoint)}
            if args.images:
                images = [Path(image) for image in args.images]
                found['detections'] = draw_samples(networks, images)
            else:
                found['samples'] = classify_samples(networks, args.samples)
        record.save(out)
        page = report_run(checkpoint, path, out, record, **found)
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    for path in (*pictures, page):
        print(path)


if __name__ == '__main__':
    main()
