"""Tokens that are dropped: which stay, what becomes of the others, what it costs."""

import copy
import pickle

import pytest
import timm
import torch
import zoo
from dropping import ARCH, drop, images, timm_vit, token_units, vit

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.models import SlimVisionTransformer
from mcf_mm.pruning import find_units, measure_costs, prune, uniform, within_budget
from mcf_mm.pruning.policy import check_sizes, without_tokens
from mcf_mm.pruning.token_units import token_flow
from mcf_mm.weights.timm import to_timm


def direct(model, image: torch.Tensor, ratio: float) -> torch.Tensor:
    """Class token of one image in double precision, tokens dropped between attention and FFN."""
    model = copy.deepcopy(model).double()
    x = model.patch_embed(image[None].double())[0][0]
    x = torch.cat((model.cls_token[0], x)) + model.pos_embed[0]
    for number, layer in enumerate(model.layers):
        attention, normed = layer.attn, layer.ln1(x)
        query, key, value = attention.qkv(normed).unflatten(-1, (3, 2, 12)).permute(1, 2, 0, 3)
        weights = (query @ key.mT * 12**-0.5).softmax(-1)  # (heads, N, N)
        x = x + attention.proj((weights @ value).transpose(0, 1).flatten(1))
        if number in (1, 2, 3):
            kept = int(len(x) * (1 - ratio))
            order = weights[:, 0, 1:].mean(0).argsort(descending=True)[: kept - 1] + 1
            stay = [0, *sorted(order.tolist())]
            gone = [token for token in range(len(x)) if token not in stay]
            x = torch.cat((x[stay], x[gone].mean(0, keepdim=True)))
        x = layer.ffn(layer.ln2(x), identity=x)
    return model.ln1(x[0])


def test_tokens_stay_as_in_a_plain_computation():
    dense = vit()
    small = copy.deepcopy(dense)
    assert [kinds['tokens'] for kinds in drop(small, 0.4).values()] == [10, 6, 4]
    with torch.no_grad():
        seen = small(images())[0]
        wanted = torch.stack([direct(dense, image, 0.4) for image in images()])
    assert torch.allclose(seen.double(), wanted, atol=2e-5)
    assert not torch.allclose(seen, dense(images())[0], atol=1e-2)


def test_fewer_arrive_at_each_block_as_in_the_published_policy():
    model = timm.create_model('deit_small_patch16_224')
    sizes = uniform(find_units(model), dict(tokens=0.488))
    flow = token_flow(find_units(model), sizes)
    assert flow == {'blocks.3': (197, 101), 'blocks.6': (101, 52), 'blocks.9': (52, 27)}


#: Policies of 60 % less, from the release: token ratio, hidden units, heads, GMACs of the blocks.
PUBLISHED = {
    'deit_small_patch16_224': (
        0.488,
        [1347, 1533, 1517, 782, 1376, 1032, 1505, 1130, 1498, 964, 1016, 1037],
        [5, 5, 5, 4, 5, 5, 5, 5, 4, 5, 5, 5],
        1.863,
    ),
    'deit_base_patch16_224': (
        0.401,
        [1560, 1769, 1986, 2249, 2697, 2879, 1646, 2815, 2847, 3061, 2985, 2541],
        [9, 6, 7, 6, 10, 11, 9, 11, 10, 10, 11, 7],
        6.938,
    ),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_macs_of_the_published_policies_are_the_published_ones(name):
    ratio, hidden, heads, published = PUBLISHED[name]
    model = timm.create_model(name)
    units = find_units(model)
    costs = measure_costs(model, lambda model: model(torch.zeros(1, 3, 224, 224)))
    sizes = uniform(units, dict(tokens=ratio))
    for number in range(12):
        sizes[f'blocks.{number}.mlp'] = dict(hidden=hidden[number])
        sizes[f'blocks.{number}.attn'] = dict(heads=heads[number])
    width = model.embed_dim
    others = 196 * 3 * 16 * 16 * width + 1000 * width  # patches and classifier
    assert (costs.of(sizes)['macs'] - others) / 1e9 == pytest.approx(published, rel=5e-3)


@pytest.mark.parametrize('ratio', [0.2, 0.6])
@pytest.mark.parametrize('build', [vit, timm_vit])
def test_costs_in_closed_form_are_those_that_are_counted(build, ratio):
    model = build()
    forward = lambda model: model(torch.zeros(1, 3, 64, 64))  # noqa: E731
    costs = measure_costs(model, forward)
    ratios = dict(tokens=ratio, heads=0.5, hidden=0.3, qk=0.25)
    sizes = uniform(find_units(model), ratios)
    predicted = costs.of(sizes)
    prune(model, criterion='magnitude', sizes=sizes)
    assert measure_costs(model, forward).of({}) == predicted
    counted = count_complexity(model, (64, 64))
    assert (counted.params, counted.macs) == (predicted['params'], predicted['macs'])


def test_a_budget_is_met_with_tokens_to_the_last_element_of_the_others():
    model = vit()
    units = find_units(model)
    costs = measure_costs(model, lambda model: model(torch.zeros(1, 3, 64, 64)))
    wanted = round(0.6 * costs.of({})['macs'])
    sizes = within_budget(units, costs, 'macs=60%', ['tokens', 'heads', 'hidden'])
    assert costs.of(sizes)['macs'] <= wanted
    for name, kinds in sizes.items():
        if 'hidden' in kinds and kinds['hidden'] < 48:
            more = {**sizes, name: {'hidden': kinds['hidden'] + 1}}
            assert costs.of(more)['macs'] > wanted
    check_sizes(units, sizes)
    alone = within_budget(units, costs, 'macs=80%', ['tokens'])
    wanted = round(0.8 * costs.of({})['macs'])
    assert costs.of(alone)['macs'] <= wanted
    flow = token_flow(units, alone)
    for name, kinds in alone.items():
        more = {**alone, name: {'tokens': kinds['tokens'] + 1}}
        assert kinds['tokens'] == flow[name][0] or costs.of(more)['macs'] > wanted
    check_sizes(units, alone)


@pytest.mark.parametrize('build', [vit, timm_vit])
def test_a_prediction_does_not_depend_on_its_neighbours(build):
    model = build()
    drop(model, 0.5)
    x = images(batch=6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        first, shuffled, single = model(x), model(x[order]), model(x[2:3])
    if isinstance(first, tuple):
        first, shuffled, single = first[0], shuffled[0], single[0]
    assert torch.allclose(first[order], shuffled, atol=1e-5)
    assert torch.allclose(first[2:3], single, atol=1e-5)


@pytest.mark.parametrize(
    'name', ['mmpretrain T2T_ViT', 'mmpretrain layer scale', 'timm ViT with q/k norm']
)
def test_other_networks_drop_tokens_at_the_promised_cost(name):
    model, x = zoo.network(name), zoo.images(name)[:1]
    costs = measure_costs(model, lambda model: zoo.outputs(model, x))
    sizes = uniform(find_units(model), dict(tokens=0.4, hidden=0.3))
    predicted = costs.of(sizes)
    assert predicted['macs'] < costs.of(without_tokens(sizes))['macs']
    prune(model, criterion='magnitude', sizes=sizes)
    assert measure_costs(model, lambda model: zoo.outputs(model, x)).of({}) == predicted
    assert zoo.outputs(model, x).isfinite().all()


def test_the_class_token_stays_whatever_attends_to_it():
    model = vit()
    drop(model, 0.9)
    choices = []
    for unit in token_units(model):
        unit.reduction.register_forward_hook(lambda module, *_: choices.append(module.choice))
    with torch.no_grad():
        model(images())
    assert len(choices) == 3
    assert all(bool((choice.index[:, 0] == 0).all()) for choice in choices)
    for choice in choices:
        assert torch.allclose(choice.weights.sum(1), torch.ones(5))
        assert bool((choice.weights.gather(1, choice.index) == 0).all())


def test_both_extra_tokens_of_a_distilled_network_stay():
    model = zoo.network('timm DeiT distilled')
    assert [(unit.first, unit.readers) for unit in token_units(model)] == [(2, (0, 2))] * 2


@pytest.mark.parametrize('build', [vit, timm_vit])
def test_copies_and_pickles_drop_the_same_tokens(build):
    model = build()
    drop(model, 0.4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            one, two = model(images()), other(images())
        assert torch.equal(one[0], two[0])


def test_a_network_can_have_all_its_tokens_back():
    model, dense = vit(), vit()
    drop(model, 0.4)
    for unit in token_units(model):
        unit.keep(unit.arriving)
    assert [type(layer) for layer in model.layers] == [type(layer) for layer in dense.layers]
    assert model.state_dict().keys() == dense.state_dict().keys()
    assert torch.equal(model(images())[0], dense(images())[0])


def test_a_checkpoint_says_how_many_tokens_stay():
    model = vit()
    drop(model, 0.4)
    weights = model.state_dict()
    assert weights['layers.2.attn.reduction.tokens'].tolist() == [6, 11]
    auto = vit(sizes='auto')
    auto.load_state_dict(weights)
    named = vit(sizes=dict(tokens=[10, 6, 4]))
    named.load_state_dict(weights)
    with torch.no_grad():
        wanted = model(images())[0]
        assert torch.equal(auto(images())[0], wanted)
        assert torch.equal(named(images())[0], wanted)
    with pytest.raises(ValueError, match='checkpoint has 10 tokens, the model 17 tokens'):
        vit().load_state_dict(weights)
    with pytest.raises(ValueError, match='6 of 11 tokens stay|10 of 17 tokens stay'):
        SlimVisionTransformer(arch=ARCH, img_size=96, sizes='auto').load_state_dict(weights)


def test_timm_takes_a_network_that_drops_tokens():
    model = timm_vit(num_classes=7)
    drop(model, 0.4)
    again = to_timm(model.state_dict(), timm_vit(num_classes=7))
    with torch.no_grad():
        assert torch.equal(again.eval()(images()), model(images()))


@pytest.mark.parametrize(
    ('kwargs', 'reason'),
    [
        (dict(out_type='featmap'), 'its patches are read'),
        (dict(out_type='avg_featmap'), 'its patches are read'),
        (dict(out_type='featmap', window_size=2), 'its patches are read'),
        (dict(out_indices=(1, 3)), 'the results of several blocks are read'),
    ],
)
def test_tokens_stay_where_patches_are_read(kwargs, reason):
    model = vit(**kwargs)
    assert token_units(model) == []
    with pytest.raises(ValueError, match=reason):
        prune(model, criterion='magnitude', ratios=dict(tokens=0.4))


def test_tokens_stay_where_timm_averages_them():
    with pytest.raises(ValueError, match="global_pool='avg'"):
        prune(timm_vit(global_pool='avg'), criterion='magnitude', ratios=dict(tokens=0.4))


def test_a_backbone_of_maps_refuses_a_checkpoint_that_drops_tokens():
    model = vit()
    drop(model, 0.4)
    with pytest.raises(ValueError, match='drops tokens .*its patches are read'):
        vit(out_type='featmap', sizes='auto').load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ('tokens', 'match'),
    [([10, 12, 4], 'from 2 to 11'), ([1, 6, 4], 'from 2 to 17'), ([10, 6, 18], 'from 1 to 17')],
)
def test_sizes_that_cannot_be_are_refused_and_nothing_changes(tokens, match):
    model = vit()
    sizes = {f'layers.{n}': dict(tokens=own) for n, own in zip((1, 2, 3), tokens, strict=True)}
    with pytest.raises(ValueError, match=match):
        prune(model, criterion='magnitude', sizes=sizes)
    assert 'layers.1.attn.reduction.tokens' not in model.state_dict()


def test_sequential_solves_do_not_go_with_dropped_tokens():
    with pytest.raises(ValueError, match='cannot drop tokens'):
        prune(
            vit(),
            [images()],
            'activation',
            ratios=dict(tokens=0.3, hidden=0.3),
            compensation='sequential',
        )


def test_a_block_of_another_kind_is_refused():
    model = timm_vit()

    class Parallel(type(model.blocks[0])):
        def forward(self, x, *args, **kwargs):
            return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))

    for block in model.blocks:
        block.__class__ = Parallel
    with pytest.raises(ValueError, match='does not compute attention and FFN'):
        drop(model, 0.4)


def test_gradients_reach_all_weights_of_a_network_that_drops_tokens():
    model = vit().train()
    drop(model, 0.4)
    model(images())[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_weights_that_keep_another_number_are_refused():
    one, two = timm_vit(), timm_vit()
    drop(one, 0.4)
    drop(two, 0.5)
    before = two.blocks[1].attn.reduction.tokens.tolist()
    with pytest.raises(ValueError, match='the checkpoint keeps 10 of 17 tokens, the network 8 of'):
        two.load_state_dict(one.state_dict(), strict=False)
    assert two.blocks[1].attn.reduction.tokens.tolist() == before
