"""HSIC: heads and hidden units by how much the prediction depends on them."""

import copy

import pytest
import torch
import zoo
from test_dependence import KINDS, observers_of
from torch import nn

import mcf_mm
from mcf_mm.pruning import Seen, build_criterion, calibrate, find_units, prune
from mcf_mm.pruning.criteria import CRITERIA, HSIC
from mcf_mm.pruning.dependence import Dependence, DependenceObserver


@pytest.mark.parametrize('name', ['mmpretrain SwinTransformer', 'timm Swin'])
def test_windows_are_put_side_by_side(name):
    model = zoo.network(name)
    side = zoo.images(name).shape[-1]
    x = torch.randn(6, 3, side, side, generator=torch.Generator().manual_seed(3))
    criterion, units = HSIC(), find_units(model)
    sizes = {unit.name: {k: 1 for k in unit.kinds if k in KINDS} for unit in units}
    seen = calibrate(
        model, [x], criterion.observers(units, sizes), forward=lambda x: zoo.outputs(model, x)
    )
    for unit in units:
        for kind in sizes[unit.name]:
            scores = criterion.scores(unit, kind, seen)
            assert scores.shape == (unit.count(kind),) and scores.isfinite().all()


def test_scores_are_those_of_the_paper(transformer, batches):
    x = batches[0].double()
    criterion = HSIC()
    units = find_units(transformer)
    attention, ffn = units.attentions[0], units.ffns[0]
    sizes = {attention.name: dict(heads=2), ffn.name: dict(hidden=9)}
    seen = calibrate(transformer, [x], criterion.observers([attention, ffn], sizes))
    found = seen.dependence(attention, 'heads')
    for head, score in enumerate(criterion.scores(attention, 'heads', seen)):
        others = [float(found.between[head, other]) for other in range(3) if other != head]
        assert float(score) == pytest.approx(float(found.prediction[head]) - 0.1 * sum(others) / 2)
    found = seen.dependence(ffn, 'hidden')
    parts = [(v - v.min()) / (v.max() - v.min()) for v in (found.prediction, found.size)]
    torch.testing.assert_close(
        criterion.scores(ffn, 'hidden', seen), 0.1 * parts[0] + 0.9 * parts[1]
    )
    structure = criterion.select([attention, ffn], sizes, seen)
    assert structure.sizes == sizes


def test_one_head_has_no_others_and_equal_units_no_range(transformer):
    criterion, units = HSIC(), find_units(transformer)
    attention, ffn = units.attentions[0], units.ffns[0]
    one = Dependence(torch.tensor([0.5]).double(), between=torch.tensor([[0.7]]).double())
    equal = Dependence(torch.full((20,), 0.2).double(), size=torch.zeros(20).double())
    name = DependenceObserver.__name__
    seen = Seen({(name, attention.name, 'heads'): one, (name, ffn.name, 'hidden'): equal})
    assert criterion.scores(attention, 'heads', seen).tolist() == [0.5]
    assert criterion.scores(ffn, 'hidden', seen).tolist() == [0.0] * 20


def test_a_network_without_classifier_is_refused(transformer, batches):
    transformer.head = nn.Identity()
    images = [batch.double() for batch in batches]
    message = "Transformer has no classifier .*: take a criterion .* 'activation'"
    with pytest.raises(ValueError, match=message):
        calibrate(transformer, images, observers_of(transformer))
    with pytest.raises(ValueError, match=message):
        prune(transformer, images, 'hsic', dict(heads=0.4))
    assert find_units(transformer).sizes['blocks.0.attn']['heads'] == 3


def test_other_kinds_are_refused(transformer, batches):
    message = r"HSIC scores \['heads', 'hidden'\] and no \['inputs', 'qk'\]: take another"
    with pytest.raises(ValueError, match=message):
        prune(transformer, batches, 'hsic', dict(inputs=0.4, qk=0.4, hidden=0.4))
    unit = find_units(transformer)[0]
    with pytest.raises(ValueError, match="kind must be 'heads' or 'hidden', got 'v' of blocks.0"):
        DependenceObserver(unit, 'v')


def test_tokens_go_beside_heads_and_hidden_units():
    model, x = zoo.network('timm ViT'), zoo.images('timm ViT')
    structure = prune(model, [x], 'hsic', ratios=dict(heads=0.4, hidden=0.4, tokens=0.3))
    sizes = {name: unit.sizes for name, unit in find_units(model).by_name.items()}
    assert sizes['blocks.0'] == dict(tokens=11)  # of 17; then 8 of 12
    assert sizes['blocks.1'] == structure.sizes['blocks.1'] == dict(tokens=8)
    assert sizes['blocks.1.attn']['heads'] == 1
    assert zoo.outputs(model, x).isfinite().all()


def test_it_has_a_name():
    assert CRITERIA['hsic'] is HSIC
    assert isinstance(build_criterion('HSIC'), HSIC)
    assert isinstance(build_criterion(dict(type='hsic')), HSIC)


@pytest.mark.parametrize(
    'name', ['mmpretrain VisionTransformer', 'timm ViT', 'timm DeiT distilled', 'Hugging Face ViT']
)
def test_networks_become_smaller(name):
    model = zoo.network(name)
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    forward = None if name.startswith('timm') else lambda x: zoo.outputs(model, x)
    again = copy.deepcopy(model)
    ratios = dict(heads=0.25, hidden=0.4)
    structure = mcf_mm.prune(model, [x, x[:3]], 'hsic', ratios, forward=forward)
    hidden = {unit.fc1.out_features for unit in find_units(model).ffns}
    dense = find_units(again).ffns[0].fc1.out_features
    assert hidden == {int(0.6 * dense + 1e-9)}
    assert {unit.sizes['heads'] for unit in find_units(model).attentions} == {2}
    assert zoo.outputs(model, x).isfinite().all()
    forward = None if forward is None else lambda x: zoo.outputs(again, x)
    repeated = mcf_mm.prune(again, [x, x[:3]], dict(type='HSIC'), ratios, forward=forward)
    assert repeated.to_json() == structure.to_json()


def test_a_budget_takes_heads_and_hidden_units():
    model = zoo.moved(zoo.timm_vit(embed_dim=48, mlp_ratio=2))
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    structure = prune(model, [x], 'hsic', budget='macs=70%')
    assert {kind for kinds in structure.sizes.values() for kind in kinds} == {'heads', 'hidden'}
