"""Policies: uniform, by threshold, within a budget to the last element, from a file."""

import functools
import json

import pytest
import torch
import zoo

from mcf_mm.pruning import (
    find_units,
    measure_costs,
    read_policy,
    threshold,
    uniform,
    within_budget,
)
from mcf_mm.pruning.budget import parse_budget
from mcf_mm.pruning.policy import check_sizes

ALL = ('heads', 'qk', 'v', 'inputs', 'hidden')


@functools.cache
def measured(name: str):
    model, x = zoo.network(name), zoo.images(name)[:1]
    units = find_units(model)
    return units, measure_costs(model, lambda model: zoo.outputs(model, x), units)


@pytest.fixture
def units():
    return measured('timm ViT')[0]  # heads 3, qk 8, v 8; inputs 24, hidden 96


def test_one_ratio_is_for_inputs_and_hidden_units(units):
    ffn = dict(inputs=14, hidden=57)
    assert uniform(units, 0.4) == {f'blocks.{block}.mlp': ffn for block in (0, 1)}
    ffn = dict(hidden=57)
    assert uniform(units, 0.4, kinds=['hidden']) == {f'blocks.{b}.mlp': ffn for b in (0, 1)}


def test_ratios_by_kind_are_for_every_unit_that_has_it(units):
    sizes = uniform(units, dict(heads=0.25, qk=0.3, hidden=0.5))
    assert sizes['blocks.1.attn'] == dict(heads=2, qk=5)  # qk in each head
    assert sizes['blocks.1.mlp'] == dict(hidden=48)
    assert len(sizes) == 4


def test_ratios_by_unit_name_what_is_pruned_of_each(units):
    ratios = {'blocks.0.attn': dict(v=0.5), 'blocks.1.mlp': dict(inputs=0.5, hidden=0.0)}
    assert uniform(units, ratios) == {
        'blocks.0.attn': dict(v=4),
        'blocks.1.mlp': dict(inputs=12, hidden=96),
    }


def test_sizes_may_be_multiples(units):
    sizes = uniform(units, dict(inputs=0.4, hidden=0.4), multiple=8)
    assert sizes['blocks.0.mlp'] == dict(inputs=16, hidden=56)


def test_networks_without_a_kind_of_norm_do_not_lose_it():
    units = measured('timm ViT with q/k norm')[0]
    with pytest.raises(ValueError, match=r"ratios names \['qk'\], the network has \['heads', "):
        uniform(units, dict(qk=0.3, v=0.3))


@pytest.mark.parametrize(
    'ratios, message',
    [
        (dict(hiddens=0.4), r"names \['hiddens'\], the network has \['heads', 'hidden', "),
        ({'blocks.7.mlp': dict(hidden=0.4)}, r"unit 'blocks\.7\.mlp', .*\(6 in all\)"),
        ({'blocks.0.mlp': dict(heads=0.4)}, r"\['heads'\] of blocks\.0\.mlp, which has \['inp"),
        (
            {'blocks.0.mlp': dict(hidden=0.4), 'heads': 0.5},
            r'must be {kind: ratio} or {unit: {kind: ratio}}, got',
        ),
        (dict(heads=1.5), r'heads of blocks\.0\.attn: .* in \[0, 1\), got 1.5'),
        (dict(hidden='0.4'), r"hidden of blocks\.0\.mlp: .* must be a number .* got '0.4'"),
    ],
)
def test_ratios_that_do_not_fit_are_named(units, ratios, message):
    with pytest.raises(ValueError, match=message):
        uniform(units, ratios)


def test_a_message_says_what_was_left_out():
    units = measured('mmpretrain T2T_ViT')[0]
    with pytest.raises(ValueError, match=r'; 2 are left out, the first .*attention1\.attn: its v'):
        uniform(units, dict(tiles=0.5))


@pytest.mark.parametrize(
    'sizes, message',
    [
        ({'blocks.0.mlp': dict(hidden=97)}, r'hidden of blocks\.0\.mlp is 97, .* from 1 to 96'),
        ({'blocks.0.mlp': dict(hidden=0)}, r'hidden of blocks\.0\.mlp is 0, .* from 1 to 96'),
        ({'blocks.0.attn': dict(qk=9)}, r'qk of blocks\.0\.attn is 9, it must be from 1 to 8'),
        ({'blocks.0.attn': dict(qk=2.5)}, r'qk of blocks\.0\.attn is 2.5'),
        ({'blocks.0.attn': dict(qk=True)}, r'qk of blocks\.0\.attn is True'),
        ({'blocks.0.attn': dict(q=3)}, r"\['q'\] of blocks\.0\.attn, which has \['heads', 'qk'"),
        ({'layers.0': dict(qk=3)}, "names the unit 'layers.0', the network has"),
    ],
)
def test_sizes_that_do_not_fit_are_named(units, sizes, message):
    with pytest.raises(ValueError, match=message):
        check_sizes(units, sizes, 'policy.json')


@pytest.mark.parametrize('name', ['timm ViT', 'mmpretrain SwinTransformer'])
@pytest.mark.parametrize('kind', ALL)
@pytest.mark.parametrize('ratio', [0.0, 0.3, 0.65])
def test_a_threshold_drops_its_share_of_the_network(name, kind, ratio):
    units = [unit for unit in measured(name)[0] if kind in unit.kinds]
    generator = torch.Generator().manual_seed(0)
    scores = {
        (unit.name, kind): torch.rand(unit.count(kind), generator=generator) * (1 + number)
        for number, unit in enumerate(units)
    }
    sizes = threshold(measured(name)[0], scores, {kind: ratio})
    every = torch.cat(list(scores.values()))
    limit = every.sort(descending=True).values[int(len(every) * (1 - ratio) + 1e-9) - 1]
    for unit in units:
        own = scores[unit.name, kind]
        exact = float((own >= limit).sum()) / unit.groups(kind)
        kept = sizes[unit.name][kind]
        if unit.groups(kind) == 1:
            assert kept == max(1, exact)
        else:  # equal numbers in the heads of a layer
            assert abs(kept - exact) <= (0.5 if exact >= 1 else 1)
    assert set(sizes) == {unit.name for unit in units}


def test_a_threshold_leaves_the_floors(units):
    scores = {
        (unit.name, 'hidden'): torch.arange(96.0) + 96 * n for n, unit in enumerate(units.ffns)
    }
    assert threshold(units, scores, dict(hidden=0.5)) == {
        'blocks.0.mlp': dict(hidden=1),
        'blocks.1.mlp': dict(hidden=96),
    }
    floored = threshold(units, scores, dict(hidden=0.5), floors=dict(hidden=16))
    assert floored['blocks.0.mlp'] == dict(hidden=16)
    with pytest.raises(ValueError, match='there are no scores of inputs'):
        threshold(units, scores, dict(inputs=0.5))
    with pytest.raises(ValueError, match=r'must be a number in \[0, 1\), got 1'):
        threshold(units, scores, dict(hidden=1))


BUDGETS = [
    ('timm ViT', 'macs=70%', ['hidden']),
    ('timm ViT', 'macs=55%', ALL),
    ('timm ViT', {'params': 0.8}, ['inputs', 'hidden']),
    ('mmpretrain SwinTransformer', 'params=60%', ALL),
    ('mmpretrain SwinTransformer', 'macs=80%', ['heads', 'v']),
    ('Hugging Face ViT', {'macs': 0.75}, ['qk', 'v', 'hidden']),
]


@pytest.mark.parametrize('name, budget, kinds', BUDGETS)
def test_a_budget_is_met_to_the_last_element(name, budget, kinds):
    units, costs = measured(name)
    what, wanted = parse_budget(budget, costs)
    sizes = within_budget(units, costs, budget, kinds)
    check_sizes(units, sizes)
    assert costs.of(sizes)[what] <= wanted < costs.of({})[what]
    assert {kind for own in sizes.values() for kind in own} == set(kinds)
    full = units.sizes
    for unit, own in sizes.items():
        for kind, number in own.items():
            if number < full[unit][kind]:
                more = {**sizes, unit: {**own, kind: number + 1}}
                assert costs.of(more)[what] > wanted, (unit, kind)


def test_a_budget_may_have_a_shape_of_ones_own_and_floors():
    units, costs = measured('timm ViT')

    def shape(strength):  # only the second block
        return {'blocks.1.mlp': dict(hidden=round(96 - 95 * strength))}

    sizes = within_budget(units, costs, 'params=90%', shape)
    assert list(sizes) == ['blocks.1.mlp'] and list(sizes['blocks.1.mlp']) == ['hidden']
    assert costs.of(sizes)['params'] <= 0.9 * costs.of({})['params']
    floors = dict(heads=2, hidden=40)
    sizes = within_budget(units, costs, 'macs=65%', ['heads', 'hidden'], floors)
    assert min(own['heads'] for own in sizes.values() if 'heads' in own) >= 2
    assert min(own['hidden'] for own in sizes.values() if 'hidden' in own) >= 40
    with pytest.raises(
        ValueError, match='is the least that pruning heads to 2, hidden to 40 leaves'
    ):
        within_budget(units, costs, 'macs=40%', ['heads', 'hidden'], floors)


def test_a_budget_that_the_network_meets_prunes_nothing():
    units, costs = measured('timm ViT')
    sizes = within_budget(units, costs, 'macs=100%', ['hidden'])
    assert sizes == {f'blocks.{block}.mlp': dict(hidden=96) for block in (0, 1)}


def test_a_budget_out_of_reach_says_what_can_be_reached():
    units, costs = measured('timm ViT')
    smallest = costs.of({f'blocks.{block}.mlp': dict(hidden=1) for block in (0, 1)})['params']
    message = (
        rf'no policy meets the budget of 1,000 params: {smallest:,} is the least that pruning '
        'hidden to 1 leaves; prune more kinds or take a larger budget'
    )
    with pytest.raises(ValueError, match=message):
        within_budget(units, costs, 'params=1000', ['hidden'])


def test_budgets_are_numbers_or_shares_of_the_dense_network():
    costs = measured('timm ViT')[1]
    dense = costs.of({})
    assert parse_budget('params=12345', costs) == ('params', 12345)
    assert parse_budget('macs=60%', costs) == ('macs', round(0.6 * dense['macs']))
    assert parse_budget('macs=0.6', costs) == ('macs', round(0.6 * dense['macs']))
    assert parse_budget({'macs': 1.2e6}, costs) == ('macs', 1200000)
    assert parse_budget({'params': '50%'}, costs) == ('params', round(0.5 * dense['params']))


@pytest.mark.parametrize(
    'budget, message',
    [
        ('60%', "must be 'params=N' or 'macs=N' or a share, N%, got '60%'"),
        ('flops=60%', 'got .flops=60%'),
        ({'macs': 0.5, 'params': 0.5}, "must be 'params=N' or 'macs=N'"),
        ({}, "must be 'params=N' or 'macs=N'"),
        ('macs=many', "budget must be a number, got 'macs=many'"),
        ({'macs': None}, 'budget must be a number, got'),
        ('macs=0', "budget must be positive, got 'macs=0'"),
        ('macs=-5%', "budget must be positive, got 'macs=-5%'"),
        ('macs=nan', "budget must be positive, got 'macs=nan'"),
        ('params=inf', "budget must be positive, got 'params=inf'"),
    ],
)
def test_what_is_no_budget_is_refused(budget, message):
    with pytest.raises(ValueError, match=message):
        parse_budget(budget, measured('timm ViT')[1])


def test_a_policy_file_holds_sizes_at_the_top_or_under_sizes(tmp_path):
    sizes = {'blocks.0.mlp': dict(hidden=7)}
    path = tmp_path / 'policy.json'
    for content in (sizes, dict(sizes=sizes, note='found by a search')):
        path.write_text(json.dumps(content))
        assert read_policy(path) == read_policy(str(path)) == sizes


@pytest.mark.parametrize(
    'content, message',
    [
        ('{"a": ', r'policy\.json is no JSON: '),
        ('[1, 2]', r'policy\.json must be {"unit": {"kind": number}}'),
        ('{"a": 3}', r'policy\.json must be {"unit": {"kind": number}}, or that under "sizes"'),
        ('{"sizes": 3}', r'policy\.json must be'),
    ],
)
def test_a_file_that_is_no_policy_is_named(tmp_path, content, message):
    path = tmp_path / 'policy.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_policy(path)


def test_a_policy_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no policy file .*nowhere\.json'):
        read_policy(tmp_path / 'nowhere.json')


def test_a_unit_that_is_not_run_cannot_be_counted(network):
    network.spare = torch.nn.ModuleDict({'mlp': type(network.blocks[0].mlp)(12, 40)})
    with pytest.raises(ValueError, match=r'spare\.mlp is not run in evaluation \(nor are 0 oth'):
        measure_costs(network, lambda model: model(torch.zeros(1, 6, 12)))
