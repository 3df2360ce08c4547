"""FIS: the fast count equals the plain formula, and guidance goes from the class to the input."""

import pytest
import torch

from mcf_mm.pruning import MCF, calibrate, find_units
from mcf_mm.pruning.criteria.fis import band_limit, count_outside, guided_rows, top_fraction


def plain_count(tokens, weight, limit, rows=None):
    """Equation 3 as it is written, with all S * O * I products."""
    product = tokens[:, None, :] * weight
    outside = (product >= limit) | (product <= -limit)
    if rows is not None:
        outside &= rows[:, :, None]
    return outside.sum(0)


@pytest.mark.parametrize('images', [1, 62, 63, 64, 200, 1100])
@pytest.mark.parametrize('guided', [False, True])
def test_fast_count_is_the_plain_formula(images, guided):
    torch.manual_seed(images)
    tokens, weight = torch.randn(images, 30), torch.randn(50, 30) * 0.1
    weight[0, 0] = 0
    tokens[:, 3] = tokens[0, 3]
    rows = torch.rand(images, 50) > 0.5 if guided else None
    limit = band_limit(weight)
    counts = count_outside(tokens, weight, limit, rows)
    assert counts.dtype == torch.int32
    assert torch.equal(counts.long(), plain_count(tokens, weight, limit, rows))
    assert 0 < counts.float().mean() < images


def test_products_on_the_edge_of_the_band_are_outside():
    # Coarse values make many products exactly equal to the limit, and many ties in u.
    torch.manual_seed(0)
    tokens = (torch.randn(300, 20) * 4).round() / 4
    weight = (torch.randn(30, 20) * 4).round() / 8
    rows = torch.rand(300, 30) > 0.3
    assert ((tokens[:, None] * weight).abs() == 0.25).any()
    counts = count_outside(tokens, weight, 0.25, rows)
    assert torch.equal(counts.long(), plain_count(tokens, weight, 0.25, rows))


def test_weights_of_zero_have_an_empty_band():
    tokens, weight = torch.randn(7, 4), torch.zeros(3, 4)
    assert band_limit(weight) == 0
    assert (count_outside(tokens, weight, 0.0) == 7).all()


def test_band_is_mean_magnitude_plus_variance():
    weight = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    assert band_limit(weight, scale=3) == pytest.approx(3 * (1.5 + 10 / 3))


def test_top_fraction_marks_the_largest():
    scores = torch.tensor([[1.0, 4.0, 3.0, 2.0]])
    assert top_fraction(scores, 0.5).tolist() == [[False, True, True, False]]


def test_guidance_follows_the_plain_loops(network, batches):
    ffns = find_units(network).ffns
    seen = calibrate(network, batches, MCF().observers(ffns, {}))
    guided = list(guided_rows(ffns, seen, network.head, guide=0.5))
    assert [ffn.name for ffn, _, _ in guided] == ['blocks.2.mlp', 'blocks.1.mlp', 'blocks.0.mlp']
    images = torch.cat(batches)
    with torch.no_grad():
        scores = network(images)
    image = 3
    cls = seen.output[image]
    important = (network.head.weight[scores[image].argmax()] * cls).abs().topk(6).indices
    for ffn, outputs, hiddens in guided:
        assert set(outputs[image].nonzero().flatten().tolist()) == set(important.tolist())
        h = seen[ffn, 'hidden'].tokens[image]
        reach = sum(ffn.fc2.weight[k].abs() for k in important)
        units = (h.abs() * reach).topk(20).indices
        assert set(hiddens[image].nonzero().flatten().tolist()) == set(units.tolist())
        x = seen[ffn, 'inputs'].tokens[image]
        reach = sum(ffn.fc1.weight[j].abs() for j in units)
        important = (x.abs() * reach).topk(6).indices


@pytest.mark.parametrize('guide, classifier', [(1.0, True), (0.5, False)])
def test_without_guidance_all_rows_count(network, batches, guide, classifier):
    ffns = find_units(network).ffns
    seen = calibrate(network, batches, MCF().observers(ffns, {}))
    head = network.head if classifier else None
    for _, outputs, hiddens in guided_rows(ffns, seen, head, guide):
        assert outputs is None and hiddens is None
