"""Segmentations that pycocotools would misread or crash on."""

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from mcf_mm.datasets import CocoMetric
from mcf_mm.datasets.coco_masks import decode_counts

RUNS = dict(size=[70, 90], counts=[100, 200, 6000])
COMPRESSED = coco_masks.frPyObjects(RUNS, 70, 90)['counts'].decode()


@pytest.mark.parametrize(
    'segmentation, message',
    [
        (
            [[10, 10, 30, 10]],
            r'a polygon of 4 coordinates, \[10, 10, 30, 10\]: expected x and y of',
        ),
        ([[10, 10, 30, 10, 30, 30, 5]], 'a polygon of 7 coordinates'),
        ([[10, 10, 30, 10, 30, 30], []], 'a polygon of 0 coordinates'),
        ([10, 10, 30, 10, 30, 30], r'segmentation \[10, .*expected a list of polygons'),
        ([['1', '1', '3', '1', '3', '3']], 'expected finite numbers'),
        ([[10, 10, 30, 10, 30, float('nan')]], 'nan.*expected finite numbers'),
        ([[10, 10, 30, 10, 30, None]], 'expected finite numbers'),
        ([[[10, 10], [30, 10], [30, 30], [1, 1], [2, 2], [3, 3]]], 'expected finite numbers'),
        ('mask.png', "has segmentation 'mask.png': expected polygons"),
        (dict(RUNS, size=[90, 70]), r'size \[90, 70\] .*\[height, width\] \[70, 90\]'),
        (dict(RUNS, counts=[100, 200]), 'they count 300 pixels and the image has 6300'),
        (dict(RUNS, counts=[100, -200, 6400]), 'these are no counts'),
        (dict(RUNS, counts=['100', 6200]), 'these are no counts'),
        (dict(RUNS, counts=COMPRESSED[:-1]), '(these are no counts|they count)'),
        (dict(RUNS, counts=COMPRESSED + '1'), 'they count'),
        (dict(RUNS, counts='mask.png'), '(these are no counts|they count)'),
        (dict(RUNS, counts='é'), 'these are no counts'),
        (dict(RUNS, counts=None), 'these are no counts'),
        (dict(size=[70, 90]), 'these are no counts'),
    ],
)
def test_damaged_masks(make, tmp_path, segmentation, message):
    change = dict(segmentation=segmentation)
    first = dict(segmentation=[[10, 10, 30, 10, 30, 30]])

    def both(content):
        content['annotations'][0].update(first)
        content['annotations'][1].update(change)

    where = r'boxes\.json: annotation 32 of second\.jpg \(image id 6\) '
    with pytest.raises(ValueError, match=where + '.*' + message):
        make(both, pipeline=[dict(type='mmdet.LoadAnnotations', with_mask=True)])
    with pytest.raises(ValueError, match=where + '.*' + message):
        CocoMetric(str(tmp_path / 'boxes.json'), metric=['bbox', 'segm'])
    make(both)  # where no masks are asked for, they do not matter
    CocoMetric(str(tmp_path / 'boxes.json'))


@pytest.mark.parametrize(
    'segmentation',
    [RUNS, dict(RUNS, counts=COMPRESSED), [[10, 10, 30, 10, 30, 30.5], [1, 1, 2, 1, 2, 2]]],
)
def test_good_masks(make, tmp_path, segmentation):
    def change(content):
        for annotation in content['annotations']:
            annotation['segmentation'] = segmentation

    make(change, pipeline=[dict(type='mmdet.LoadAnnotations', with_mask=True)])
    CocoMetric(str(tmp_path / 'boxes.json'), metric='segm')


def test_counts_are_read_as_pycocotools_does():
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 1):
        mask = (rng.random((300, 400)) < share).astype(np.uint8, order='F')
        encoded = coco_masks.encode(np.asfortranarray(mask))
        runs = decode_counts(encoded['counts'].decode())
        flat = np.repeat(np.arange(len(runs)) % 2, runs)
        assert np.array_equal(flat, mask.ravel(order='F'))
