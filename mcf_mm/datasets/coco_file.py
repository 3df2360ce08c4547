"""Reads annotation files of COCO's format as people have them."""

import contextlib
import gc
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from mmdet.datasets.api_wrappers import COCO
from mmengine.logging import print_log

from mcf_mm.datasets.coco_masks import mask_fault

#: What pycocotools asks of each entry; ``bbox`` and ``area`` are asked for by annotation.
KEYS = dict(images=('id',), annotations=('image_id', 'category_id'), categories=('id', 'name'))


class CocoFile(COCO):
    """mmdet's COCO, which checks a file, and repairs in memory what has one meaning only.

    Annotation ids are numbered anew unless they are distinct whole numbers from 1:
    pycocotools takes id 0 for "no match" and the last of equal ids for all. ``iscrowd`` counts as
    0 where there is none. Ids of images and categories may be text here and numbers there.
    Each is one line of the log. The file stays as it is.

    Args:
        annotation_file: The file: JSON in UTF-8, UTF-16 or UTF-32, with or without a byte order
            mark. Defaults to None, no content.
        name: What errors call it. Defaults to ``annotation_file``.

    Attributes:
        rows (ndarray): For each annotation the number of its image, -1 where none is listed.
        boxes (ndarray): (N, 4), as written.
        areas (ndarray): (N,).

    Raises:
        ValueError: The file is no JSON, lists no image or one image id twice; an entry lacks a key;
            a box or area is no finite number; ``iscrowd`` is neither 0 nor 1; a category is not
            listed; or ids are text and numbers that cannot be matched.
    """

    def __init__(self, annotation_file: str | None = None, name: str | None = None):
        super().__init__()
        if annotation_file is None:
            return
        self.name = name or str(annotation_file)
        self.dataset = read_json(annotation_file, self.name)
        self._check_entries()
        self._unify_ids()
        self._number_annotations()
        self._check_annotations()
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    @property
    def annotations(self) -> list[dict]:
        """All of them, in the order of the file."""
        return self.dataset.get('annotations') or []

    def title(self, number: int) -> str:
        """Names an annotation as the file does."""
        annotation, image = self.annotations[number], self._image(number)
        name = annotation.get('id') if self.ids is None else self.ids[number]
        if image is None:
            return f'annotation {name} of image id {annotation["image_id"]!r}'
        return f'annotation {name} of {image.get("file_name")}'

    def refuse(self, number: int, fault: str) -> NoReturn:
        """Raises a ValueError that names the annotation."""
        image = self._image(number)
        place = '' if image is None else f' (image id {image["id"]})'
        raise ValueError(f'{self.name}: {self.title(number)}{place} {fault}')

    def check_masks(self, numbers: np.ndarray | None = None) -> None:
        """Refuses segmentations that pycocotools would misread or crash on.

        Args:
            numbers: Which annotations. Defaults to all of images that the file lists.

        Raises:
            ValueError: See :func:`mcf_mm.datasets.coco_masks.mask_fault`; or there is none.
        """
        for number in (np.flatnonzero(self.rows >= 0) if numbers is None else numbers).tolist():
            image = self.dataset['images'][self.rows[number]]
            segmentation = self.annotations[number].get('segmentation')
            if not segmentation:
                self.refuse(number, "has no 'segmentation', and masks are asked for")
            if fault := mask_fault(segmentation, image.get('height'), image.get('width')):
                self.refuse(number, fault)

    def warn(self, text: str) -> None:
        """A line of the log that names the file."""
        print_log(f'{self.name}: {text}', logger='current', level=logging.WARNING)

    def _image(self, number: int) -> dict | None:
        # The index is made last, and errors are rare.
        wanted = self.annotations[number].get('image_id')
        return next((image for image in self.dataset['images'] if image['id'] == wanted), None)

    def _check_entries(self) -> None:
        content, self.ids = self.dataset, None
        if not isinstance(content, dict) or not content.get('categories'):
            raise ValueError(
                f"{self.name} has no 'categories': it is no file of COCO's annotations"
            )
        if not content.get('images'):
            raise ValueError(f'{self.name} lists no images')
        for kind, keys in KEYS.items():
            if kind in content and content[kind] is None:
                content[kind] = []
            entries = content.get(kind, [])
            try:
                for key in keys:
                    values = list(map(itemgetter(key), entries))
                    if key == 'id' and None in values:
                        raise KeyError
            except (KeyError, TypeError):
                self.refuse_incomplete(kind, keys)
                raise

    def refuse_incomplete(self, kind: str, keys: tuple[str, ...]) -> None:
        """Names the first entry without one of the keys."""
        entries = self.dataset.get(kind) or []
        if not isinstance(entries, list):
            raise ValueError(f'{self.name}: {kind} is a {type(entries).__name__}, expected a list')
        for entry in entries:
            if not isinstance(entry, dict):
                raise ValueError(f'{self.name}: entry of {kind} is no object: {entry!r}')
            for key in keys:
                if entry.get(key) is None:
                    raise ValueError(f'{self.name}: entry of {kind} without {key!r}: {entry}')

    def _unify_ids(self) -> None:
        """Makes ids that are text here and numbers there equal, where that is unambiguous."""
        for kind, key in (('images', 'image_id'), ('categories', 'category_id')):
            entries = self.dataset[kind]
            ids = [entry['id'] for entry in entries]
            for entry in entries:
                if not isinstance(entry['id'], int | float | str):
                    raise ValueError(
                        f'{self.name}: id of {kind} is {entry["id"]!r}, expected a number: {entry}'
                    )
            if len({isinstance(value, str) for value in ids}) == 2:
                if len({_number(value) for value in ids}) < len(ids) or any(
                    isinstance(_number(value), str) for value in ids
                ):
                    texts = [value for value in ids if isinstance(value, str)]
                    raise ValueError(
                        f'{self.name}: some ids of {kind} are numbers and some text, such as '
                        f'{texts[:3]}: write all as different whole numbers'
                    )
                for entry in entries:
                    entry['id'] = _number(entry['id'])
            if kind == 'images' and len(set(ids)) != len(ids):
                twice = Counter(ids).most_common(1)[0][0]
                files = [image.get('file_name') for image in entries if image['id'] == twice]
                raise ValueError(
                    f'{self.name}: image id {twice!r} is that of {files}: give each its own'
                )
            self._match(key, {entry['id'] for entry in entries}, kind)

    def _match(self, key: str, known: set, kind: str) -> None:
        try:
            unknown = {annotation[key] for annotation in self.annotations} - known
        except TypeError:  # a list or an object
            number = next(
                n
                for n, annotation in enumerate(self.annotations)
                if isinstance(annotation[key], list | dict)
            )
            self.refuse(number, f'has {key} {self.annotations[number][key]!r}: expected one id')
        if not unknown:
            return
        same: dict[Any, list] = {}
        for value in known:
            same.setdefault(_number(value), []).append(value)
        found = {value: same[_number(value)] for value in unknown if _number(value) in same}
        for number, annotation in enumerate(self.annotations):
            if (value := annotation[key]) in found:
                if len(found[value]) > 1:
                    self.refuse(
                        number,
                        f'has {key} {value!r}, which may be any of {found[value]} among the '
                        f'{kind}: write the same there and here',
                    )
                annotation[key] = found[value][0]
        if found:
            value, (other,) = next(iter(found.items()))
            self.warn(f'{key} {value!r} of annotations is read as id {other!r} of {kind}')

    def _number_annotations(self) -> None:
        """Gives the annotations ids from 1, unless they have such; ``ids`` keeps theirs."""
        ids = [annotation.get('id') for annotation in self.annotations]
        try:
            if not ids or {int} == set(map(type, ids)) and min(ids) > 0:
                if len(set(ids)) == len(ids):
                    return
                reason = f'id {Counter(ids).most_common(1)[0][0]} is that of several'
            else:
                wrong = next(value for value in ids if type(value) is not int or value < 1)
                reason = f'id {wrong!r} is no whole number from 1'
        except TypeError:
            reason = 'ids are no numbers'
        self.ids = ids
        for number, annotation in enumerate(self.annotations, start=1):
            annotation['id'] = number
        self.warn(f'annotations are numbered anew in memory, for pycocotools: {reason}')

    def _check_annotations(self) -> None:
        annotations = self.annotations
        try:
            boxes = list(map(itemgetter('bbox'), annotations))
            areas = list(map(itemgetter('area'), annotations))
        except KeyError as error:
            (key,) = error.args
            number = next(n for n, annotation in enumerate(annotations) if key not in annotation)
            advice = ': write width * height, or the pixels of the mask' if key == 'area' else ''
            self.refuse(number, f'has no {key!r}{advice}')
        self.boxes, self.areas = _finite(boxes, (len(boxes), 4)), _finite(areas, (len(areas),))
        if self.boxes is None or self.areas is None:
            number = next(
                n for n, values in enumerate(zip(boxes, areas, strict=True)) if not _is_box(*values)
            )
            self.refuse(
                number,
                f'has bbox {boxes[number]} and area {areas[number]}: expected '
                '[x, y, width, height] in pixels, all finite numbers',
            )
        known = {category['id'] for category in self.dataset['categories']}
        if {annotation['category_id'] for annotation in annotations} - known:
            number = next(n for n, a in enumerate(annotations) if a['category_id'] not in known)
            self.refuse(
                number,
                f'has category_id {annotations[number]["category_id"]!r}, which is not among the '
                f'categories of the file: {sorted(known)}. Correct it, or list the category',
            )
        self._check_crowds()
        order = {image['id']: number for number, image in enumerate(self.dataset['images'])}
        self.rows = np.array([order.get(a['image_id'], -1) for a in annotations], dtype=np.int64)

    def _check_crowds(self) -> None:
        values = [annotation.get('iscrowd') for annotation in self.annotations]
        if all(value in (0, 1) for value in set(map(_hashable, values))):
            return
        for number, (annotation, value) in enumerate(zip(self.annotations, values, strict=True)):
            # Missing, or text: for mmdet '0' is a crowd, as any text.
            value = {None: 0, '0': 0, '1': 1}.get(_hashable(value), value)
            if value not in (0, 1):
                self.refuse(number, f'has iscrowd {value!r}: write 0 for an object, 1 for a crowd')
            annotation['iscrowd'] = value
        if missing := values.count(None):
            self.warn(f"{missing} annotations without 'iscrowd' are no crowds")
        if texts := sum(isinstance(value, str) for value in values):
            self.warn(f'iscrowd of {texts} annotations is text and read as 0 or 1')


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """What annotations are made of is no garbage; to look for some takes half of the time."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()


def read_json(path: str | Path, name: str) -> Any:
    """Content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        ValueError: It is no such file.
    """
    try:
        with no_garbage_collection():
            return json.loads(Path(path).read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f'{name} is no JSON file: {error}') from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{name} is no JSON file in UTF-8, UTF-16 or UTF-32: {error}. Save it as UTF-8'
        ) from error


def _finite(values: list, shape: tuple[int, ...]) -> np.ndarray | None:
    """The numbers as an array of that shape; None if they are no finite numbers."""
    try:
        # Without a type: with one, NumPy would read text.
        array = np.array(values) if values else np.zeros(shape)
        if array.dtype == object and all(map(_is_number, array.flat)):  # beyond 64 bits
            array = array.astype(float)
    except (ValueError, OverflowError):  # unlike lengths
        return None
    is_good = array.dtype.kind in 'biuf' and array.shape == shape and np.isfinite(array).all()
    return array if is_good else None


def _is_box(box: Any, area: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, (*box, area)))


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _number(value: Any) -> Any:
    """The whole number that a text is, with zeros or spaces before it or not; else itself."""
    text = value.strip() if isinstance(value, str) else ''
    return int(text) if text.removeprefix('-').isdecimal() else value


def _hashable(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else repr(value)
