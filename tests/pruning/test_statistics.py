"""Further budgets from files: the same weights as a run of their own; other files are refused."""

import copy
import re
from pathlib import Path

import pytest
import torch
from networks import Transformer
from torch import nn

from mcf_mm.pruning import calibrate, find_units, measure_costs, prune
from mcf_mm.pruning.criteria import OBS
from mcf_mm.weights.statistics import (
    fingerprint,
    read_statistics,
    statistics_path,
    write_statistics,
)

IMAGES = list(torch.randn(24, 6, 16, generator=torch.Generator().manual_seed(1)).split(8))


class Small(OBS):
    floors = dict(heads=1, qk=2, v=2, hidden=2, inputs=2)

    def __init__(self, metric='fisher'):
        super().__init__(metric, allocation='predicted')


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Transformer(16, 32).eval()
    for block in model.blocks:
        block.attn.num_heads = 2
    return model


def costs_of(model):
    return measure_costs(model, lambda model: model(IMAGES[0][:1]))


@pytest.fixture
def path(model, tmp_path) -> Path:
    """Files of a run that looked at the images."""
    criterion, units = Small(), find_units(model)
    kinds = units.sizes
    seen = calibrate(model, IMAGES, criterion.observers(units, kinds), labels=Small.labels)
    path = tmp_path / 'curves.json'
    curves = criterion.predict_curves(units, kinds, seen)
    write_statistics(path, curves, seen, fingerprint(model))
    return path


@pytest.mark.parametrize('kinds', [None, ['hidden', 'inputs'], ['heads', 'v'], ['qk']], ids=str)
@pytest.mark.parametrize('budget', ['params=80%', 'macs=85%'])
def test_a_budget_from_the_files_gives_the_very_same_weights(model, path, budget, kinds):
    direct = copy.deepcopy(model)
    arguments = dict(budget=budget, kinds=kinds, costs=costs_of(model))
    if kinds == ['qk']:
        arguments['budget'] = budget.replace('80', '93').replace('85', '93')
    curves, seen = read_statistics(path, model)
    criteria = Small(), Small()
    first = prune(direct, IMAGES, criteria[0], **arguments)
    second = prune(model, (), criteria[1], curves=curves, seen=seen, **arguments)
    assert second.to_json() == first.to_json()
    for name, scores in criteria[0].importance.items():
        for kind, own in scores.items():
            assert torch.equal(criteria[1].importance[name][kind], own)
    assert costs_of(model).of({}) == arguments['costs'].of(first.sizes)
    assert costs_of(model).of({}) != arguments['costs'].of({})
    for (name, value), other in zip(model.named_parameters(), direct.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_everything_is_in_the_files(model, path):
    curves, seen = read_statistics(path, model)
    assert curves.facts == dict(curves='predicted', network=fingerprint(model))
    for unit in find_units(model):
        assert set(curves.loss[unit.name]) == set(unit.kinds)
        for kind in set(unit.kinds) - {'qk'}:
            moments = seen.moments(unit, kind)
            assert moments.tokens == 24 * 7 and moments.second.dtype == torch.double
        if 'qk' in unit.kinds:
            assert seen.pairs(unit).query.dtype == torch.double
    assert statistics_path(path).name == 'curves.safetensors'


def test_moments_without_a_metric_have_none_when_read(model, tmp_path):
    criterion, units = Small('plain'), find_units(model)
    seen = calibrate(model, IMAGES, criterion.observers(units, units.sizes))
    curves = criterion.predict_curves(units, units.sizes, seen)
    write_statistics(tmp_path / 'a.json', curves, seen, fingerprint(model))
    again = read_statistics(tmp_path / 'a.json', model)[1]
    for unit in units.ffns:
        assert again.moments(unit, 'hidden').metric is None
        assert torch.equal(
            again.moments(unit, 'hidden').second, seen.moments(unit, 'hidden').second
        )


def test_the_fingerprint_is_of_names_shapes_and_values(model):
    own = fingerprint(model)
    assert re.fullmatch('[0-9a-f]{64}', own) and own == fingerprint(copy.deepcopy(model).train())
    other = copy.deepcopy(model)
    other.head.bias.data[0] += 1e-6
    renamed = copy.deepcopy(model)
    renamed.mixer = renamed.mix
    del renamed.mix
    assert len({own, fingerprint(other), fingerprint(renamed)}) == 3


def test_other_weights_are_refused_and_the_file_is_named(model, path, tmp_path):
    other = copy.deepcopy(model)
    other.head.bias.data[0] += 1
    with pytest.raises(ValueError, match=r'curves\.json is of other weights: .*; name a new file'):
        read_statistics(path, other)
    # Curves of this network beside moments of another.
    seen = read_statistics(path, model)[1]
    curves = path.read_text()
    write_statistics(path, read_statistics(path, model)[0], seen, fingerprint(other))
    path.write_text(curves)
    with pytest.raises(ValueError, match=r'curves\.safetensors is of other weights'):
        read_statistics(path, model)


def test_a_file_that_is_missing_is_named(model, path):
    moments = statistics_path(path)
    content = moments.read_bytes()
    moments.unlink()
    with pytest.raises(FileNotFoundError, match=r'curves\.safetensors'):
        read_statistics(path, model)
    moments.write_bytes(content)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r'no file of cost curves .*curves\.json'):
        read_statistics(path, model)


@pytest.mark.parametrize('left', [0, 100, -10])
def test_a_file_that_is_damaged_is_named(model, path, left):
    for file in (statistics_path(path), path):
        content = file.read_bytes()
        file.write_bytes(content[:left])
        with pytest.raises(ValueError, match=re.escape(file.name)):
            read_statistics(path, model)
        file.write_bytes(content)
    read_statistics(path, model)
