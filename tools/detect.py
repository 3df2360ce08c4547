"""Draws the boxes that a detector finds in images, or those of two detectors side by side."""

import argparse
import contextlib
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.analysis.detections import Detector, draw_detections, find_images, name_pictures
from mcf_mm.engine.config import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Draws the boxes that a detector finds in images, or those of two detectors '
        'side by side, and says how many there are. Pictures have the names of the images. Class '
        'names are those of the checkpoint, or of the config where it has none.',
        epilog='example: python tools/detect.py photo.jpg more_photos/ '
        '--config configs/yolos/yolos_deit-tiny_8xb2-300e_coco.py --checkpoint dense.pth '
        '--against work_dirs/pruned/slim.py work_dirs/pruned/slim.safetensors --out pictures',
    )
    parser.add_argument(
        'images', nargs='+', metavar='IMAGE', help='image file, or a folder of them'
    )
    parser.add_argument('--config', required=True, help='config of a detector of mmdet or mcf_mm')
    parser.add_argument('--checkpoint', required=True, help='its weights, .pth or .safetensors')
    parser.add_argument(
        '--against',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a second detector, whose boxes are drawn in a copy of the image to the right',
    )
    parser.add_argument('--out', required=True, type=Path, help='folder for the pictures')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='draw boxes with a higher score (default: 0.3)'
    )
    parser.add_argument('--device', help="'cpu', 'cuda:0' ... (default: a GPU if there is one)")
    return parser.parse_args()


def load_detectors(args: argparse.Namespace) -> list[Detector]:
    """The one or two detectors, with titles that tell them apart."""
    sources = [(args.config, args.checkpoint), *([args.against] if args.against else [])]
    titles = [Path(config).stem for config, _ in sources]
    if len(set(titles)) < len(titles):
        titles = [checkpoint for _, checkpoint in sources]
    return [
        Detector(load_config(config), checkpoint, title, args.device)
        for (config, checkpoint), title in zip(sources, titles, strict=True)
    ]


def main() -> None:
    args = parse_args()
    try:
        # Before the networks are loaded, which takes longer.
        pictures = name_pictures(find_images(args.images), args.out)
        # Whatever the libraries say goes to stderr, so that stdout can be piped.
        with contextlib.redirect_stdout(sys.stderr):
            detectors = load_detectors(args)
    # RuntimeError: no such device, or a damaged checkpoint. AssertionError: mmpretrain's way to
    # say that weights do not fit.
    except (ValueError, OSError, RuntimeError, AssertionError) as error:
        sys.exit(f'error: {error}')
    failed = 0
    # The bar is on stderr; in a terminal lines go above it.
    with Progress(
        console=Console(stderr=True),
        disable=len(pictures) == 1,
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:
        for image, picture in progress.track(pictures.items(), description='images'):
            try:
                counts = draw_detections(image, detectors, picture, args.score_thr)
            except (ValueError, OSError) as error:
                print(f'error: {error}', file=sys.stderr)
                failed += 1
                continue
            boxes = ' and '.join(f'{count} box{"" if count == 1 else "es"}' for count in counts)
            print(f'{image}: {boxes}, drawn to {picture}')
    if failed:
        sys.exit(f'error: {failed} of {len(pictures)} images could not be read or drawn')


if __name__ == '__main__':
    main()
