"""Observers gather what a direct computation over all activations gives."""

import networks
import pytest
import torch
import zoo
from torch import nn

from mcf_mm.pruning import (
    ActivationObserver,
    AttentionObserver,
    GradientObserver,
    calibrate,
    find_units,
)
from mcf_mm.pruning.streams import MOMENT_TOKENS, moment_tokens


def values_at(model, unit, kind, images) -> torch.Tensor:
    """All values at a place of a unit, double ``(B, N, I)``."""
    seen, handles = [], []
    for place in unit.places(kind):
        own = slice(place.start, place.stop)
        if place.side == 'output':
            handles.append(
                place.module.register_forward_hook(
                    lambda m, a, out, own=own: seen.append(out[..., own])
                )
            )
        else:
            handles.append(
                place.module.register_forward_pre_hook(
                    lambda m, a, own=own: seen.append(a[0][..., own])
                )
            )
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return torch.cat(seen, -1).double()


def observe(model, batches, *observers):
    return calibrate(model, batches, observers)


@pytest.mark.parametrize('kind', ['inputs', 'hidden', 'heads', 'qk', 'v'])
def test_statistics_are_those_of_all_images_at_once(transformer, batches, kind):
    batches = [batch.double() for batch in batches]
    for unit in (unit for unit in find_units(transformer) if kind in unit.kinds):
        seen = observe(transformer, batches, ActivationObserver(unit, kind, covariance=True))
        u = values_at(transformer, unit, kind, torch.cat(batches))
        own = seen[unit, kind]
        torch.testing.assert_close(own.tokens.double(), u[:, 0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(own.mean.double(), u.mean((0, 1)), atol=1e-6, rtol=1e-5)
        rms = u.square().mean((0, 1)).sqrt()
        torch.testing.assert_close(own.rms.double(), rms, atol=1e-6, rtol=1e-5)
        variance = u.flatten(0, 1).var(0, correction=0)
        torch.testing.assert_close(own.variance.double(), variance, atol=1e-5, rtol=1e-4)
        covariance = u.flatten(0, 1).T.cov(correction=0)
        torch.testing.assert_close(own.covariance, covariance, atol=1e-5, rtol=1e-5)


def test_equal_observers_are_one_and_the_covariance_is_kept(network, batches):
    (ffn, *_) = find_units(network)
    observers = [ActivationObserver(ffn, 'hidden', covariance) for covariance in (False, True)]
    assert observe(network, batches, *observers)[ffn, 'hidden'].covariance is not None
    alone = observe(network, batches, ActivationObserver(ffn, 'hidden'))
    assert alone[ffn, 'hidden'].covariance is None


def test_a_network_without_class_token_uses_the_mean_of_its_tokens(network, batches):
    token = network.cls_token.data
    del network.cls_token
    network.cls_token = token
    ffn = find_units(network)[0]
    seen = observe(network, batches, ActivationObserver(ffn, 'hidden'))
    u = values_at(network, ffn, 'hidden', torch.cat(batches))
    torch.testing.assert_close(seen[ffn, 'hidden'].tokens.double(), u.mean(1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('length', [5, 31, 32, 33, 48, 63, 64, 70, 95, 197])
def test_moments_come_from_tokens_that_are_evenly_spaced(length):
    torch.manual_seed(length)
    model = networks.Network(depth=1).eval()
    (ffn,) = find_units(model)
    images = torch.randn(3, length - 1, 12)  # and the class token
    seen = observe(model, [images], ActivationObserver(ffn, 'inputs', covariance=True))
    u = values_at(model, ffn, 'inputs', images)
    assert u.shape[1] == length
    number = min(length, MOMENT_TOKENS)
    index = torch.arange(length)[moment_tokens(length)].tolist()
    assert index[0] == 0 and len(set(index)) == number
    steps = {later - earlier for earlier, later in zip(index, index[1:], strict=False)}
    assert steps <= {length // number, length // number + 1}
    assert length - index[-1] <= 0.1 * length + length / number  # to the end of the image
    covariance = u[:, index].flatten(0, 1).T.cov(correction=0)
    own = seen[ffn, 'inputs']
    torch.testing.assert_close(own.covariance, covariance, atol=1e-5, rtol=1e-5)
    # The other statistics take all tokens.
    torch.testing.assert_close(own.mean.double(), u.mean((0, 1)), atol=1e-6, rtol=1e-5)


class Counting(networks.Transformer):
    """Tells which tokens count, as YOLOS does."""

    def forward(self, x):
        counted = torch.ones(len(x), x.shape[1] + 1, dtype=torch.bool)
        counted[:, 0] = False  # nobody reads the class token
        counted[::2, -2:] = False  # padding in every other image
        self.counted_tokens = counted
        return super().forward(x)


@pytest.mark.parametrize('kind', ['inputs', 'hidden', 'qk', 'v'])
def test_tokens_that_do_not_count_enter_nothing(batches, kind):
    torch.manual_seed(0)
    model = Counting().double().eval()
    model.counted_tokens = None
    batch = batches[0].double()
    for unit in (unit for unit in find_units(model) if kind in unit.kinds):
        u = values_at(model, unit, kind, batch)
        seen = observe(model, [batch], ActivationObserver(unit, kind, covariance=True))
        counted = model.counted_tokens
        own, flat = seen[unit, kind], u[counted]
        tokens = torch.stack([image[some].mean(0) for image, some in zip(u, counted, strict=True)])
        torch.testing.assert_close(own.tokens.double(), tokens, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(own.mean.double(), flat.mean(0), atol=1e-6, rtol=1e-5)
        covariance = flat.T.cov(correction=0)
        torch.testing.assert_close(own.covariance, covariance, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', ['mmpretrain SwinTransformer', 'mmdet SwinTransformer'])
def test_padding_of_windows_counts_nowhere(name):
    # 6 x 6 tokens in windows of 4 are padded to 8 x 8, and 3 x 3 to 4 x 4.
    model = zoo.network(name).double()
    images = torch.randn(2, 3, 24, 24, dtype=torch.double)
    attentions = find_units(model).attentions
    observers = [
        ActivationObserver(unit, kind, covariance=True)
        for unit in attentions
        for kind in ('inputs', 'qk', 'v')
    ]
    around = {}  # tokens before and after, of the map without padding
    handles = [
        model.get_submodule(unit.name.removesuffix('.w_msa')).register_forward_hook(
            lambda m, args, out, name=unit.name: around.update({name: (args[0], out)})
        )
        for unit in attentions
    ]
    seen = observe(model, [images], *observers)
    for handle in handles:
        handle.remove()

    def close(found, expected):
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)

    for unit in attentions:
        x, out = (part.clone() for part in around[unit.name])
        assert x.shape[1] in (36, 9)
        qk = unit.module.qkv(x)[..., : 2 * unit.count('qk')]
        for kind, u in (('inputs', x), ('qk', qk)):
            own, flat = seen[unit, kind], u.flatten(0, 1)
            close(own.tokens, u.mean(1))
            close(own.mean, flat.mean(0))
            close(own.rms, flat.square().mean(0).sqrt())
        # proj is linear, so what it is given tells by what it makes of it.
        weight, bias = unit.proj.weight.detach(), unit.proj.bias.detach()
        own = seen[unit, 'v']
        close(own.tokens.double() @ weight.T + bias, out.mean(1))
        close(weight @ own.mean.double() + bias, out.mean((0, 1)))
        if x.shape[1] < MOMENT_TOKENS and unit.name.endswith('stages.1.blocks.0.attn.w_msa'):
            close(weight @ own.covariance @ weight.T, out.flatten(0, 1).T.cov(correction=0))


def by_hand(model, images, unit, kind) -> torch.Tensor:
    """Squared sum over tokens of value times gradient, mean over images, one at a time."""
    total = 0
    for image in images.split(1):
        seen, handles = [], []
        for place in unit.places(kind):
            if place.side == 'output':
                look = place.module.register_forward_hook
                handles.append(look(lambda m, args, out, seen=seen: seen.append(out)))
            else:
                look = place.module.register_forward_pre_hook
                handles.append(look(lambda m, args, seen=seen: seen.append(args[0])))
        scores = model(image)
        for x in seen:
            x.retain_grad()
        nn.functional.cross_entropy(scores, scores.argmax(1)).backward()
        for handle in handles:
            handle.remove()
        places = unit.places(kind)
        product = torch.cat(
            [(x * x.grad)[..., p.start : p.stop] for x, p in zip(seen, places, strict=True)], -1
        )
        total = total + product[0].sum(0).detach().square()
    model.zero_grad()
    return total / len(images)


def test_gradients_are_those_of_autograd_one_image_at_a_time(transformer, batches):
    batches = [batch.double() for batch in batches]
    units = find_units(transformer)
    seen = observe(
        transformer,
        batches,
        *(GradientObserver(unit, kind) for unit in units for kind in unit.kinds),
    )
    images = torch.cat(batches)
    for unit in units:
        for kind in unit.kinds:
            expected = by_hand(transformer, images, unit, kind)
            if kind == 'heads':  # of its value channels together
                expected = expected.unflatten(0, (3, 4)).sum(1)
            if kind == 'qk':  # query and key
                expected = expected.unflatten(0, (2, 12)).sum(0)
            found = seen.gradient(unit, kind).double()
            assert found.shape == (unit.count(kind),)
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-5)


def test_a_loss_of_ones_own_is_what_gradients_are_of(transformer, batches):
    (unit,) = find_units(transformer).ffns[-1:]
    seen = calibrate(
        transformer,
        [batches[0].double()],
        [GradientObserver(unit, 'hidden')],
        loss=lambda batch, scores: 3 * scores[:, 1].sum(),
    )
    # Only the class token is read: the gradient is what the head makes of fc2.
    u = values_at(transformer, unit, 'hidden', batches[0].double())[:, 0]
    weight = transformer.head.weight[1] @ unit.fc2.weight
    expected = (3 * u * weight).square().mean(0).detach()
    torch.testing.assert_close(seen.gradient(unit, 'hidden').double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    'name', ['mmpretrain VisionTransformer', 'timm ViT with q/k norm', 'Hugging Face DINOv2']
)
def test_attention_is_that_of_an_explicit_softmax(name):
    model, x = zoo.network(name).double(), zoo.images(name).double()
    attentions = find_units(model).attentions
    inputs = {unit.name: values_at(model, unit, 'inputs', x) for unit in attentions}
    seen = observe(model, x.split(1), *(AttentionObserver(unit) for unit in attentions))
    for unit in attentions:
        module, u = unit.module, inputs[unit.name]
        if hasattr(module, 'qkv'):
            query, key, _ = module.qkv(u).chunk(3, -1)
        else:
            query, key = module.q_proj(u), module.k_proj(u)
        query, key = (part.unflatten(-1, (3, 8)).transpose(1, 2) for part in (query, key))
        if 'norm' in name:
            query, key = module.q_norm(query), module.k_norm(key)
        attention = (query @ key.mT / 8**0.5).softmax(-1)  # (B, heads, N, N)
        expected = attention[:, :, 0].mean(0).detach()  # from the class token
        found = seen.attention(unit).double()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.sum(1), torch.ones(3, dtype=torch.double))


def test_attention_without_class_token_is_that_of_all_tokens(batches):
    torch.manual_seed(0)
    model = Counting().double().eval()  # its class token is not read
    model.counted_tokens = None
    (unit, *_) = find_units(model).attentions
    u = values_at(model, unit, 'inputs', batches[0].double())
    seen = observe(model, [batches[0].double()], AttentionObserver(unit))
    query, key, _ = unit.module.qkv(u).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
    expected = (query @ key.mT / 2).softmax(-1).mean((0, 2)).detach()
    torch.testing.assert_close(seen.attention(unit).double(), expected, atol=1e-6, rtol=1e-5)


def test_attention_in_windows_has_no_place_for_a_token():
    (unit, *_) = find_units(zoo.network('mmdet SwinTransformer')).attentions
    with pytest.raises(ValueError, match=r'w_msa attends inside windows'):
        AttentionObserver(unit)
