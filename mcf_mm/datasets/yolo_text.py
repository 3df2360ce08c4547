"""Reads YOLO's text files as COCO's annotations; own code for the reasons in voc.py."""

import math
from collections.abc import Sequence
from pathlib import Path

import yaml

from mcf_mm.datasets.image_files import ImageFiles

#: Where class names stand, in this order, in the folder of labels or up to two above.
NAME_FILES = ('data.yaml', 'data.yml', 'dataset.yaml', 'classes.txt', 'obj.names')
#: How far rounding may take a share beyond the image.
TOLERANCE = 1e-3


def read_yolo(
    folder: str | Path, images: ImageFiles, classes: Sequence[str] | None = None
) -> tuple[dict, list[str]]:
    """Read all text files of a folder: ``class x y width height`` a line, as shares of the image.

    ``x`` and ``y`` are the centre. A polygon (``class x1 y1 x2 y2 ...``) becomes the box around it.

    Args:
        folder: Folder of text files, with its subfolders; each has the path of its image below
            ``images`` but for the ending.
        images: The images. One without a text file has no objects, as in Ultralytics.
        classes: Names of the classes 0, 1, 2 ... Defaults to None, those of a ``data.yaml`` or
            ``classes.txt`` in the folder or up to two above.

    Returns:
        Content of an annotation file of COCO, and what was guessed or replaced, a line each.

    Raises:
        ValueError: There is no text file or no list of classes; a text file has no image; or a line
            has no such numbers, a class that is not listed, or a box outside the image.
    """
    folder, notes = Path(folder), []
    if classes is None:
        source, classes = find_classes(folder)
        notes.append(f'class names are those of {source}')
    paths = {}
    for path in sorted(folder.rglob('*.txt')):
        if path.name in NAME_FILES:
            continue
        place = path.relative_to(folder).as_posix()
        name = images.find_stem(place)
        if name is None:
            raise ValueError(
                f'{path}: there is no image {place.removesuffix(".txt")}.* in {images.folder}. '
                'Add it, or delete the text file'
            )
        paths[name] = path
    if not paths:
        raise ValueError(f'{folder} has no .txt files with labels')
    content = dict(
        images=[],
        annotations=[],
        categories=[dict(id=number, name=name) for number, name in enumerate(classes, start=1)],
    )
    polygons = 0
    for number, name in enumerate(images.names, start=1):
        width, height = images.size(name)
        content['images'].append(dict(id=number, file_name=name, width=width, height=height))
        for label, (left, top, right, bottom), is_polygon in _lines(paths.get(name), classes):
            polygons += is_polygon
            box = [left * width, top * height, (right - left) * width, (bottom - top) * height]
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=number,
                    category_id=label + 1,
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                )
            )
    if alone := [name for name in images.names if name not in paths]:
        notes.append(
            f'{len(alone)} images without a text file count as images without objects '
            f'({alone[0]}, ...)'
        )
    if polygons:
        notes.append(f'{polygons} polygons are read as the boxes around them')
    return content, notes


def find_classes(folder: Path) -> tuple[Path, list[str]]:
    """The file of class names for a folder of labels, and the names.

    Raises:
        ValueError: There is no such file, or it has no names.
    """
    for place in (folder, *list(folder.resolve().parents)[:2]):
        for name in NAME_FILES:
            if (place / name).is_file():
                return place / name, _names(place / name)
    raise ValueError(
        f'{folder}: nothing says what the classes are called. Put a data.yaml or classes.txt '
        'there, or name them with --classes cat,dog'
    )


def _names(path: Path) -> list[str]:
    text = path.read_text(encoding='utf-8-sig')
    if path.suffix in ('.yaml', '.yml'):
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f'{path} is no YAML file: {error}') from error
        names = content.get('names') if isinstance(content, dict) else None
        if isinstance(names, dict):
            if sorted(names) != list(range(len(names))):
                raise ValueError(f'{path}: names are numbered {list(names)}, expected 0, 1, 2 ...')
            names = [names[number] for number in range(len(names))]
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
        raise ValueError(f'{path}: expected different names of classes, got {names!r}')
    return [str(name) for name in names]


def _lines(path: Path | None, classes: Sequence[str]) -> list[tuple[int, tuple, bool]]:
    """Label, left, top, right and bottom as shares, and whether it was a polygon, of each line."""
    found = []
    text = '' if path is None else path.read_text(encoding='utf-8-sig')
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f'{path}, line {number}: {line.strip()[:60]!r}'
        try:
            first, *shares = map(float, line.split())
        except ValueError:
            raise ValueError(f'{where}: expected numbers, class x y width height') from None
        is_polygon = len(shares) >= 6 and len(shares) % 2 == 0
        if len(shares) != 4 and not is_polygon or not all(map(math.isfinite, shares)):
            raise ValueError(
                f'{where}: expected five numbers, class x y width height, or a class and at least '
                'three points'
            )
        if first not in range(len(classes)):
            raise ValueError(
                f'{where}: class {first:g} is not one of 0 to {len(classes) - 1} '
                f'({", ".join(classes[:5])}). Correct it, or list the class'
            )
        if min(shares) < -TOLERANCE or max(shares) > 1 + TOLERANCE:
            raise ValueError(
                f'{where}: expected shares of the image from 0 to 1, not pixels; the box is '
                'outside the image otherwise'
            )
        if is_polygon:
            xs, ys = shares[::2], shares[1::2]
            box = (min(xs), min(ys), max(xs), max(ys))
        else:
            x, y, width, height = shares
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        found.append((int(first), box, is_polygon))
    return found
