"""Tokens in a budget of the closed form: weighed against the other kinds by measured losses."""

import copy
import json

import pytest
import timm
import torch

from mcf_mm.pruning import build_criterion, find_units, measure_costs, prune
from mcf_mm.pruning.criteria import OBS
from mcf_mm.pruning.curves import Curves, best_sizes, read_curves
from mcf_mm.pruning.token_curve import RATIOS, best_with_tokens, token_sizes

KINDS = ['hidden', 'v', 'qk', 'heads', 'tokens']


@pytest.fixture(scope='module')
def dense():
    torch.manual_seed(0)
    model = timm.create_model(
        'vit_tiny_patch16_224', img_size=64, embed_dim=24, depth=4, num_heads=2, num_classes=5
    )
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model.eval()


@pytest.fixture(scope='module')
def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(8, 3, 64, 64, generator=generator) for _ in range(3)]


@pytest.fixture(scope='module')
def done(dense, images):
    """A network at 60 % of its MACs, and the criterion that has cut it."""
    model, criterion = copy.deepcopy(dense), OBS()
    structure = prune(model, images, criterion, budget='macs=60%', kinds=KINDS)
    return model, criterion, structure


def costs_of(model):
    return measure_costs(model, lambda model: model(torch.zeros(1, 3, 64, 64)))


def test_the_budget_is_met_to_the_last_element(dense, done):
    model, _, structure = done
    wanted = round(0.6 * costs_of(dense).of({})['macs'])
    spent = costs_of(model).of({})['macs']
    assert 0.995 * wanted < spent <= wanted
    assert costs_of(dense).of(structure.sizes)['macs'] == spent


def test_the_best_share_of_the_tokens_is_found(dense, done):
    _, criterion, structure = done
    units, costs, curves = find_units(dense), costs_of(dense), criterion.curves
    assert list(curves.tokens) == list(RATIOS)
    assert list(curves.tokens.values()) == sorted(curves.tokens.values())
    assert all(loss > 0 for loss in curves.tokens.values())
    wanted = round(0.6 * costs.of({})['macs'])
    losses = {}
    for ratio in (0.0, *RATIOS):
        left = costs.with_tokens(token_sizes(units, ratio))
        if left.of({})['macs'] > wanted:
            own = best_sizes(units, left, curves, {'macs': wanted}, OBS.floors)
            losses[ratio] = curves.tokens.get(ratio, 0.0) + curves.of(own)
        else:
            losses[ratio] = curves.tokens[ratio]
    best = min(losses, key=losses.get)
    kept = {name: kinds for name, kinds in structure.sizes.items() if 'tokens' in kinds}
    assert kept == token_sizes(units, best)


def test_measured_losses_are_those_of_networks_that_drop_tokens(dense, images, done):
    _, criterion, _ = done
    small = copy.deepcopy(dense)
    prune(small, criterion='magnitude', sizes=token_sizes(find_units(dense), 0.5))
    with torch.no_grad():
        before, after = (
            torch.cat([model(x) for x in images]).double().log_softmax(-1)
            for model in (dense, small)
        )
    loss = torch.nn.functional.kl_div(after, before, log_target=True, reduction='batchmean')
    assert criterion.curves.tokens[0.5] == pytest.approx(float(loss), rel=1e-4)


def test_tokens_stay_where_they_save_nothing(dense, done):
    curves, units = done[1].curves, find_units(dense)
    sizes = best_with_tokens(units, costs_of(dense), curves, KINDS, 'params=80%', OBS.floors)
    assert sizes == best_sizes(units, costs_of(dense), curves, 'params=80%', OBS.floors)


def test_a_file_keeps_the_losses_of_tokens(dense, done, tmp_path):
    _, criterion, structure = done
    (tmp_path / 'curves.json').write_text(criterion.curves.to_json())
    curves = read_curves(tmp_path / 'curves.json')
    assert curves.tokens == criterion.curves.tokens
    model = copy.deepcopy(dense)
    again = prune(
        model, [torch.zeros(1, 3, 64, 64)], OBS(), budget='macs=60%', kinds=KINDS, curves=curves,
        seen=criterion.seen,
    )  # fmt: skip
    assert again.sizes == structure.sizes
    content = json.loads(criterion.curves.to_json())
    content['tokens']['0.5'] = -1
    (tmp_path / 'bad.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match='losses of tokens: the curve falls'):
        read_curves(tmp_path / 'bad.json')


def test_what_cannot_be_weighed_is_refused(dense, images, done):
    predicted = build_criterion(dict(type='obs', allocation='predicted'))
    seen = iter(images)
    with pytest.raises(ValueError, match="allocation='predicted' knows nothing of tokens"):
        prune(
            copy.deepcopy(dense), seen, predicted, budget='macs=60%', kinds=KINDS,
            costs=costs_of(dense),
        )  # fmt: skip
    assert next(seen) is images[0]  # none was read
    curves, units = done[1].curves, find_units(dense)
    without = Curves(curves.loss, curves.facts)
    with pytest.raises(ValueError, match='no measured losses of tokens'):
        best_with_tokens(units, costs_of(dense), without, KINDS, 'macs=60%')
    with pytest.raises(ValueError, match='dropping 50% of the tokens at each place does not meet'):
        best_with_tokens(units, costs_of(dense), curves, ['tokens'], 'macs=10%')
