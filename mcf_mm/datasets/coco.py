"""COCO annotations, with errors that name the annotation."""

import json
import logging
import math
from collections import Counter

from mmdet.datasets import CocoDataset as MMDetCocoDataset
from mmengine.fileio import load
from mmengine.logging import print_log

from mcf_mm.registry import DATASETS

#: What mmdet reads of each entry; ``bbox`` and ``area`` are asked for by annotation.
KEYS = dict(
    images=('id', 'file_name', 'width', 'height'),
    annotations=('id', 'image_id', 'category_id'),
    categories=('id', 'name'),
)


@DATASETS.register_module()
class CocoDataset(MMDetCocoDataset):
    """mmdet's CocoDataset, except that it refuses annotations that can only be mistakes.

    As in mmdet, boxes smaller than a pixel, boxes outside their image and categories that are not
    among ``classes`` are left out, crowd regions are not trained on, and images are kept or left
    out by ``filter_cfg``. What mmdet leaves out in silence is counted in one line of the log.

    ``tools/train.py`` and ``tools/test.py`` take this class where a config has mmdet's. The
    check is part of the one pass that mmdet makes over the annotations.

    Args:
        **kwargs: As for :class:`mmdet.datasets.CocoDataset`.

    Raises:
        ValueError: The file is no JSON, lists no image or one image id twice, or none of its images
            is left by ``filter_cfg``; an annotation, image or category lacks a key that COCO's
            format asks for, or a segmentation where the pipeline loads masks; a box is not four
            finite numbers; an image has no size; a category is not listed in the file; or the file
            does not list ``classes`` once each and in this order (mmdet would mix up the labels).

    Example:
        >>> train_dataloader = dict(dataset=dict(
        ...     type='mcf_mm.CocoDataset', data_root='data/coco/',
        ...     ann_file='annotations/instances_train2017.json'))
    """

    def load_data_list(self) -> list[dict]:
        """Loads the annotations; see :class:`mmdet.datasets.CocoDataset`."""
        self._left_out: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._loads_masks = any(
            getattr(step, 'with_mask', False) for step in self.pipeline.transforms
        )
        self._is_file_checked = False
        try:
            data_list = super().load_data_list()
        except json.JSONDecodeError as error:
            raise ValueError(f'{self.ann_file} is no JSON file: {error}') from error
        except (AssertionError, KeyError):
            self._refuse_incomplete()
            raise
        if not data_list:
            raise ValueError(f'{self.ann_file} lists no images')
        # Evaluation is on the file itself, where nothing is left out.
        if self._left_out and not self.test_mode:
            parts = [
                f'{count} {reason} (the first: {self._examples[reason]})'
                for reason, count in self._left_out.items()
            ]
            print_log(
                f'{self.ann_file}: annotations that are left out: {"; ".join(parts)}',
                logger='current',
                level=logging.WARNING,
            )
        del self._left_out, self._examples, self._loads_masks, self._is_file_checked
        return data_list

    def filter_data(self) -> list[dict]:
        """Leaves images out as mmdet does, but not all of them."""
        data_list = super().filter_data()
        if not data_list:
            raise ValueError(
                f'{self.ann_file}: filter_cfg={self.filter_cfg} leaves none of its '
                f'{len(self.data_list)} images: has it annotations of {self.metainfo["classes"]}?'
            )
        return data_list

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Checks the annotations of an image, then parses them as mmdet does."""
        if not self._is_file_checked:
            self._check_file()
            self._is_file_checked = True
        image = raw_data_info['raw_img_info']
        sides = (image['width'], image['height'])
        if not all(isinstance(side, int | float) and side > 0 for side in sides):
            raise ValueError(
                f'{self.ann_file}: {image["file_name"]} (image id {image["id"]}) has width '
                f'{sides[0]!r} and height {sides[1]!r}: expected pixels'
            )
        for annotation in raw_data_info['raw_ann_info']:
            self._check(annotation, image)
        return super().parse_data_info(raw_data_info)

    def _check_file(self) -> None:
        """Checks what is no matter of a single image; once, when the first is parsed."""
        classes, content = list(self.metainfo['classes']), self.coco.dataset
        names = [category['name'] for category in self.coco.cats.values()]
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
        if len(self.coco.imgs) != len(content['images']):
            counts = Counter(image['id'] for image in content['images'])
            twice = counts.most_common(1)[0][0]
            files = [image.get('file_name') for image in content['images'] if image['id'] == twice]
            raise ValueError(f'{self.ann_file}: image id {twice!r} is that of {files}')
        if 'annotations' not in content and not self.test_mode:
            raise ValueError(f"{self.ann_file} has no 'annotations' to train on")
        reason = 'of images that the file does not list'
        for annotation in content.get('annotations', []):
            if annotation['image_id'] not in self.coco.imgs:
                name = f'annotation {annotation["id"]} of image id {annotation["image_id"]!r}'
                self._leave_out(reason, name)

    def _check(self, annotation: dict, image: dict) -> None:
        name = f'annotation {annotation.get("id")} of {image["file_name"]}'
        where = f'{self.ann_file}: {name} (image id {image["id"]})'
        for key in ('bbox', 'area'):
            if key not in annotation:
                raise ValueError(f'{where} has no {key!r}')
        box, category = annotation['bbox'], annotation['category_id']
        try:
            is_box = len(box) == 4 and all(map(math.isfinite, (*box, annotation['area'])))
        except TypeError:  # None or text
            is_box = False
        if not is_box:
            raise ValueError(
                f'{where} has bbox {box} and area {annotation["area"]}: expected '
                '[x, y, width, height] in pixels, all finite'
            )
        if category not in self.coco.cats:
            raise ValueError(
                f'{where} has category_id {category}, which is not among the categories of the '
                f'file: {sorted(self.coco.cats)}'
            )
        x, y, width, height = box
        if width < 1 or height < 1 or annotation['area'] <= 0:
            reason = 'with a box smaller than a pixel'
        elif x >= image['width'] or y >= image['height'] or x + width <= 0 or y + height <= 0:
            reason = 'with a box outside the image'
        elif category not in self.cat_ids:
            reason = 'of categories that are not in classes'
        else:
            if self._loads_masks and not annotation.get('segmentation'):
                raise ValueError(f"{where} has no 'segmentation', and the pipeline loads masks")
            return
        self._leave_out(reason, name)

    def _leave_out(self, reason: str, name: str) -> None:
        self._left_out[reason] += 1
        self._examples.setdefault(reason, name)

    def _refuse_incomplete(self) -> None:
        """Names the entry for which pycocotools or mmdet had no more than a key."""
        content = load(self.ann_file, backend_args=self.backend_args)
        if not isinstance(content, dict) or 'categories' not in content:
            raise ValueError(
                f"{self.ann_file} has no 'categories': it is no file of COCO's annotations"
            )
        for kind, keys in KEYS.items():
            for entry in content.get(kind, []):
                for key in keys:
                    if key not in entry:
                        raise ValueError(
                            f'{self.ann_file}: entry of {kind} without {key!r}: {entry}'
                        )
