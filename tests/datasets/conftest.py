"""Annotations of two images, and the log."""

import json

import pytest
from mmengine.logging import MMLogger

from mcf_mm.datasets import CocoDataset


@pytest.fixture
def make(tmp_path):
    """Writes two images' annotations, changed by the test, and reads them again."""

    def make(change=None, kind=CocoDataset, classes=('red', 'green'), **kwargs) -> CocoDataset:
        box = dict(bbox=[10, 10, 24, 24], area=576, iscrowd=0)
        content = dict(
            images=[
                dict(id=5 + n, file_name=f'{name}.jpg', height=70, width=90)
                for n, name in enumerate(('first', 'second'))
            ],
            annotations=[
                dict(id=31, image_id=5, category_id=3, **box),
                dict(id=32, image_id=6, category_id=7, **box),
            ],
            categories=[dict(id=3, name='red'), dict(id=7, name='green')],
        )
        if isinstance(change, dict):
            content['annotations'][1].update(change)
        elif change is not None:
            change(content)
        (tmp_path / 'boxes.json').write_text(json.dumps(content))
        return kind(
            data_root=str(tmp_path),
            ann_file='boxes.json',
            data_prefix=dict(img=''),
            metainfo=dict(classes=classes),
            serialize_data=False,  # which would collect garbage, for most of a second
            **kwargs,
        )

    return make


@pytest.fixture
def log(tmp_path):
    """What has been logged so far."""
    file = tmp_path / 'log.txt'
    MMLogger.get_instance(f'log of {tmp_path}', log_file=str(file))  # the current one from now on
    return lambda: file.read_text()
