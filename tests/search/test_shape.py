"""Every proposal of a search lands on the budget, to the last element."""

import functools
import random

import pytest
import timm
import torch

from mcf_mm.pruning import find_units, measure_costs
from mcf_mm.search.shape import CAPS, Shape


@functools.cache
def network():
    model = timm.create_model(
        'vit_tiny_patch16_224',
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=5,
    )
    return find_units(model), measure_costs(model, lambda m: m(torch.zeros(1, 3, 32, 32)))


def shape_of(budget='macs=75%', kinds=('heads', 'hidden', 'qk', 'v', 'inputs'), **more) -> Shape:
    return Shape(*network(), budget, kinds, **more)


def random_x(shape: Shape, seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    # Often at the ends, where ratios are capped or floored.
    draw = [rng.random, lambda: 0.0, lambda: 1.0]
    return {name: rng.choice(draw)() for name in shape.names}


@pytest.mark.parametrize(
    'budget, kinds',
    [
        ('macs=80%', ('heads', 'hidden')),
        ('macs=55%', ('heads', 'hidden', 'qk', 'v', 'inputs')),
        ('params=70%', ('hidden', 'v')),
        ('params=60%', ('heads', 'inputs', 'hidden', 'qk', 'v')),
    ],
)
def test_any_numbers_cost_the_budget_and_no_element_more_fits(budget, kinds):
    units, costs = network()
    shape = shape_of(budget, kinds)
    what = budget.partition('=')[0]
    assert shape.wanted == round(float(budget[len(what) + 1 : -1]) / 100 * costs.of({})[what])
    assert len(shape.names) == sum(kind in kinds for unit in units for kind in unit.kinds)
    found = set()
    for seed in range(40):
        sizes = shape.sizes(random_x(shape, seed))
        assert costs.of(sizes)[what] <= shape.wanted
        for name, own in sizes.items():
            assert set(own) <= set(kinds)
            for kind, size in own.items():
                full = units.by_name[name].sizes[kind]
                assert max(1, int(full * (1 - CAPS[kind]) + 1e-9)) <= size <= full
                if size < full:
                    more = {**sizes, name: {**own, kind: size + 1}}
                    assert costs.of(more)[what] > shape.wanted, (name, kind)
        found.add(str(sizes))
    assert len(found) > 10  # the numbers matter


def test_sizes_fall_with_the_strength_and_end_at_the_caps():
    shape = shape_of(caps=dict(hidden=0.25))
    units = network()[0]
    for seed in range(10):
        x = random_x(shape, seed)
        last = units.sizes
        for strength in (0, 0.01, 0.2, 0.5, 0.7, 0.9, 0.99, 1):
            sizes = shape.at(x, strength)
            for name, own in sizes.items():
                for kind, size in own.items():
                    assert size <= last[name][kind]
            last = sizes
        for name, own in shape.at(x, 1).items():
            for kind, size in own.items():
                full = units.by_name[name].sizes[kind]
                cap = dict(CAPS, hidden=0.25)[kind]
                assert size == max(1, int(full * (1 - cap) + 1e-9))
        assert shape.at(x, 0) == {
            name: {kind: units.by_name[name].sizes[kind] for kind in own}
            for name, own in sizes.items()
        }


def test_a_unit_with_a_larger_number_loses_more_and_equal_numbers_are_uniform():
    shape = shape_of('macs=90%', kinds=('hidden',))
    first, second = shape.names
    sizes = shape.sizes({first: 0.9, second: 0.3})
    one, two = (own['hidden'] for own in sizes.values())
    assert one < two
    for value in (0.0, 0.3, 1.0):
        sizes = shape.sizes(dict.fromkeys(shape.names, value))
        one, two = (own['hidden'] for own in sizes.values())
        assert abs(one - two) <= 1


def test_units_of_tokens_share_one_number():
    """With units that have the kind, as far as the shape is concerned."""
    shape = shape_of(kinds=('hidden', 'heads'))
    shape.places = {
        key: 'tokens' if key[1] == 'heads' else name for key, name in shape.places.items()
    }
    shape.names = list(dict.fromkeys(shape.places.values()))
    assert sorted(shape.names) == ['blocks.0.mlp.hidden', 'blocks.1.mlp.hidden', 'tokens']
    sizes = shape.at(dict.fromkeys(shape.names, 0.2) | {'tokens': 1.0}, 0.5)
    assert {own['heads'] for own in sizes.values() if 'heads' in own} == {1}


def test_kinds_of_the_paper_are_the_default_where_the_network_has_them():
    shape = shape_of(kinds=None)
    assert shape.kinds == [k for k in ('heads', 'hidden', 'tokens') if k in shape.kinds]
    assert shape.caps == dict.fromkeys(shape.kinds, 0.5)


@pytest.mark.parametrize(
    'more, message',
    [
        (dict(kinds=['hidden', 'width']), r"dims names \['width'\], the network has \['heads'"),
        (dict(kinds=[]), 'dims must name one kind or more'),
        (dict(kinds=['hidden'], caps=dict(qk=0.4)), "max_ratio names 'qk', the search is over"),
        (dict(caps=dict(qk=1.0)), r'max_ratio of qk must be a number in \[0, 1\), got 1.0'),
        (dict(caps=dict(qk=float('nan'))), 'max_ratio of qk must be a number'),
        (dict(caps=dict(qk=0.0)), 'max_ratio of qk must be above 0'),
        (dict(budget='macs=100%'), 'the network meets the budget macs=100% as it is'),
        (dict(budget='flops=60%'), "budget must be 'params=N'"),
        (
            dict(budget='macs=40%', kinds=['heads', 'hidden']),
            r'no policy meets the budget of [\d,]+ macs: [\d,]+ is the least when at most '
            r'heads=0.5, hidden=0.5 are dropped; raise these caps \(--max-ratio\)',
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(more, message):
    with pytest.raises(ValueError, match=message):
        shape_of(**more)


def test_the_least_that_is_named_can_be_reached():
    with pytest.raises(ValueError) as error:
        shape_of('macs=1000', ('heads', 'hidden'))
    least = int(str(error.value).split('macs: ')[1].split()[0].replace(',', ''))
    shape = shape_of(f'macs={least}', ('heads', 'hidden'))
    assert network()[1].of(shape.sizes(random_x(shape, 0)))['macs'] == least
    with pytest.raises(ValueError, match='no policy'):
        shape_of(f'macs={least - 1}', ('heads', 'hidden'))


def test_numbers_that_do_not_fit_are_refused():
    shape = shape_of('macs=90%', kinds=('hidden',))
    with pytest.raises(ValueError, match=r"missing or unknown: \['blocks.1.mlp.hidden'"):
        shape.sizes({shape.names[0]: 0.5, 'other': 0.1})
    with pytest.raises(ValueError, match=r'must be in \[0, 1\], got 1.5'):
        shape.sizes(dict.fromkeys(shape.names, 1.5))


def test_one_number_is_for_the_tokens_of_all_blocks():
    model = timm.create_model('vit_tiny_patch16_224', img_size=64, embed_dim=24, depth=4)
    units, costs = find_units(model), measure_costs(model, lambda m: m(torch.zeros(1, 3, 64, 64)))
    shape = Shape(units, costs, 'macs=60%')
    assert shape.kinds == ['heads', 'hidden', 'tokens']
    assert len(shape.names) == 4 + 4 + 1
    for seed in range(20):
        sizes = shape.sizes(random_x(shape, seed))
        assert costs.of(sizes)['macs'] <= shape.wanted
        kept = [sizes[f'blocks.{number}']['tokens'] for number in (1, 2, 3)]
        # One ratio: each place keeps the same share of what arrives, rounded down.
        arriving = [17, kept[0] + (kept[0] < 17), kept[1] + (kept[1] < kept[0] + 1)]
        low = max(k / n for k, n in zip(kept, arriving, strict=True))
        high = min((k + 1) / n for k, n in zip(kept, arriving, strict=True))
        assert low <= high
        assert min(kept) >= 17 // 8
