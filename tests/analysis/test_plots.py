"""Pictures: written whole, of the right content, with clear errors."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from PIL import Image

from mcf_mm.analysis.plots import plot_detections, plot_kept_sizes


def sample(score: float) -> DetDataSample:
    boxes = torch.tensor([[4.0, 4.0, 20.0, 30.0]])
    return DetDataSample(
        gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([3])),
        pred_instances=InstanceData(
            bboxes=boxes, labels=torch.tensor([3]), scores=torch.tensor([score])
        ),
    )


def test_kept_sizes(tmp_path):
    path = tmp_path / 'new' / 'kept.png'
    plot_kept_sizes(path, {'layers.0.ffn': (38, 153), 'layers.1.ffn': (30, 100)}, (64, 256))
    assert [p.name for p in path.parent.iterdir()] == ['kept.png']
    assert np.asarray(Image.open(path)).std() > 0
    with pytest.raises(ValueError, match='no feed-forward network'):
        plot_kept_sizes(path, {}, (64, 256))


def test_detections_show_boxes_above_the_threshold(tmp_path):
    images = [np.zeros((48, 48, 3), dtype=np.uint8)] * 2
    classes = tuple('0123456789')
    found = {'dense': [sample(0.9)] * 2, 'pruned': [sample(0.8)] * 2}
    missed = {'dense': [sample(0.9)] * 2, 'pruned': [sample(0.2)] * 2}
    for name, predictions in (('found', found), ('missed', missed)):
        plot_detections(tmp_path / f'{name}.png', images, predictions, classes)
    found, missed = (
        np.asarray(Image.open(tmp_path / f'{name}.png').convert('RGB')).astype(int)
        for name in ('found', 'missed')
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ['found.png', 'missed.png']
    # The rows of truth and of the dense network are alike; only the last one differs.
    differs = np.abs(found - missed).sum(axis=(1, 2)) > 0
    assert not differs[: len(differs) * 6 // 10].any() and differs[len(differs) * 2 // 3 :].any()
    # All that differs is drawn in colour: boxes and labels.
    assert (found.max(axis=2) - found.min(axis=2)).max() > 100


def test_needs_a_sample_for_each_image(tmp_path):
    images = [np.zeros((48, 48, 3), dtype=np.uint8)] * 2
    with pytest.raises(ValueError, match=r"each of 2 images, got \{'dense': 1\}"):
        plot_detections(tmp_path / 'x.png', images, {'dense': [sample(0.9)]}, tuple('0123456789'))
