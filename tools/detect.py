"""Draws the boxes of a detector, or of two side by side, in images and videos."""

import argparse
import contextlib
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.analysis.detections import (
    IMG_EXTENSIONS,
    Detector,
    draw_detections,
    find_inputs,
    find_listed,
    name_pictures,
)
from mcf_mm.analysis.videos import VIDEO_EXTENSIONS, draw_video
from mcf_mm.engine.config import load_config
from mcf_mm.pruning import find_units


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Draws the boxes that a detector finds in images and videos, or those of two '
        'detectors side by side, and says how many there are. Pictures have the names of the '
        'images; a video becomes .mp4 with as many frames per second, without sound. Class names '
        'are those of the checkpoint, or of the config where it has none.',
        epilog='example: python tools/detect.py photo.jpg more_photos/ '
        '--config configs/yolos/yolos_deit-tiny_8xb2-300e_coco.py --checkpoint dense.pth '
        '--against work_dirs/pruned/slim.py work_dirs/pruned/slim.safetensors --out pictures',
    )
    parser.add_argument(
        'images',
        nargs='+',
        metavar='INPUT',
        help='image or video file, or a folder of them (without the folders in it)',
    )
    parser.add_argument(
        '--only',
        metavar='FILE',
        help="COCO's JSON: in the folders only the images that it lists, such as those to validate "
        'on; also those in folders within',
    )
    parser.add_argument('--config', required=True, help='config of a detector of mmdet or mcf_mm')
    parser.add_argument('--checkpoint', required=True, help='its weights, .pth or .safetensors')
    parser.add_argument(
        '--against',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a second detector, whose boxes are drawn in a copy to the right',
    )
    parser.add_argument('--out', required=True, type=Path, help='folder for what is drawn')
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
    detectors = [
        Detector(load_config(config), checkpoint, title, args.device)
        for (config, checkpoint), title in zip(sources, titles, strict=True)
    ]
    for detector in detectors:
        pruned = find_units(detector.model).are_pruned
        detector.title += ' (pruned)' if pruned else ' (dense)'
    return detectors


def draw(
    source: Path, target: Path, detectors: list[Detector], score_thr: float, progress: Progress
) -> str:
    """Draws an image or a video; returns what was found."""
    if source.suffix.lower() in VIDEO_EXTENSIONS:
        task = progress.add_task(source.name, total=None)
        try:
            frames, promised, counts = draw_video(
                source,
                detectors,
                target,
                score_thr,
                lambda number, total: progress.update(task, completed=number, total=total),
            )
        finally:
            progress.remove_task(task)
        told = '' if frames == promised else f' ({promised} by the header)'
        where = f' in {frames} frames{told}'
    else:
        counts = draw_detections(source, detectors, target, score_thr)
        where = ''
    boxes = ' and '.join(f'{count} box{"" if count == 1 else "es"}' for count in counts)
    return f'{boxes}{where}'


def main() -> None:
    args = parse_args()
    try:
        # Before the networks are loaded, which takes longer.
        if args.only is None:
            sources, skipped = find_inputs(args.images, (*IMG_EXTENSIONS, *VIDEO_EXTENSIONS))
        else:
            sources, skipped = find_listed(args.images, args.only), []
        pictures = name_pictures(sources, args.out, VIDEO_EXTENSIONS)
        for line in skipped:
            print(line, file=sys.stderr)
        # Whatever the libraries say goes to stderr, so that stdout can be piped.
        with contextlib.redirect_stdout(sys.stderr):
            detectors = load_detectors(args)
    # RuntimeError: no such device, or a damaged checkpoint. AssertionError: mmpretrain's way to
    # say that weights do not fit.
    except (ValueError, OSError, RuntimeError, AssertionError) as error:
        sys.exit(f'error: {error}')
    failed = 0
    one_image = len(sources) == 1 and sources[0].suffix.lower() in IMG_EXTENSIONS
    # The bar is on stderr; in a terminal lines go above it.
    with Progress(
        console=Console(stderr=True), disable=one_image, redirect_stdout=sys.stdout.isatty()
    ) as progress:
        for source, picture in progress.track(pictures.items(), description='files'):
            try:
                found = draw(source, picture, detectors, args.score_thr, progress)
            except (ValueError, OSError) as error:
                print(f'error: {error}', file=sys.stderr)
                failed += 1
                continue
            print(f'{source}: {found}, drawn to {picture}')
    if failed:
        sys.exit(f'error: {failed} of {len(pictures)} files could not be read or drawn')


if __name__ == '__main__':
    main()
