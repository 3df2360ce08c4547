"""COCO's metrics on annotation files as people have them."""

from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmengine.fileio import get_local_path

from mcf_mm.datasets.coco_file import CocoFile
from mcf_mm.registry import METRICS


@METRICS.register_module()
class CocoMetric(MMDetCocoMetric):
    """mmdet's CocoMetric, which reads its file as :class:`mcf_mm.datasets.coco_file.CocoFile` does.

    So a detector that finds everything has AP 1 whatever the ids of the annotations are, and a file
    that pycocotools would crash on is refused before training. ``tools/train.py`` and
    ``tools/test.py`` take this class where a config has mmdet's.

    Args:
        ann_file: The annotations. Defaults to None, those of the dataset.
        sort_categories: Whether categories are sorted by id. Defaults to False.
        **kwargs: As for :class:`mmdet.evaluation.CocoMetric`.

    Raises:
        ValueError: See :class:`mcf_mm.datasets.coco_file.CocoFile`; or a segmentation is missing or
            damaged where masks are evaluated.

    Example:
        >>> val_evaluator = dict(type='mcf_mm.CocoMetric', ann_file='data/val.json', metric='bbox')
    """

    def __init__(self, ann_file: str | None = None, *args, sort_categories: bool = False, **kwargs):
        super().__init__(None, *args, **kwargs)
        if ann_file is None:
            return
        with get_local_path(ann_file, backend_args=self.backend_args) as path:
            file = CocoFile(path, ann_file)
        if 'segm' in self.metrics:
            file.check_masks()
        if sort_categories:
            file.dataset['categories'].sort(key=lambda category: category['id'])
            file.cats = {number: file.cats[number] for number in sorted(file.cats)}
        self._coco_api = file
