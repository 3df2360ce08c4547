"""One line tells what stays as it is, and one that there are few calibration images."""

import copy
import re
import warnings

import pytest
import timm.layers
import torch
import zoo
from networks import Transformer
from torch import nn

from mcf_mm.pruning import calibrate, find_units, measure_costs, prune
from mcf_mm.pruning.compensation import COMPENSATIONS
from mcf_mm.pruning.criteria import OBS

NORMALISED = 'query and key are normalised over the channels of a head'


class Small(OBS):
    """Prunes small networks as well."""

    floors = dict(heads=1, qk=2, v=2, hidden=2, inputs=2)


def warned(part, function, *args, **arguments):
    """Warnings of a call that have a part."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        function(*args, **arguments)
    return [str(w.message) for w in caught if part in str(w.message)]


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(8, 3, 32, 32, generator=generator) for _ in range(3)]


@pytest.fixture
def normalised():
    return zoo.settled(zoo.network('timm ViT with q/k norm'))


@pytest.fixture
def mixed(normalised):
    """Only the first of two attentions normalises queries and keys."""
    for name in ('q_norm', 'k_norm'):
        setattr(normalised.blocks[1].attn, name, nn.Identity())
    return normalised


@pytest.fixture
def rotary():
    """The second attention is one with rotary positions, whose forward takes them."""
    if not hasattr(timm.layers, 'AttentionRope'):
        pytest.skip(f'timm {timm.__version__} has no AttentionRope')
    model = zoo.network('timm ViT')
    attention = timm.layers.AttentionRope(24, 3, num_prefix_tokens=0)
    model.blocks[1].attn = attention
    return model.eval()


def test_normalised_queries_and_keys_stay_and_a_budget_says_so(normalised, images):
    dense = copy.deepcopy(normalised)
    told = warned('left as', prune, normalised, images, Small(), budget='params=60%')
    assert told == [f'left as they are: qk of blocks.0.attn and 1 more ({NORMALISED})']
    units, full = find_units(normalised), find_units(dense).sizes
    assert all(unit.sizes['qk'] == 8 for unit in units.attentions)
    assert any(unit.sizes['v'] < full[unit.name]['v'] for unit in units.attentions)
    again = copy.deepcopy(dense)
    assert not warned('left as', prune, again, images, Small(), budget='params=92%', kinds=['v'])
    found = find_units(again).attentions
    assert any(unit.sizes['v'] < 8 for unit in found)
    assert torch.isfinite(again(images[0])).all()


def test_attentions_whose_forward_takes_positions_stay_and_a_budget_says_so(rotary, images):
    before = {k: v.clone() for k, v in rotary.blocks[1].attn.state_dict().items()}
    costs = measure_costs(rotary, lambda model: model(images[0][:1]))
    for criterion in (Small(), 'magnitude'):
        model = copy.deepcopy(rotary)
        told = warned('left as', prune, model, images, criterion, budget='params=85%', costs=costs)
        assert told == ["left as they are: blocks.1.attn (its forward takes ['rope'])"]
        after = model.blocks[1].attn.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_both_reasons_are_in_one_line(rotary, normalised, images):
    rotary.blocks[0].attn = normalised.blocks[0].attn
    told = warned('left as', prune, rotary, images, Small(), budget='params=90%')
    assert told == [
        f'left as they are: qk of blocks.0.attn ({NORMALISED}); '
        "blocks.1.attn (its forward takes ['rope'])"
    ]


@pytest.mark.parametrize('criterion', ['obs', 'magnitude'])
def test_ratios_of_a_kind_that_some_attentions_lack_say_so(mixed, images, criterion):
    told = warned('left as', prune, mixed, images, criterion, dict(qk=0.3, v=0.3))
    assert told == [f'left as they are: qk of blocks.0.attn ({NORMALISED})']
    first, second = find_units(mixed).attentions
    assert first.sizes['qk'] == 8 > second.sizes['qk'] and first.sizes['v'] < 8


def test_ratios_of_other_kinds_say_nothing(mixed, rotary, images):
    assert not warned('left as', prune, mixed, images, 'obs', dict(v=0.3, heads=0.3))
    assert not warned('left as', prune, rotary, images, 'obs', dict(hidden=0.3))


def test_a_kind_that_no_attention_has_is_an_error_that_says_why(normalised, images):
    message = re.escape(f'blocks.0.attn has no qk: {NORMALISED}')
    for arguments in (
        dict(ratios=dict(qk=0.3)),
        dict(ratios={'blocks.0.attn': dict(qk=0.3)}),
        dict(sizes={'blocks.0.attn': dict(qk=4)}),
        dict(budget='params=90%', kinds=['qk']),
    ):
        with pytest.raises(ValueError, match=rf"names \['qk'\].*{message}"):
            prune(normalised, images, 'obs', **arguments)


def network():
    """Hidden width 40, width 12, 7 tokens with the class token."""
    torch.manual_seed(0)
    return Transformer(12, 40).eval()


def few(number):
    return [torch.randn(number, 6, 12, generator=torch.Generator().manual_seed(1))]


def short(images, **arguments):
    return warned('few calibration', prune, network(), images, **arguments)


def test_few_images_are_told_of_in_one_line_that_names_the_worst_layer():
    told = short(few(3), criterion='obs', ratios=dict(hidden=0.3, v=0.3))
    assert told == [
        'few calibration images: the moments of blocks.0.mlp.fc2 have a rank of at most 21 of 41, '
        'from 21 tokens of 3 images; 1 more layers have too few as well. A ridge term keeps the '
        'solves well-posed, but calibrate on more images, 6 or more'
    ]
    assert not short(few(6), criterion='obs', ratios=dict(hidden=0.3, v=0.3))
    told = short(few(5), criterion='obs', budget='params=80%')
    assert len(told) == 1 and 'at most 35 of 41, from 35 tokens of 5 images' in told[0]


@pytest.mark.parametrize('compensation', COMPENSATIONS)
def test_only_what_is_solved_needs_so_many_images(compensation):
    ratios = dict(heads=0.3, hidden=0.3)
    arguments = dict(criterion='activation', ratios=ratios, compensation=compensation)
    solved = compensation in ('least_squares', 'sequential')
    assert len(short(few(3), **arguments)) == solved
    assert not short(few(6), **arguments)
    # The values alone are fewer than tokens.
    assert not short(few(2), **{**arguments, 'ratios': dict(heads=0.3)})
    told = short(few(1), **{**arguments, 'ratios': dict(heads=0.3)})
    assert len(told) == solved
    assert not told or 'blocks.0.attn.proj have a rank of at most 7 of 13' in told[0]


def test_the_rank_is_what_is_said_at_most():
    model = network()
    units, images = find_units(model), few(3)
    sizes = {unit.name: dict(hidden=20) for unit in units.ffns}
    seen = calibrate(model, images, OBS().observers(units, sizes))
    assert seen.images == 3
    for name in sizes:
        moments = seen.moments(name, 'hidden')
        values = torch.linalg.eigvalsh(moments.second)
        assert moments.tokens == 21 and int((values > 1e-6 * values[-1]).sum()) <= 21
    # What was seen earlier is told of in the same way.
    told = warned('few calibration', prune, model, criterion='obs', sizes=sizes, seen=seen)
    assert len(told) == 1 and 'from 21 tokens of 3 images' in told[0]
    seen.images = None  # as from a file
    told = warned('few calibration', prune, network(), criterion='obs', sizes=sizes, seen=seen)
    assert len(told) == 1 and told[0].endswith('well-posed, but calibrate on more images')
