"""Writes the config of a detector for your own images and boxes, after reading them once.

Annotations are COCO's JSON, Pascal VOC's XML or YOLO's text. Every annotation is checked and every
image decoded; what is guessed, left out or replaced is said. VOC and YOLO are converted to COCO.

    python tools/new_detector.py --images photos --annotations boxes --backbone deit-tiny \\
        --detector retinanet --out configs/mine.py
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.compat.mmcv_ops import has_operators
from mcf_mm.datasets.object_sizes import choose_size, size_table
from mcf_mm.datasets.own_data import (
    FORMATS,
    check_overlap,
    check_set,
    class_lines,
    class_names,
    coco_path,
    guess_format,
    read_set,
    split,
    unify_classes,
    write_set,
)
from mcf_mm.engine.detector_plan import duration, next_commands, plan, pruning_budget
from mcf_mm.engine.new_detector import DETECTORS, config_text, find_backbone
from mcf_mm.files import whole_file
from mcf_mm.shipped import command


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--images', required=True, help='folder of the images')
    parser.add_argument('--annotations', required=True, help='JSON file, or folder of XML or text')
    parser.add_argument(
        '--format', choices=tuple(FORMATS), help='of the annotations (default: by their endings)'
    )
    parser.add_argument(
        '--classes', help='names of the classes 0, 1 ... of yolo: cat,dog (default: data.yaml)'
    )
    parser.add_argument(
        '--val', help='annotations to validate on, same format (default: a part of the others)'
    )
    parser.add_argument('--val-images', help='folder of their images (default: as --images)')
    parser.add_argument(
        '--val-share', type=float, default=0.2, help='part of the images, without --val'
    )
    parser.add_argument('--seed', type=int, default=0, help='chooses that part')
    parser.add_argument(
        '--backbone', required=True, help='deit-tiny, deit-small, deit-base or a slim.safetensors'
    )
    parser.add_argument(
        '--checkpoint', help='weights of a dense backbone (default: checkpoints/<name>_in1k...)'
    )
    parser.add_argument('--detector', required=True, choices=tuple(DETECTORS))
    parser.add_argument(
        '--size', type=int, help='longer side of the images in pixels (default: by the boxes)'
    )
    parser.add_argument(
        '--max-size', type=int, help='limit of that (default: 640, with a GPU 1024)'
    )
    parser.add_argument('--out', required=True, type=Path, help='config file to write')
    parser.add_argument(
        '--data', type=Path, help='folder for COCO files that are made (default: data/<name>)'
    )
    parser.add_argument('--force', action='store_true', help='write over a config that is there')
    return parser.parse_args()


def prepare(
    args: argparse.Namespace, before: dict[Path, bytes | None]
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Annotation file and folder of images of both sets, and class names; converts if need be.

    What the files had in them before goes to ``before``.
    """
    kind = args.format or guess_format(args.annotations)
    if args.format is None:
        print(f'{args.annotations}: read as {kind} (say --format otherwise)')
    classes = [name.strip() for name in args.classes.split(',')] if args.classes else None
    images = dict(train=args.images, val=args.val_images or args.images)
    parts = {}
    sources = dict(train=args.annotations, val=args.val)
    for name, source in sources.items():
        if source is not None:
            parts[name], notes = read_set(source, images[name], kind, classes)
            for note in notes:
                print(f'{source}: {note}')
    is_split = args.val is None
    if is_split:
        parts['train'], parts['val'] = split(parts['train'], args.val_share, args.seed)
        print(
            f'no --val: {len(parts["val"]["images"])} of the images, chosen with seed {args.seed}, '
            f'are to validate on and {len(parts["train"]["images"])} to train on'
        )
    else:
        check_overlap(parts['train'], parts['val'], images['train'], images['val'])
    if kind == 'voc' and class_names(parts['val']) != class_names(parts['train']):
        unify_classes(parts['train'], parts['val'])
    print('\n'.join(class_lines(parts)))
    folder = args.data or Path('data') / args.out.stem
    files = {}
    for name, source in sources.items():
        if kind == 'coco' and not is_split:
            files[name] = (str(coco_path(source)), images[name])
        else:
            files[name] = (str(folder / f'{name}.json'), images[name])
            remember(Path(files[name][0]), before)
            write_set(parts[name], files[name][0])
            print(f'wrote {files[name][0]}')
    return files, class_names(parts['train'])


def remember(path: Path, before: dict[Path, bytes | None]) -> None:
    """Remember what a file has in it, None for one that is not there."""
    before[path] = path.read_bytes() if path.is_file() else None


def put_back(before: dict[Path, bytes | None]) -> None:
    """Leave files as they were: what failed leaves nothing behind and nothing changed."""
    for path, content in before.items():
        if content is None:
            path.unlink(missing_ok=True)
        elif path.read_bytes() != content:
            with whole_file(path) as partial:
                partial.write_bytes(content)


def main() -> None:
    args = parse_args()
    before: dict[Path, bytes | None] = {}
    try:
        run(args, before)
    except (ValueError, OSError) as error:
        put_back(before)
        sys.exit(f'error: {error}')
    except BaseException:
        put_back(before)
        raise


def run(args: argparse.Namespace, before: dict[Path, bytes | None]) -> None:
    """Read, check, write the config, and say what to do next."""
    if args.out.exists() and not args.force:
        raise ValueError(f'{args.out} is there already: name another --out, or say --force')
    backbone = find_backbone(args.backbone, args.checkpoint)
    files, classes = prepare(args, before)
    boxes = check_set(*files['train'], classes, 'training')
    val = check_set(*files['val'], classes, 'validation', is_val=True)
    print(
        f'{len(boxes.images)} images with {len(boxes.rows)} boxes to train on, '
        f'{len(val.images)} with {len(val.rows)} to validate on, {len(classes)} classes'
    )
    has_gpu = torch.cuda.is_available()
    max_size = args.max_size or (1024 if has_gpu else 640)
    size, reason = choose_size(boxes, max_size, args.size)
    print(f'image size {size}: {reason}\n{size_table(boxes, size)}')
    schedule = plan(len(boxes.images), args.detector, has_gpu)
    print(
        f'{schedule.epochs} epochs, batch {schedule.batch}, learning rate {schedule.lr:.3g}, '
        f'for training on {"a GPU" if has_gpu else "the CPU"}: by the number of images, to '
        'start from'
    )
    started = f'{command("new_detector")} {shlex.join(sys.argv[1:])}'
    text = config_text(
        args.detector, backbone, classes, files, boxes, size, schedule, args.out, started
    )
    remember(args.out, before)
    with whole_file(args.out) as partial:
        partial.write_text(text, encoding='utf-8')
    budget, costs = pruning_budget(args.out)
    print(f'wrote {args.out}: {costs}')
    if args.detector == 'yolos':
        print('YOLOS learns slowly: take retinanet or faster-rcnn for some hundred images')
    if args.detector == 'retinanet' and has_gpu and not has_operators():
        print(
            "mmdet's focal loss needs mmcv's compiled operators on a GPU: none here, so take "
            'faster-rcnn or install them'
        )
    print(duration(args.out, schedule, len(boxes.images)))
    print(f'Next:\n\n{next_commands(args.out, *files["val"], schedule, budget)}')


if __name__ == '__main__':
    main()
