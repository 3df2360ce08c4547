"""Draws what a slim checkpoint keeps of each layer, and its parameters and MACs by part."""

import argparse
import sys
from pathlib import Path

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.engine.config import load_config
from mcf_mm.engine.report import report_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='example: python tools/report.py work_dirs/pruned/slim.safetensors '
        '--config work_dirs/pruned/slim.py --out work_dirs/pruned/report',
    )
    parser.add_argument('checkpoint', help='pruned weights, such as slim.safetensors')
    parser.add_argument('--config', required=True, help='slim.py, or the config of the dense one')
    parser.add_argument('--out', required=True, type=Path, help='folder for the PNG files')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        paths = report_checkpoint(load_config(args.config), args.checkpoint, args.out)
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    for path in paths:
        print(path)


if __name__ == '__main__':
    main()
