"""Makes a data set of one's own into what mmdet trains on: one or two COCO files, checked."""

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import track

from mcf_mm.datasets.coco import CocoDataset
from mcf_mm.datasets.coco_file import CocoFile
from mcf_mm.datasets.image_files import ImageFiles
from mcf_mm.datasets.voc import read_voc
from mcf_mm.datasets.yolo_text import NAME_FILES, read_yolo
from mcf_mm.files import write_json

FORMATS = {'coco': '.json', 'voc': '.xml', 'yolo': '.txt'}


class Boxes(NamedTuple):
    """What a set has, crowds and what training leaves out apart."""

    #: (N, 2) width and height of each box in pixels of its image.
    sides: np.ndarray
    #: (N,) number of the image that each box is in.
    rows: np.ndarray
    #: (M, 2) width and height of each image in pixels.
    images: np.ndarray


def guess_format(annotations: str | Path) -> str:
    """Tell ``coco``, ``voc`` and ``yolo`` apart by the endings of files.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It is empty, or has files of several formats.
    """
    path = Path(annotations)
    if path.is_file():
        if path.suffix.lower() == '.json':
            return 'coco'
        raise ValueError(
            f'{path} is no .json file (coco); voc is a folder of .xml, yolo one of .txt files'
        )
    if not path.is_dir():
        raise FileNotFoundError(f'no file or folder of annotations {path}')
    found = Counter(file.suffix.lower() for file in path.rglob('*') if file.name not in NAME_FILES)
    formats = [name for name, suffix in FORMATS.items() if found[suffix]]
    if len(formats) != 1:
        counts = ', '.join(f'{found[suffix]} {suffix}' for suffix in FORMATS.values())
        raise ValueError(
            f'{path} has {counts} files: expected one kind, of coco, voc or yolo. '
            'Say --format, or name another folder'
        )
    return formats[0]


def read_set(
    annotations: str | Path,
    images: str | Path,
    kind: str,
    classes: Sequence[str] | None = None,
) -> tuple[dict, list[str]]:
    """Read annotations of any of the formats.

    Args:
        annotations: File or folder.
        images: Folder of the images.
        kind: ``'coco'``, ``'voc'`` or ``'yolo'``.
        classes: Names of YOLO's classes. Defaults to None, those of a file beside the labels.

    Returns:
        Content of an annotation file of COCO, and what was guessed or replaced, a line each.

    Raises:
        ValueError: See :func:`mcf_mm.datasets.voc.read_voc`,
            :func:`mcf_mm.datasets.yolo_text.read_yolo` and
            :class:`mcf_mm.datasets.coco_file.CocoFile`; or an image of a COCO file is not there.
    """
    if classes is not None and kind != 'yolo':
        raise ValueError(f'--classes names those of yolo; {kind} says them itself')
    files = ImageFiles(images)
    if kind == 'voc':
        return read_voc(annotations, files)
    if kind == 'yolo':
        return read_yolo(annotations, files, classes)
    path = coco_path(annotations)
    content = CocoFile(str(path)).dataset
    for image in content['images']:
        name = image.get('file_name')
        if not isinstance(name, str) or not (files.folder / name).is_file():
            raise ValueError(
                f'{path}: image id {image["id"]} has file_name {name!r}: there is no such file in '
                f'{images}. Correct it, or name the folder that file_name starts from'
            )
    return content, []


def coco_path(annotations: str | Path) -> Path:
    """The file itself, or the only JSON file of a folder.

    Raises:
        ValueError: There are none or several.
    """
    path = Path(annotations)
    if path.is_dir():
        found = sorted(path.glob('*.json'))
        if len(found) != 1:
            raise ValueError(
                f'{path} has {len(found)} .json files: name one, and another with --val'
            )
        return found[0]
    return path


def split(content: dict, share: float, seed: int) -> tuple[dict, dict]:
    """Part the images of a set at random, with their annotations.

    Args:
        content: Content of an annotation file of COCO.
        share: Share of the images for validation, from 0 to 1.
        seed: Of the choice; the same seed gives the same parts.

    Returns:
        Training and validation, each in the order of the file and with all categories.

    Raises:
        ValueError: ``share`` is not between 0 and 1, or a part would be empty.
    """
    images = content['images']
    count = round(share * len(images))
    if not 0 < share < 1 or not 0 < count < len(images):
        raise ValueError(
            f'a share of {share} of {len(images)} images is {count} to validate on: expected at '
            'least one, and one to train on'
        )
    chosen = set(random.Random(seed).sample(range(len(images)), count))
    val_ids = {images[number]['id'] for number in chosen}
    annotations = content.get('annotations') or []
    parts = []
    for is_val in (False, True):
        part = [image for number, image in enumerate(images) if (number in chosen) == is_val]
        # Those of images that are not listed stay in training, where they are counted.
        rows = [row for row in annotations if (row['image_id'] in val_ids) == is_val]
        parts.append({**content, 'images': part, 'annotations': rows})
    return parts[0], parts[1]


def check_overlap(
    training: dict, validation: dict, train_folder: str | Path, val_folder: str | Path
) -> None:
    """Refuse images that are in both sets.

    Raises:
        ValueError: There are such; the first three are named.
    """
    files = [
        {(Path(folder) / image['file_name']).resolve() for image in content['images']}
        for content, folder in ((training, train_folder), (validation, val_folder))
    ]
    if both := sorted(path.name for path in files[0] & files[1]):
        raise ValueError(
            f'{len(both)} images are in training and in validation, {", ".join(both[:3])} ...: '
            'results would say nothing. Take them out of one, or leave --val out for a split'
        )


def write_set(content: dict, path: str | Path) -> None:
    """Write an annotation file of COCO."""
    write_json(path, content)


def class_names(content: dict) -> list[str]:
    """Names of the categories in the order of the file, which numbers mmdet's labels."""
    return [category['name'] for category in content['categories']]


def class_lines(parts: Mapping[str, dict]) -> list[str]:
    """How many boxes each class has, and which class may be a slip of the pen.

    The formats of VOC and YOLO list no classes: a name that is misspelt once is a class more.

    Args:
        parts: Content of annotation files of COCO, by what to call them, ``'train'``.

    Returns:
        Lines for the user: one for each class, then one for each that is spelt almost like another
        and has at most a tenth of its boxes, with the first image that has it.
    """
    counts: dict[str, Counter[str]] = {}
    first: dict[str, str] = {}
    for part, content in parts.items():
        names = {row['id']: row['name'] for row in content['categories']}
        images = {row['id']: row['file_name'] for row in content['images']}
        counts |= {name: Counter() for name in names.values() if name not in counts}
        for annotation in content['annotations']:
            name = names.get(annotation.get('category_id'))
            if name is not None:  # what does not fit stops in check_set, by name
                counts[name][part] += 1
                first.setdefault(name, images.get(annotation.get('image_id'), 'no image'))
    lines = [
        f'class {name}: boxes in {", ".join(f"{part} {own[part]}" for part in parts)}'
        for name, own in counts.items()
    ]
    for name, own in counts.items():
        others = [other for other in counts if other != name]
        for other in get_close_matches(name, others, 1, cutoff=0.85):
            if 0 < 10 * own.total() <= counts[other].total():
                lines.append(
                    f'class {name!r} is spelt almost like {other!r} and has {own.total()} boxes, '
                    f'the first in {first[name]}: if that is a slip, correct it and start again'
                )
    return lines


def unify_classes(training: dict, validation: dict) -> None:
    """Number the categories of both sets alike, by name, in place; as VOC's say no order.

    Args:
        training: Content of an annotation file of COCO.
        validation: The other.
    """
    names = sorted({*class_names(training), *class_names(validation)})
    for content in (training, validation):
        numbers = {row['id']: names.index(row['name']) + 1 for row in content['categories']}
        for annotation in content['annotations']:
            annotation['category_id'] = numbers[annotation['category_id']]
        content['categories'] = [dict(id=n, name=name) for n, name in enumerate(names, start=1)]


def check_set(
    path: str | Path,
    images: str | Path,
    classes: Sequence[str],
    title: str,
    *,
    is_val: bool = False,
) -> Boxes:
    """Read a set as training does: each annotation is checked and each image decoded.

    Args:
        path: Annotation file of COCO.
        images: Folder of its images.
        classes: Names of the classes.
        title: What to call the set, ``'training'``.
        is_val: Whether it is for evaluation. Defaults to False.

    Returns:
        The boxes, without crowds and what mmdet leaves out.

    Raises:
        ValueError: See :class:`mcf_mm.datasets.CocoDataset` and
            :class:`mcf_mm.datasets.LoadImageFromFile`; or there is not a single box.
    """
    dataset = CocoDataset(
        ann_file=str(path),
        data_prefix=dict(img=str(images)),
        metainfo=dict(classes=tuple(classes)),
        pipeline=[dict(type='mcf_mm.LoadImageFromFile')],
        test_mode=is_val,
    )
    sides, rows, sizes, counts = [], [], [], Counter()
    numbers = range(len(dataset))
    console = Console(stderr=True)
    for number in track(numbers, f'reading {title}', console=console, transient=True):
        info = dataset.get_data_info(number)
        dataset.pipeline(dict(info))
        sizes.append((info['width'], info['height']))
        for instance in info['instances']:
            if not instance['ignore_flag']:
                left, top, right, bottom = instance['bbox']
                sides.append((right - left, bottom - top))
                rows.append(number)
                counts[instance['bbox_label']] += 1
    if not sides:
        raise ValueError(f'{path}: {title} has not a single box, in {len(dataset)} images')
    if missing := [name for label, name in enumerate(classes) if not counts[label]]:
        print_log(
            f'{path}: no box of {", ".join(missing[:5])} in {title}',
            logger='current',
            level=logging.WARNING,
        )
    return Boxes(
        np.array(sides, dtype=float).reshape(-1, 2),
        np.array(rows, dtype=np.int64),
        np.array(sizes, dtype=float),
    )
