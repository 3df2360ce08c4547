"""Criteria: the built-in ones against plain computations, and a function of the user's own."""

import pytest
import torch
import zoo

from mcf_mm.pruning import MCF, ActivationObserver, Criterion, build_criterion, find_units, prune
from mcf_mm.pruning.calibration import Seen, calibrate

KINDS = ('heads', 'qk', 'v', 'inputs', 'hidden')


def units_with(model, kind):
    return [unit for unit in find_units(model) if kind in unit.kinds]


def query_key_value(unit) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights ``(heads, channels, C)`` of query, key and value."""
    module = unit.module
    if hasattr(module, 'qkv'):
        parts = module.qkv.weight.chunk(3)
    else:
        parts = (module.q_proj.weight, module.k_proj.weight, module.v_proj.weight)
    return tuple(part.detach().double().unflatten(0, (unit.sizes['heads'], -1)) for part in parts)


def plain_magnitude(unit, kind) -> torch.Tensor:
    if kind == 'inputs':
        return unit.fc1.weight.detach().double().norm(dim=0)
    if kind == 'hidden':
        both = (unit.fc1.weight, unit.fc2.weight.T)
        return torch.cat([weight.detach().double() for weight in both], 1).norm(dim=1)
    query, key, value = query_key_value(unit)
    proj = unit.proj.weight.detach().double().T.unflatten(0, (unit.sizes['heads'], -1))
    if kind == 'qk':
        return torch.cat((query, key), 2).norm(dim=2).flatten()
    if kind == 'v':
        return torch.cat((value, proj), 2).norm(dim=2).flatten()
    squares = sum(part.square().sum((1, 2)) for part in (query, key, value, proj))
    table = getattr(unit.module, 'relative_position_bias_table', None)
    if table is not None:
        squares = squares + table.detach().double().square().sum(0)
    return squares.sqrt()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', ['timm ViT', 'Hugging Face ViT', 'mmdet SwinTransformer'])
def test_magnitude_is_the_norm_of_all_weights_of_an_element(name, kind):
    criterion = build_criterion('magnitude')
    for unit in units_with(zoo.network(name), kind):
        scores = criterion.scores(unit, kind, Seen({}))
        torch.testing.assert_close(scores.double(), plain_magnitude(unit, kind))


@pytest.mark.parametrize('kind', KINDS)
def test_activation_is_the_rms_times_the_norm_of_what_reads_it(transformer, batches, kind):
    criterion = build_criterion('activation')
    units = units_with(transformer, kind)
    sizes = {unit.name: {kind: 1} for unit in units}
    images = [batch.double() for batch in batches]
    seen = calibrate(transformer, images, criterion.observers(units, sizes))
    for unit in units:
        rms = seen[unit, kind].rms.double()
        if kind == 'qk':
            expected = rms[:12] * rms[12:]
        else:
            layer = dict(inputs='fc1', hidden='fc2').get(kind, 'proj')
            expected = rms * getattr(unit, layer).weight.detach().norm(dim=0)
        if kind == 'heads':
            expected = expected.view(3, 4).square().sum(1).sqrt()
        torch.testing.assert_close(criterion.scores(unit, kind, seen), expected)


def test_fisher_scores_heads_and_their_channels_in_one_run(transformer, batches):
    images = [batch.double() for batch in batches]
    criterion = build_criterion('fisher')
    units = find_units(transformer)
    sizes = {unit.name: dict.fromkeys(unit.kinds, 1) for unit in units}
    seen = calibrate(transformer, images, criterion.observers(units, sizes))
    for unit in units.attentions:
        channels = criterion.scores(unit, 'v', seen)
        assert channels.shape == (12,)
        heads = criterion.scores(unit, 'heads', seen)
        torch.testing.assert_close(heads, channels.view(3, 4).sum(1))


def test_random_is_equal_on_every_run_and_each_unit_has_its_own(transformer):
    units = find_units(transformer).ffns
    scores = [build_criterion('random').scores(unit, 'hidden', Seen({})) for unit in units]
    again = [build_criterion('random').scores(unit, 'hidden', Seen({})) for unit in units]
    assert all(torch.equal(one, two) for one, two in zip(scores, again, strict=True))
    assert not torch.equal(*scores)
    other = build_criterion(dict(type='random', seed=1)).scores(units[0], 'hidden', Seen({}))
    assert not torch.equal(scores[0], other)


def test_of_equal_scores_the_first_stay_and_each_head_keeps_equally_many(transformer):
    class Flat(Criterion):
        def scores(self, unit, kind, seen):
            return torch.zeros(unit.count(kind))

    unit = find_units(transformer).attentions[0]
    sizes = {unit.name: dict(heads=2, qk=3, v=1)}
    kept = Flat().select([unit], sizes, Seen({}))[unit.name]
    assert kept['heads'].tolist() == [0, 1]
    assert kept['qk'].tolist() == [0, 1, 2, 4, 5, 6]
    assert kept['v'].tolist() == [0, 4]


def score(unit, kind, seen):
    """A user's own: elements with a large variance, and the last of equal ones."""
    count = unit.count(kind)
    variance = seen[unit, kind].variance.cpu()
    if kind == 'heads':
        variance = variance.view(count, -1).sum(1)
    if kind == 'qk':
        variance = variance[:count] * variance[count:]
    return variance + torch.arange(count) * 1e-6


@pytest.mark.parametrize(
    'name', ['mmpretrain VisionTransformer', 'timm ViT', 'mmdet SwinTransformer']
)
def test_a_function_is_a_criterion(name):
    model, x = zoo.network(name), zoo.images(name)
    before = find_units(model).sizes
    asked = []

    def criterion(unit, kind, seen):
        asked.append((unit.name, kind))
        return score(unit, kind, seen)

    ratios = dict(heads=0.25, qk=0.3, v=0.2, hidden=0.4, inputs=0.1)
    structure = prune(model, [x], criterion=criterion, ratios=ratios)
    after = find_units(model).sizes
    assert structure.sizes == after
    assert len(asked) == sum(len(kinds) for kinds in before.values())
    for unit, kinds in before.items():
        for kind, size in kinds.items():
            assert after[unit][kind] == max(1, int(size * (1 - ratios[kind]) + 1e-9))
    assert zoo.outputs(model, x).isfinite().all()


def test_a_function_may_ask_for_observers_of_its_own(transformer, batches):
    def criterion(unit, kind, seen):
        # Hidden units whose value varies along with another one are the first to go.
        covariance = seen[unit, kind].covariance
        return covariance.diag() / covariance.abs().sum(1)

    def observers(units, sizes):
        return [ActivationObserver(unit, 'hidden', covariance=True) for unit in units.ffns]

    criterion.observers = observers
    images = [batch.double() for batch in batches]
    structure = prune(transformer, images, criterion, dict(hidden=0.4))
    assert structure.sizes == {f'blocks.{block}.mlp': dict(hidden=12) for block in (0, 1)}


@pytest.mark.parametrize(
    'criterion, message',
    [
        (
            lambda unit, kind, seen: torch.ones(3),
            r'scores of shape \(3,\) for hidden of blocks\.0\.mlp: .* \(40,\)',
        ),
        (
            lambda unit, kind, seen: torch.full((unit.count(kind),), torch.nan),
            r'not finite for blocks\.0\.mlp\.hidden',
        ),
    ],
)
def test_scores_that_cannot_be_are_named_and_nothing_is_changed(
    network, batches, criterion, message
):
    with pytest.raises(ValueError, match=message):
        prune(network, batches, criterion, dict(hidden=0.4))
    assert find_units(network).sizes['blocks.0.mlp'] == dict(inputs=12, hidden=40)


@pytest.mark.parametrize(
    'criterion, error, message',
    [
        ('mfc', ValueError, r"criterion must be one of \['mcf', .*\], got 'mfc'"),
        (dict(type='mcf', guides=1), ValueError, r"criterion .*unexpected .* 'guides'"),
        (dict(type='mcf', method='x'), ValueError, r"method must be one of .*, got 'x'"),
        (dict(type='mcf', guide=0), ValueError, r'guide must be in \(0, 1\], got 0'),
        (dict(type='mcf', scale=-1.0), ValueError, r'scale must be positive, got -1.0'),
        (
            dict(type='mcf', shared_inputs='model'),
            ValueError,
            "shared_inputs must be 'layer' or 'network', got 'model'",
        ),
        (7, TypeError, 'criterion must be a name, a dict, a function or a Criterion, got 7'),
        (dict(guide=1.0), ValueError, r"criterion must be one of \['mcf', .*\], got None"),
    ],
)
def test_what_is_no_criterion_is_refused(criterion, error, message):
    with pytest.raises(error, match=message):
        build_criterion(criterion)


def test_a_criterion_may_be_built_from_a_name_a_dict_a_class_or_itself():
    assert isinstance(build_criterion('MCF'), MCF)
    assert build_criterion(dict(type='mcf', guide=1.0)).guide == 1.0
    assert build_criterion(dict(type=MCF, guide=0.7)).guide == 0.7
    own = MCF()
    assert build_criterion(own) is own


def test_mcf_scores_no_attention_and_says_what_does(transformer, batches):
    message = r"MCF scores \['inputs', 'hidden'\] and no \['heads'\]: take another .* 'fisher'"
    with pytest.raises(ValueError, match=message):
        prune(transformer, batches, ratios=dict(heads=0.4, hidden=0.4))
