"""Pictures: written whole, of the right content, with clear errors."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from PIL import Image

from mcf_mm.analysis.complexity import Complexity, Cost
from mcf_mm.analysis.plots import (
    figure_pixels,
    importance_figure,
    kept_inputs_figure,
    kept_sizes_figure,
    parts_figure,
    plot_detections,
    plot_kept_sizes,
)
from mcf_mm.pruning import Kept


def sample(score: float) -> DetDataSample:
    boxes = torch.tensor([[4.0, 4.0, 20.0, 30.0]])
    return DetDataSample(
        gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([3])),
        pred_instances=InstanceData(
            bboxes=boxes, labels=torch.tensor([3]), scores=torch.tensor([score])
        ),
    )


SIZES = {'layers.0.ffn': (38, 153), 'layers.1.ffn': (30, 100)}
FULL = {'layers.0.ffn': (64, 256), 'layers.1.ffn': (48, 192)}


def test_kept_sizes(tmp_path):
    path = tmp_path / 'new' / 'kept.png'
    plot_kept_sizes(path, SIZES, FULL)
    assert [p.name for p in path.parent.iterdir()] == ['kept.png']
    assert np.asarray(Image.open(path)).std() > 0
    with pytest.raises(ValueError, match='no feed-forward network'):
        plot_kept_sizes(path, {}, FULL)
    inputs, hiddens = kept_sizes_figure(SIZES, FULL).axes
    assert [bar.get_height() for bar in inputs.patches] == [64, 48, 38, 30]
    assert [bar.get_height() for bar in hiddens.patches] == [256, 192, 153, 100]


def test_kept_inputs():
    inputs = {'first': torch.tensor([0, 2, 5]), 'second': torch.tensor([3])}
    (axes,) = kept_inputs_figure(inputs, 6).axes
    shown = axes.images[0].get_array()
    assert shown.astype(int).tolist() == [[1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0]]


def test_importance_and_what_is_kept_of_it():
    scores = (torch.arange(40.0).view(10, 4), torch.arange(40.0).view(4, 10).flip(0))
    kept = Kept(torch.tensor([1, 3]), torch.tensor([0, 4, 9]))
    figure = importance_figure('layers.0.ffn', scores, kept)
    axes = {ax.get_label(): ax for ax in figure.axes if ax.images}
    for layer, score in zip(('fc1', 'fc2'), scores, strict=True):
        assert np.array_equal(axes[layer].images[0].get_array(), score)
    strips = {
        name: np.flatnonzero(axes[name].images[0].get_array()).tolist()
        for name in ('inputs of fc1', 'outputs of fc1', 'inputs of fc2')
    }
    assert strips == {
        'inputs of fc1': [1, 3],
        'outputs of fc1': [0, 4, 9],
        'inputs of fc2': [0, 4, 9],
    }
    assert axes['inputs of fc1'].get_title() == '2 of 4 kept'
    assert 'layers.0.ffn' in figure._suptitle.get_text()


def test_large_maps_are_averaged():
    score = torch.zeros(512, 300)
    score[:2] = 1
    kept = Kept(torch.tensor([0]), torch.tensor([0]))
    figure = importance_figure('ffn', (score, score.T), kept)
    shown = next(ax for ax in figure.axes if ax.get_label() == 'fc1').images[0]
    assert shown.get_array().shape == (256, 256)
    assert np.array_equal(shown.get_array()[:, 0], [1] + [0] * 255)
    # Rows and columns keep their numbers.
    assert list(shown.get_extent()) == [0, 300, 512, 0]


def test_all_scores_equal():
    score = torch.full((4, 3), 7.0)
    kept = Kept(torch.tensor([0]), torch.tensor([0]))
    for scores in ((score, score.T), (score * 0, score.T * 0)):
        assert figure_pixels(importance_figure('ffn', scores, kept)).std() > 0


def test_parts():
    def cost(share):
        parts = {
            'attention': Cost(4_000_000, 3_000_000_000),
            'ffn': Cost(share * 1_000_000, share * 500_000_000),
        }
        return Complexity(
            sum(part.params for part in parts.values()),
            sum(part.macs for part in parts.values()),
            parts,
        )

    parameters, macs = parts_figure(cost(8), cost(5)).axes
    assert [bar.get_height() for bar in parameters.patches] == [4, 8, 4, 5]
    assert [bar.get_height() for bar in macs.patches] == [3, 4, 3, 2.5]
    assert [label.get_text() for label in macs.get_xticklabels()] == ['attention', 'ffn']
    texts = [text.get_text() for text in parameters.get_legend().get_texts()]
    assert texts == ['dense, 12 in all', 'pruned, 9 in all']


def test_pixels_are_the_picture():
    figure = kept_sizes_figure(SIZES, FULL)
    pixels = figure_pixels(figure)
    width, height = figure.get_size_inches() * figure.dpi
    assert pixels.shape == (int(height), int(width), 3) and pixels.dtype == np.uint8
    assert (pixels[0, 0] == 255).all()
    blue = np.array([31, 119, 180])  # tab:blue, RGB
    assert (np.abs(pixels.astype(int) - blue).max(-1) < 3).mean() > 0.02


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
