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


def sample(score: float) -> DetDataSample:
    boxes = torch.tensor([[4.0, 4.0, 20.0, 30.0]])
    return DetDataSample(
        gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([3])),
        pred_instances=InstanceData(
            bboxes=boxes, labels=torch.tensor([3]), scores=torch.tensor([score])
        ),
    )


SIZES = {
    'layers.0.ffn': dict(inputs=38, hidden=153),
    'layers.1.ffn': dict(inputs=30, hidden=100),
}
FULL = {
    'layers.0.ffn': dict(inputs=64, hidden=256),
    'layers.1.ffn': dict(inputs=48, hidden=192),
}


def test_kept_sizes(tmp_path):
    path = tmp_path / 'new' / 'kept.png'
    plot_kept_sizes(path, SIZES, FULL)
    assert [p.name for p in path.parent.iterdir()] == ['kept.png']
    assert np.asarray(Image.open(path)).std() > 0
    with pytest.raises(ValueError, match='sizes is empty: there is nothing to draw'):
        plot_kept_sizes(path, {}, FULL)
    inputs, hiddens = kept_sizes_figure(SIZES, FULL).axes
    assert [bar.get_height() for bar in inputs.patches] == [64, 48, 38, 30]
    assert [bar.get_height() for bar in hiddens.patches] == [256, 192, 153, 100]


def test_kept_sizes_of_every_kind():
    """A picture for each kind, with the units that have it."""
    sizes = {'layers.0.attn': dict(heads=2, qk=8, v=6), **SIZES}
    full = {'layers.0.attn': dict(heads=3, qk=16, v=16), **FULL}
    figure = kept_sizes_figure(sizes, full)
    bars = {axes.get_title(): [bar.get_height() for bar in axes.patches] for axes in figure.axes}
    assert bars == {
        'heads': [3, 2],
        'q/k channels of a head': [16, 8],
        'value channels of a head': [16, 6],
        "inputs C'": [64, 48, 38, 30],
        "hidden units H'": [256, 192, 153, 100],
    }
    # Kinds that are not named are not drawn; each bar has its number.
    (axes,) = kept_sizes_figure({name: dict(hidden=7) for name in SIZES}, FULL).axes
    assert [text.get_text() for text in axes.texts] == ['7', '7']


def test_kept_inputs():
    inputs = {'first': torch.tensor([0, 2, 5]), 'second': torch.tensor([3])}
    (axes,) = kept_inputs_figure(inputs, 6).axes
    shown = axes.images[0].get_array()
    assert shown.astype(int).tolist() == [[1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0]]


def shown(axes) -> dict[str, list]:
    """Ranks and scores of the elements in a picture of importance, by kept and dropped."""
    return {points.get_label(): points.get_offsets().tolist() for points in axes.collections}


def test_importance_and_what_is_kept_of_it():
    scores = dict(inputs=torch.tensor([1.0, 4.0, 2.0, 3.0]), hidden=torch.arange(10.0))
    kept = dict(inputs=torch.tensor([1, 3]), hidden=torch.tensor([0, 4, 9]))
    figure = importance_figure('layers.0.ffn', scores, kept)
    inputs, hidden = figure.axes
    assert shown(inputs) == dict(kept=[[0, 4], [1, 3]], dropped=[[2, 2], [3, 1]])
    # The vote of MCF need not keep the largest sums.
    assert shown(hidden)['kept'] == [[0, 9], [5, 4], [9, 0]]
    assert len(shown(hidden)['dropped']) == 7
    assert inputs.get_title() == "inputs C': 2 of 4 kept"
    assert 'layers.0.ffn' in figure._suptitle.get_text()


def test_importance_of_a_kind_that_keeps_all():
    (axes,) = importance_figure('attn', dict(heads=torch.rand(3)), {}).axes
    assert axes.get_title() == 'heads: 3 of 3 kept'
    assert len(shown(axes)['kept']) == 3 and not shown(axes).get('dropped')


def test_all_scores_equal():
    kept = dict(hidden=torch.tensor([0]))
    for score in (7.0, 0.0):
        figure = importance_figure('ffn', dict(hidden=torch.full((4,), score)), kept)
        assert figure_pixels(figure).std() > 0


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
