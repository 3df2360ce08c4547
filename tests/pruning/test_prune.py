"""The whole method in one call: criteria, compensation, arguments, what cannot be pruned."""

import copy
import json

import pytest
import timm
import torch

from mcf_mm.pruning import MCF, build_criterion, find_units, prune

METHODS = [
    dict(type='mcf', method=method) for method in ('mcf', 'random', 'magnitude', 'activation')
]
CRITERIA = ['magnitude', 'activation', 'fisher', 'random']


def error(network, dense, batches):
    with torch.no_grad():
        return float((network(batches[0]) - dense(batches[0])).square().mean())


@pytest.mark.parametrize('criterion', METHODS + CRITERIA, ids=str)
def test_every_criterion_gives_the_sizes_and_repeats_itself(network, batches, criterion):
    again = copy.deepcopy(network)
    ratios = dict(inputs=0.25, hidden=0.5)
    structure = prune(network, batches, criterion, ratios)
    sizes = dict(inputs=9, hidden=20)
    assert structure.sizes == {f'blocks.{block}.mlp': sizes for block in range(3)}
    assert prune(again, batches, criterion, ratios).to_json() == structure.to_json()
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize('criterion', ['random', dict(type='mcf', method='random')])
def test_random_depends_on_the_seed(network, batches, criterion):
    criterion = criterion if isinstance(criterion, dict) else dict(type=criterion)
    again = copy.deepcopy(network)
    first = prune(network, batches, dict(criterion, seed=0), 0.4)
    assert prune(again, batches, dict(criterion, seed=1), 0.4).to_json() != first.to_json()


def test_ratio_zero_changes_no_output(network, batches):
    dense = copy.deepcopy(network)
    structure = prune(network, batches, ratios=0)
    assert structure.sizes['blocks.0.mlp'] == dict(inputs=12, hidden=40)
    assert error(network, dense, batches) < 1e-10


def test_without_ratios_two_fifths_of_inputs_and_hidden_units_go(network, batches):
    sizes = prune(network, batches).sizes
    assert sizes == {f'blocks.{block}.mlp': dict(inputs=7, hidden=24) for block in range(3)}


def test_kinds_that_are_not_named_stay(transformer, batches):
    images = [batch.double() for batch in batches]
    prune(transformer, images, 'activation', dict(v=0.5))
    for unit in find_units(transformer):
        expected = dict(heads=3, qk=4, v=2) if 'v' in unit.kinds else dict(inputs=12, hidden=20)
        assert unit.sizes == expected


def test_each_unit_may_have_ratios_or_sizes_of_its_own(network, batches, tmp_path):
    again, file = copy.deepcopy(network), copy.deepcopy(network)
    ratios = {'blocks.0.mlp': dict(hidden=0.5), 'blocks.2.mlp': dict(inputs=0.5)}
    structure = prune(network, batches, ratios=ratios)
    assert find_units(network).sizes == {
        'blocks.0.mlp': dict(inputs=12, hidden=20),
        'blocks.1.mlp': dict(inputs=12, hidden=40),
        'blocks.2.mlp': dict(inputs=6, hidden=40),
    }
    sizes = {'blocks.0.mlp': dict(hidden=20), 'blocks.2.mlp': dict(inputs=6)}
    assert prune(again, batches, sizes=sizes).to_json() == structure.to_json()
    path = tmp_path / 'policy.json'
    path.write_text(json.dumps(dict(sizes=sizes)))
    assert prune(file, batches, sizes=path).to_json() == structure.to_json()


def test_multiples_in_one_shot(network, batches):
    sizes = prune(network, batches, multiple=8).sizes
    assert sizes == {f'blocks.{block}.mlp': dict(inputs=8, hidden=24) for block in range(3)}


@pytest.mark.parametrize('criterion', [dict(type='mcf'), 'magnitude', 'fisher'], ids=str)
def test_a_criterion_tells_the_scores_of_its_last_selection(network, batches, criterion):
    criterion = build_criterion(criterion)
    structure = prune(network, batches, criterion, dict(hidden=0.4))
    for name, kinds in structure.items():
        scores = criterion.importance[name]['hidden']
        assert scores.shape == (40,)
        if not isinstance(criterion, MCF):  # which votes
            assert scores.topk(24).indices.sort().values.equal(kinds['hidden'])


def test_mcf_is_guided_by_the_classifier_of_the_network(network, batches):
    dense = copy.deepcopy(network)
    criterion = MCF()
    structure = prune(network, batches, criterion)
    assert criterion.classifier is network.head
    unguided = prune(dense, batches, dict(type='mcf', guide=1.0))
    assert structure.to_json() != unguided.to_json()


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(ratios=1.0), r'inputs of blocks\.0\.mlp: .* in \[0, 1\), got 1.0'),
        (dict(ratios=dict(hidden=-0.1)), r'hidden of blocks\.0\.mlp: .* in \[0, 1\), got -0.1'),
        (dict(ratios=dict(heads=0.4)), r"ratios names \['heads'\], the network has \['hidden', "),
        (dict(ratios={}), r'ratios={} and sizes=None prune nothing of this network'),
        (dict(sizes={}), r'ratios=None and sizes={} prune nothing of this network'),
        (dict(ratios=0.4, sizes={}), 'give either ratios or sizes, not both'),
        (dict(criterion='mfc'), r"criterion must be one of .*, got 'mfc'"),
        (dict(compensation='ls'), r"compensation must be one of .*, got 'ls'"),
        (dict(multiple=0), 'multiple must be at least 1, got 0'),
        (dict(multiple=2.5), 'multiple must be a whole number, got 2.5'),
        (dict(multiple=float('nan')), 'multiple must be a whole number, got nan'),
        (dict(criterion=dict(type='mcf', seed=-1)), 'seed must be a whole number .* got -1'),
        (dict(criterion=dict(type='random', seed=2**70)), 'seed must be a whole number .* got 118'),
        (dict(criterion=dict(type='random', seed=0.5)), 'seed must be a whole number .* got 0.5'),
        (
            dict(sizes={'blocks.0.mlp': dict(hidden=41)}),
            r'sizes: hidden of blocks\.0\.mlp is 41, it must be from 1 to 40',
        ),
    ],
)
def test_arguments_out_of_range_are_named(network, batches, arguments, message):
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=message):
        prune(network, batches, **arguments)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize('criterion', ['mcf', 'magnitude', 'random', 'fisher'])
@pytest.mark.parametrize(
    'name, value',
    [
        ('head.weight', float('nan')),  # calibration looks at none of these
        ('head.bias', float('inf')),
        ('blocks.2.mlp.fc2.weight', float('nan')),
        ('blocks.0.norm.weight', -float('inf')),
    ],
)
def test_weights_that_are_no_numbers_are_refused(network, batches, criterion, name, value):
    with torch.no_grad():
        network.get_parameter(name).view(-1)[0] = value
    before = find_units(network).sizes
    with pytest.raises(ValueError, match=f'1 of the weights of .* NaN or infinite.*first {name}'):
        prune(network, batches, criterion)
    assert find_units(network).sizes == before


def share_module(network):
    network.blocks[1].mlp = network.blocks[0].mlp


def share_weight(network):
    network.blocks[1].mlp.fc1.weight = network.blocks[0].mlp.fc1.weight


def share_with_no_unit(network):
    network.mirror = torch.nn.Linear(12, 40, bias=False)
    network.mirror.weight = network.blocks[0].mlp.fc1.weight


@pytest.mark.parametrize('share', [share_module, share_weight, share_with_no_unit])
@pytest.mark.parametrize('criterion', ['mcf', 'fisher'])
def test_weights_of_two_layers_are_refused(network, batches, criterion, share):
    share(network)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=r'blocks\.0\.mlp cannot be pruned: .* are one weight'):
        prune(network, batches, criterion)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_layers_that_are_not_pruned_may_share_weights(network, batches):
    share_with_no_unit(network)
    structure = prune(network, batches, 'fisher', {'blocks.2.mlp': dict(hidden=0.5)})
    assert list(structure) == ['blocks.2.mlp']


def test_a_network_without_units_is_refused(batches):
    with pytest.raises(ValueError, match='no FFN found in Linear, and no attention'):
        prune(torch.nn.Linear(3, 3), batches)
    gated = torch.nn.ModuleDict({'mlp': timm.layers.GluMlp(8, 16)})
    with pytest.raises(ValueError, match='no FFN found .*; mlp: fc1 gives 16 .*: it is gated'):
        prune(gated, batches)


def test_a_pruned_network_is_not_pruned_again(transformer, batches):
    images = [batch.double() for batch in batches]
    prune(transformer, images, 'activation', dict(hidden=0.4, heads=0.4))
    message = r"blocks\.0\.mlp is pruned already, to {'inputs': 12, 'hidden': 12}: start from"
    with pytest.raises(ValueError, match=message):
        prune(transformer, images, 'activation', dict(hidden=0.4))
    with pytest.raises(ValueError, match=r"blocks\.0\.attn is pruned already, to {'heads': 1,"):
        prune(transformer, images, 'activation', dict(v=0.4))


def test_a_deit_of_timm_gets_the_sizes_of_the_paper():
    torch.manual_seed(0)
    model = timm.create_model('deit_tiny_patch16_224', img_size=32, num_classes=10).eval()
    structure = prune(model, [torch.randn(4, 3, 32, 32)])
    sizes = dict(inputs=115, hidden=460)
    assert structure.sizes == {f'blocks.{block}.mlp': sizes for block in range(12)}
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
