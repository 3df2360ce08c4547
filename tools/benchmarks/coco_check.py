"""Times the loading of a COCO file: mmdet's CocoDataset against ours, which checks it.

Writes a file of random boxes to a temporary folder, loads it with each in turn, and prints
processor seconds and the ratio of each pair. At most 1.1 is wanted.

    python tools/benchmarks/coco_check.py --annotations 1000000
"""

import argparse
import contextlib
import gc
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from mmdet.datasets import CocoDataset as MMDetCocoDataset

from mcf_mm.datasets import CocoDataset

PER_IMAGE, CLASSES = 7, 80  # as in COCO's training set


def write_file(path: Path, number: int, polygons: bool) -> None:
    """Writes ``number`` annotations, with polygons of 20 points or without."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform([0, 0, 2, 2], [320, 240, 320, 240], (number, 4)).round(2)
    labels = rng.integers(1, CLASSES + 1, number)
    shape = rng.uniform(0, 1, (20, 2))
    annotations = []
    for index, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        polygon = (box[:2] + shape * box[2:]).round(2).ravel().tolist() if polygons else []
        annotations.append(
            dict(
                id=index + 1,
                image_id=index // PER_IMAGE,
                category_id=label,
                bbox=box,
                area=box[2] * box[3],
                iscrowd=0,
                segmentation=[polygon] if polygons else [],
            )
        )
    images = [
        dict(id=index, file_name=f'{index:012}.jpg', width=640, height=480)
        for index in range(number // PER_IMAGE + 1)
    ]
    categories = [dict(id=index + 1, name=f'class {index}') for index in range(CLASSES)]
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def seconds(kind: type, path: Path, masks: bool) -> float:
    """Processor time of ``full_init``."""
    dataset = kind(
        ann_file=str(path),
        metainfo=dict(classes=tuple(f'class {index}' for index in range(CLASSES))),
        data_prefix=dict(img=''),
        pipeline=[dict(type='mmdet.LoadAnnotations', with_mask=masks)],
        filter_cfg=dict(filter_empty_gt=True),
        lazy_init=True,
    )
    gc.collect()
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.full_init()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--annotations', type=int, default=1_000_000)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--masks', action='store_true', help='polygons, which the pipeline loads')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'boxes.json')
        write_file(path, args.annotations, args.masks)
        ratios = []
        for number in range(args.rounds):
            # In turn first, for the memory of one run is there for the next.
            kinds = [MMDetCocoDataset, CocoDataset][:: 1 if number % 2 else -1]
            times = {kind: seconds(kind, path, args.masks) for kind in kinds}
            theirs, ours = times[MMDetCocoDataset], times[CocoDataset]
            ratios.append(ours / theirs)
            print(f'mmdet {theirs:.2f} s, mcf_mm {ours:.2f} s, ratio {ours / theirs:.3f}')
    print(f'{args.annotations} annotations: median ratio {statistics.median(ratios):.3f}')


if __name__ == '__main__':
    main()
