"""Dependence on the prediction: streamed, in parts and in processes, as in plain loops."""

import math
import os

import pytest
import torch
from networks import Transformer
from test_observers import Counting, values_at
from torch import Tensor, distributed, nn

from mcf_mm.pruning import CalibrationError, calibrate, find_units
from mcf_mm.pruning import dependence as module
from mcf_mm.pruning.criteria import HSIC
from mcf_mm.pruning.dependence import Dependence, DependenceObserver, standardise

KINDS = ('heads', 'hidden')


def centred(gram: Tensor) -> Tensor:
    centre = torch.eye(len(gram)).double() - 1 / len(gram)
    return centre @ gram @ centre


def gaussian_gram(z: Tensor, counted: Tensor, share: float = 1) -> Tensor:
    """One pair of images after the other, of ``(B, N)``: a share of all tokens."""
    columns = []
    for column, own in zip(z.double().T, counted.T, strict=True):
        some = column[own]
        std = some.std(correction=0) if len(some) else 0
        constant = std == 0 or std < 1e-6 * some.mean().abs()
        standard = torch.zeros_like(column)
        if not constant:
            standard[own] = (some - some.mean()) / std
        columns.append(standard)
    z = torch.stack(columns, 1)
    gram = torch.zeros(len(z), len(z)).double()
    for i, one in enumerate(z):
        for j, other in enumerate(z):
            squared = float((one - other).square().sum()) / share
            gram[i, j] = sum(math.exp(-squared / (2 * s**2)) for s in (1, 2, 4, 8, 16)) / 5
    return gram


def plain(u: Tensor, scores: Tensor, kind: str, counted=None, step: int = 1) -> Dependence:
    """The same of one batch ``(B, N, I)``, in double precision and in plain loops."""
    counted = torch.ones(u.shape[:2], dtype=torch.bool) if counted is None else counted
    z = u.unflatten(2, (3, -1)).mean(3) if kind == 'heads' else u[:, ::step]
    share = z.shape[1] / u.shape[1]
    grams = [centred(gaussian_gram(own, counted[:, ::step], share)) for own in z.unbind(2)]
    y = scores.double().softmax(1)
    y = y - y.mean(0)
    scale = (len(u) - 1) ** 2
    prediction = torch.stack([(gram @ centred(y @ y.T)).trace() for gram in grams]) / scale
    if kind == 'hidden':
        size = (u.abs() * counted[..., None]).sum((0, 1)) / len(u)
        return Dependence(prediction, size=size.double())
    between = torch.stack([torch.stack([(a @ b).trace() for b in grams]) for a in grams])
    return Dependence(prediction, between=between / scale)


def mean_of(parts: list[Dependence], weights: list[int]) -> Dependence:
    """A mean weighted by images."""

    def mean(name):
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            return None
        total = sum(weight * value for weight, value in zip(weights, values, strict=True))
        return total / sum(weights)

    return Dependence(*(mean(name) for name in ('prediction', 'between', 'size')))


def assert_alike(found: Dependence, expected: Dependence, share: float = 1e-5) -> None:
    """Check that all is equal up to a share of the largest."""
    for name in ('prediction', 'between', 'size'):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == torch.double
            torch.testing.assert_close(one, other, rtol=0, atol=share * float(other.max()))


def observers_of(model) -> list[DependenceObserver]:
    return [
        DependenceObserver(unit, kind)
        for unit in find_units(model)
        for kind in unit.kinds
        if kind in KINDS
    ]


def scores_of(model, images) -> Tensor:
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize('sizes', [(8,), (8, 8, 5)], ids=str)
def test_it_is_that_of_a_plain_computation(transformer, batches, sizes):
    images = [batch.double() for batch in batches[: len(sizes)]]
    assert tuple(map(len, images)) == sizes
    seen = calibrate(transformer, images, observers_of(transformer))
    for unit in find_units(transformer):
        kind = 'heads' if 'heads' in unit.kinds else 'hidden'
        parts = [
            plain(values_at(transformer, unit, kind, x), scores_of(transformer, x), kind)
            for x in images
        ]
        assert_alike(seen.dependence(unit, kind), mean_of(parts, list(sizes)))


def test_tokens_that_do_not_count_are_at_the_mean(batches):
    torch.manual_seed(0)
    model, x = Counting().double().eval(), batches[0].double()
    model.counted_tokens = None
    seen = calibrate(model, [x], observers_of(model))
    for unit in find_units(model):
        kind = 'heads' if 'heads' in unit.kinds else 'hidden'
        u = values_at(model, unit, kind, x)
        expected = plain(u, scores_of(model, x), kind, counted=model.counted_tokens)
        assert_alike(seen.dependence(unit, kind), expected)


def test_a_large_batch_is_parts_of_like_size(transformer, monkeypatch):
    monkeypatch.setattr(module, 'PART', 6)
    x = torch.randn(7, 6, 12, generator=torch.Generator().manual_seed(5)).double()
    whole = calibrate(transformer, [x], observers_of(transformer))
    parts = calibrate(transformer, x.split((4, 3)), observers_of(transformer))
    for key, found in whole.results.items():
        assert_alike(found, parts.results[key], share=1e-6)


def test_of_many_tokens_every_nth_enters_the_distances(transformer, monkeypatch):
    monkeypatch.setattr(module, 'TOKENS', 4)
    x = torch.randn(6, 12, 12, generator=torch.Generator().manual_seed(5)).double()
    for unit in find_units(transformer):
        kind, step = ('heads', 1) if 'heads' in unit.kinds else ('hidden', 3)
        found = calibrate(transformer, [x], [DependenceObserver(unit, kind)])
        u = values_at(transformer, unit, kind, x)  # 13 tokens with the class token
        expected = plain(u, scores_of(transformer, x), kind, step=step)
        assert_alike(found.dependence(unit, kind), expected)


def kernels_of(values: Tensor) -> Tensor:
    return module.kernels(standardise(values))


def test_what_is_independent_is_near_zero_and_a_copy_of_the_prediction_is_not():
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(128, 4, generator=generator)
    noise = torch.randn(20, 128, 4, generator=generator)
    found = module.hsic_with_scores(kernels_of(torch.cat((noise, scores[None]))), scores)
    assert (found > 0).all()
    assert found[:20].max() < 0.2 * found[20]
    # It is biased by a share of 1 / B: more images bring it nearer to zero.
    few = module.hsic_with_scores(kernels_of(noise[:, :16]), scores[:16])
    assert few.mean() > 4 * found[:20].mean()


class Pooled(Transformer):
    """All tokens tell the class."""

    def forward(self, x):
        return self.head(self.blocks(x).mean(1))


@pytest.mark.parametrize('kind, index', [('hidden', 7), ('heads', 1)])
@torch.no_grad()
def test_what_alone_carries_the_prediction_comes_first(kind, index):
    torch.manual_seed(2)
    model = Pooled(depth=1, classes=2).eval()
    direction = nn.functional.normalize(torch.randn(12), dim=0)
    model.head.weight.copy_(torch.stack((direction, -direction)))
    (attention,), (ffn,) = find_units(model).attentions, find_units(model).ffns
    for layer in (attention.proj, ffn.fc2):  # nothing else writes where the head reads
        layer.weight -= torch.outer(direction, direction @ layer.weight)
    x = torch.randn(96, 3, 12)
    x -= (x @ direction)[..., None] * direction
    if kind == 'hidden':
        ffn.fc2.weight[:, index] += 3 * direction
    else:
        attention.proj.weight[:, 4:8] += 3 * direction[:, None]
    unit = ffn if kind == 'hidden' else attention
    seen = calibrate(model, [x], [DependenceObserver(unit, kind)])
    first, second = seen.dependence(unit, kind).prediction.topk(2)[0]
    assert int(seen.dependence(unit, kind).prediction.argmax()) == index
    assert first > 1.2 * second
    if kind == 'heads':
        assert int(HSIC().scores(unit, kind, seen).argmax()) == index


def test_what_is_constant_becomes_zero_and_depends_on_nothing():
    values = torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0))
    values[1] = 0.1  # its mean is not 0.1 to the last bit
    values[2, :, 0] = -1e4
    z = standardise(values)
    assert not z[1].any() and not z[2, :, 0].any()
    torch.testing.assert_close(z[0].std(0, correction=0), torch.ones(5))
    torch.testing.assert_close(z[0].mean(0), torch.zeros(5), atol=1e-6, rtol=0)
    scores = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    found = module.hsic_with_scores(module.kernels(z), scores)
    assert abs(float(found[1])) < 1e-7 < float(found[0])
    # Neither scale nor shift of the activations matters.
    torch.testing.assert_close(standardise(100 * values[:1] + 7), z[:1], atol=1e-4, rtol=0)


def test_a_batch_of_one_image_is_left_out(transformer, batches):
    images = [batch.double() for batch in batches]
    single = images[1][:1]
    expected = calibrate(transformer, [images[0], images[2]], observers_of(transformer))
    found = calibrate(transformer, [images[0], single, images[2]], observers_of(transformer))
    assert found.images == expected.images + 1
    for key, own in found.results.items():
        assert_alike(own, expected.results[key], share=1e-12)
    with pytest.raises(CalibrationError, match=r'all batches of blocks\.0\.\S+ have one image'):
        calibrate(transformer, [single, single], observers_of(transformer))
    with pytest.raises(CalibrationError, match=r'blocks\.0\.\S+ was not run: .*no images'):
        calibrate(transformer, [], observers_of(transformer))


def test_half_precision_is_computed_in_single(batches):
    torch.manual_seed(0)
    model = Transformer().eval()

    def forward(x):
        with torch.autocast('cpu', torch.bfloat16):
            return model(x)

    seen = calibrate(model, [batches[0]], observers_of(model), forward=forward)
    exact = calibrate(model, [batches[0]], observers_of(model))
    for key, found in seen.results.items():
        torch.testing.assert_close(
            found.prediction, exact.results[key].prediction, rtol=0.1, atol=1e-3
        )
        # A kernel of bfloat16 would not have ones to the last bit where images are equal.
        assert found.prediction.dtype == torch.double


def test_class_scores_of_another_shape_are_refused(transformer, batches):
    def forward(x):  # a head that is fed every token
        return transformer.head(transformer.blocks(x))

    message = r'blocks\.0\.mlp\.fc2 needs class scores \(8, classes\).* gave .*\(8, 6, 5\)'
    with pytest.raises(ValueError, match=message):
        calibrate(transformer, [batches[0].double()], observers_of(transformer), forward)
    with pytest.raises(ValueError, match='the classifier gave none'):
        calibrate(transformer, [batches[0].double()], observers_of(transformer), transformer.blocks)


def test_values_that_are_not_finite_name_layer_and_image(transformer, batches):
    images = [batch.double() for batch in batches]
    images[1][2, 0, 0] = torch.nan
    message = r'input or prediction of blocks\.0\.\S+ is not finite for image number 10;'
    with pytest.raises(CalibrationError, match=message):
        calibrate(transformer, images, observers_of(transformer))


def test_the_network_stays_as_it_was(transformer, batches):
    transformer.train()
    before = {key: value.clone() for key, value in transformer.state_dict().items()}
    calibrate(transformer, [batches[0].double()], observers_of(transformer))
    assert all(part.training for part in transformer.modules())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in transformer.modules())
    assert all(torch.equal(value, before[key]) for key, value in transformer.state_dict().items())


def _calibrate_share(rank, size, folder, works):
    """One of several processes; leaves what it found."""
    torch.set_num_threads(1)
    store = f'file://{folder}/store'
    distributed.init_process_group('gloo', init_method=store, rank=rank, world_size=size)
    found = []
    for model, batches in works:
        seen = calibrate(model, batches[rank::size], observers_of(model), shared=True)
        found.append((seen.results, seen.images))
    torch.save(found, folder / f'{rank}.pt')
    # Both have all they need; torch 2.1's gloo now and then hangs when it is taken apart.
    distributed.barrier()
    os._exit(0)


def test_processes_that_share_the_images_find_what_one_finds(transformer, batches, tmp_path):
    batches = [batch.double() for batch in batches]
    # Three batches for two processes are unequal shares; one leaves a process without images.
    works = [
        (transformer, batches),
        (transformer, batches[:1]),
        (transformer, [*batches[:1], batches[1][:1]]),
    ]
    torch.multiprocessing.spawn(_calibrate_share, (2, tmp_path, works), nprocs=2)
    parts = [torch.load(tmp_path / f'{rank}.pt', weights_only=False) for rank in range(2)]
    for (model, images), *shares in zip(works, *parts, strict=True):
        alone = calibrate(model, images, observers_of(model))
        for results, number in shares:
            assert number == alone.images
            for key, found in results.items():
                for name, value in vars(alone.results[key]).items():
                    same = value is None or torch.equal(vars(found)[name], value)
                    assert same, (key, name)
