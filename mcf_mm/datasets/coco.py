"""COCO annotations, with errors that name the annotation."""

import math
import os
import re

import numpy as np
from mmdet.datasets import CocoDataset as MMDetCocoDataset

from mcf_mm.datasets.coco_file import CocoFile, no_garbage_collection
from mcf_mm.registry import DATASETS

#: What mmdet reads of an image.
IMAGE_KEYS = ('id', 'file_name', 'width', 'height')
URL = re.compile(r'[a-z][a-z0-9+]*://', re.IGNORECASE)
#: Pixels that a box may reach beyond its image; tools round, and some count pixels from 1.
TOLERANCE = 1


@DATASETS.register_module()
class CocoDataset(MMDetCocoDataset):
    """mmdet's CocoDataset, except that it refuses annotations that can only be mistakes.

    As in mmdet, boxes smaller than a pixel, boxes outside their image and categories that are not
    among ``classes`` are left out, crowd regions are not trained on, and images are kept or left
    out by ``filter_cfg``. What mmdet leaves out in silence is counted in one line of the log, and
    boxes that reach beyond their image in another.

    ``tools/train.py`` and ``tools/test.py`` take this class where a config has mmdet's. The file is
    read by :class:`mcf_mm.datasets.coco_file.CocoFile`, which says what it repairs in memory.

    Args:
        **kwargs: As for :class:`mmdet.datasets.CocoDataset`.

    Attributes:
        has_boxes (bool): Whether there is an object to train on, crowds apart.

    Raises:
        ValueError: The file is one that :class:`mcf_mm.datasets.coco_file.CocoFile` refuses; an
            image has no size or no file name; a segmentation is missing or damaged where the
            pipeline loads masks; the file does not list ``classes`` once each and in this order
            (mmdet would mix up the labels); or nothing is left of the images or annotations of a
            training set.

    Example:
        >>> train_dataloader = dict(dataset=dict(
        ...     type='mcf_mm.CocoDataset', data_root='data/coco/',
        ...     ann_file='annotations/instances_train2017.json'))
    """

    def load_data_list(self) -> list[dict]:
        """Loads the annotations; see :class:`mmdet.datasets.CocoDataset`."""
        # Called by mmdet with the path of a local copy.
        self.COCOAPI = self._open
        try:
            with no_garbage_collection():
                return super().load_data_list()
        finally:
            del self.COCOAPI

    def filter_data(self) -> list[dict]:
        """Leaves images out as mmdet does, but not all that there is to learn."""
        data_list = super().filter_data()
        self.has_boxes = any(
            not instance['ignore_flag'] for image in data_list for instance in image['instances']
        )
        # Negatives alone are fine beside another set; ClassCountHook looks at the whole.
        is_empty = not data_list or (self._num_annotations and not self.has_boxes)
        if is_empty and not self.test_mode:
            reasons = list(self._left_out)
            if small := len(self.data_list) - len(data_list):
                reasons.append(
                    f'filter_cfg={self.filter_cfg} leaves {small} images out: has the file '
                    f'annotations of {self.metainfo["classes"]}, and images large enough?'
                )
            raise ValueError(
                f'{self.ann_file}: nothing is left to train on of {len(self.data_list)} images '
                f'with {self._num_annotations} annotations: {"; ".join(reasons)}'
            )
        del self._left_out, self._num_annotations
        return data_list

    def _open(self, path: str) -> CocoFile:
        """Reads and checks the file, before mmdet looks at a single image."""
        file = CocoFile(path, self.ann_file)
        self._check_classes(file)
        sizes = self._check_images(file)
        if 'annotations' not in file.dataset and not self.test_mode:
            raise ValueError(f"{self.ann_file} has no 'annotations' to train on")
        self._num_annotations = len(file.annotations)
        is_kept = self._count_left_out(file, sizes)
        if any(getattr(step, 'with_mask', False) for step in self.pipeline.transforms):
            file.check_masks(np.flatnonzero(is_kept))
        return file

    def _check_classes(self, file: CocoFile) -> None:
        classes = list(self.metainfo['classes'])
        names = [category['name'] for category in file.dataset['categories']]
        if wrong := [name for name in classes if names.count(name) != 1]:
            raise ValueError(
                f'{self.ann_file} does not list each class of the config exactly once: {wrong} of '
                f'classes={classes}; its categories are {names}. '
                'Set metainfo=dict(classes=...) of the dataset to names of the file'
            )
        listed = [name for name in names if name in classes]
        if listed != classes:
            raise ValueError(
                f'{self.ann_file} lists the categories in another order than classes={classes}: '
                'mmdet numbers labels in the order of the file. Set metainfo=dict(classes='
                f'{tuple(listed)}), or change the order in the file'
            )

    def _check_images(self, file: CocoFile) -> np.ndarray:
        """Widths and heights (N, 2); refuses images without, and names that are no files."""
        images = file.dataset['images']
        try:
            names = [image['file_name'] for image in images]
            sides = [(image['width'], image['height']) for image in images]
        except KeyError:
            file.refuse_incomplete('images', IMAGE_KEYS)
            raise
        if not all(isinstance(name, str) and name for name in names) or any(
            mark in '\n'.join(names) for mark in ('\0', '://', '\\')
        ):
            for image in images:
                self._check_name(image)
        for image, pair in zip(images, sides, strict=True):
            for side in pair:
                if not (isinstance(side, int | float) and 0 < side < math.inf):
                    raise ValueError(
                        f'{self.ann_file}: {image["file_name"]} (image id {image["id"]}) has width '
                        f'{pair[0]!r} and height {pair[1]!r}: expected pixels'
                    )
        return np.array(sides, dtype=float)

    def _check_name(self, image: dict) -> None:
        name, prefix = image['file_name'], self.data_prefix.get('img', '')
        if not isinstance(name, str) or not name or '\0' in name:
            problem = 'expected the name of a file'
        elif URL.match(name) and prefix:
            problem = f'files are looked for in {prefix!r}. Download it and write its name there'
        elif '\\' in name and os.sep == '/' and not os.path.isfile(os.path.join(prefix, name)):
            problem = 'there is no such file. Write folders with "/"'
        else:
            return
        raise ValueError(
            f'{self.ann_file}: image id {image["id"]} has file_name {name!r}: {problem}'
        )

    def _count_left_out(self, file: CocoFile, sizes: np.ndarray) -> np.ndarray:
        """Counts by reason what is not trained on; returns (N,) what is, crowds among it."""
        annotations, (x, y, width, height) = file.annotations, file.boxes.T
        right, bottom = x + width, y + height
        image_width, image_height = sizes[file.rows].T
        is_listed, is_large = file.rows >= 0, (width >= 1) & (height >= 1)
        is_outside = (x >= image_width) | (y >= image_height) | (right <= 0) | (bottom <= 0)
        chosen = {
            category['id']: category['name'] in self.metainfo['classes']
            for category in file.dataset['categories']
        }
        is_chosen = [chosen[annotation['category_id']] for annotation in annotations]
        flags = [(a.get('ignore'), a['iscrowd']) if 'ignore' in a else None for a in annotations]
        is_ignored = [bool(flag and flag[0]) for flag in flags]
        reasons = {
            'of images that the file does not list': ~is_listed,
            'with ignore set (evaluation counts them)': np.array(is_ignored, bool),
            'with a box smaller than a pixel (bbox is in pixels, not shares of the image)': (
                ~is_large
            ),
            'with area 0 or less and a good box (write width * height)': file.areas <= 0,
            'with a box outside the image': is_outside,
            'of categories that are not in classes': ~np.array(is_chosen, bool),
        }
        is_kept = np.ones(len(annotations), bool)
        self._left_out = []
        for reason, is_meant in reasons.items():
            self._note(file, is_kept & is_meant, reason)
            is_kept &= ~is_meant
        # Evaluation is on the file itself, where nothing is left out.
        if self._left_out and not self.test_mode:
            file.warn(f'annotations that are left out: {"; ".join(self._left_out)}')
        crowds = np.array([bool(a['iscrowd']) for a in annotations], bool)
        self._note(file, is_kept & crowds, 'that are crowds (iscrowd=1)')
        beyond = (np.minimum(x, y) < -TOLERANCE) | (
            np.maximum(right - image_width, bottom - image_height) > TOLERANCE
        )
        self._warn_of_boxes_beyond(file, np.flatnonzero(beyond & is_listed & is_large), sizes)
        return is_kept

    def _note(self, file: CocoFile, is_meant: np.ndarray, reason: str) -> None:
        if count := int(is_meant.sum()):
            first = int(is_meant.argmax())
            annotation = file.annotations[first]
            values = f'bbox {annotation["bbox"]}, area {annotation["area"]}'
            self._left_out.append(f'{count} {reason} (the first: {file.title(first)}, {values})')

    def _warn_of_boxes_beyond(self, file: CocoFile, numbers: np.ndarray, sizes: np.ndarray) -> None:
        if not len(numbers):
            return
        first, total = int(numbers[0]), len(file.boxes)
        width, height = sizes[file.rows[first]]
        file.warn(
            f'{len(numbers)} of {total} boxes ({len(numbers) / total:.1%}) reach beyond their '
            f'image (the first: {file.title(first)}, bbox {file.annotations[first]["bbox"]} in '
            f'{width:g} x {height:g} pixels): bbox is [x, y, width, height]. If the file has '
            '[x1, y1, x2, y2], or the images were made smaller, correct it'
        )
