"""COCO annotations, with errors that name the annotation."""

import logging
import math
from collections import Counter

from mmdet.datasets import CocoDataset as MMDetCocoDataset
from mmengine.fileio import load
from mmengine.logging import print_log

from mcf_mm.registry import DATASETS


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
        ValueError: An annotation or image lacks a key that COCO's format asks for; a box is not
            four finite numbers; a category is not listed in the file; or the file does not list
            each of ``classes`` exactly once (mmdet would shift the labels).

    Example:
        >>> train_dataloader = dict(dataset=dict(
        ...     type='mcf_mm.CocoDataset', data_root='data/coco/',
        ...     ann_file='annotations/instances_train2017.json'))
    """

    def load_data_list(self) -> list[dict]:
        """Loads the annotations; see :class:`mmdet.datasets.CocoDataset`."""
        self._left_out: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        try:
            data_list = super().load_data_list()
        except KeyError as error:
            self._refuse_without(error.args[0])
            raise
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
        del self._left_out, self._examples
        return data_list

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Checks the annotations of an image, then parses them as mmdet does."""
        if len(self.cat_ids) != len(self.metainfo['classes']):
            self._refuse_classes()
        image = raw_data_info['raw_img_info']
        for annotation in raw_data_info['raw_ann_info']:
            self._check(annotation, image)
        return super().parse_data_info(raw_data_info)

    def _check(self, annotation: dict, image: dict) -> None:
        name = f'annotation {annotation.get("id")} of {image["file_name"]}'
        where = f'{self.ann_file}: {name} (image id {image["id"]})'
        for key in ('bbox', 'area'):
            if key not in annotation:
                raise ValueError(f'{where} has no {key!r}')
        box, category = annotation['bbox'], annotation['category_id']
        if len(box) != 4 or not all(map(math.isfinite, (*box, annotation['area']))):
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
            return
        self._left_out[reason] += 1
        self._examples.setdefault(reason, name)

    def _refuse_without(self, key: str) -> None:
        """Names the entry for which pycocotools or mmdet had a KeyError."""
        kind = 'annotations' if key in ('category_id', 'image_id') else 'images'
        content = load(self.ann_file, backend_args=self.backend_args)
        for entry in content[kind]:
            if key not in entry:
                raise ValueError(f'{self.ann_file}: entry of {kind} without {key!r}: {entry}')

    def _refuse_classes(self) -> None:
        names = [category['name'] for category in self.coco.cats.values()]
        wrong = [name for name in self.metainfo['classes'] if names.count(name) != 1]
        raise ValueError(
            f'{self.ann_file} does not list each class of the config exactly once: {wrong} of '
            f'classes={list(self.metainfo["classes"])}; its categories are {names}. '
            'Set metainfo=dict(classes=...) of the dataset to names of the file'
        )
