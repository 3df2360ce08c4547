"""Moments are what autograd gives, one image and one token after the other."""

import os

import networks
import pytest
import torch
from by_hand import close, own_label
from torch import distributed

from mcf_mm.pruning import CalibrationError, calibrate, find_units
from mcf_mm.pruning.moments import FELT, MomentObserver, sample_tokens, take
from mcf_mm.pruning.pairs import PairObserver
from mcf_mm.pruning.solves import augmented
from mcf_mm.pruning.streams import MOMENT_TOKENS

KINDS = ['inputs', 'hidden', 'v']


def around(model, layer, image):
    """What a layer reads and gives for one image, and the gradient there; double ``(N, ...)``."""
    seen = []

    def follow(module, args, out):
        out.retain_grad()
        seen[:] = [args[0], out]

    handle = layer.register_forward_hook(follow)
    own_label(model(image)).backward()
    handle.remove()
    model.zero_grad()
    x, out = seen
    return x.detach()[0].double(), out.grad[0].double()


def by_hand(model, layer, images, counted=None):
    """Plain and felt second moments and the metric, token by token."""
    plain, felt, metric = 0, 0, 0
    counted = torch.ones(len(images), images.shape[1] + 1) if counted is None else counted
    chosen, share = sample_tokens(torch.zeros(*counted.shape, 1), counted.bool())
    for place, image in enumerate(images.split(1)):
        x, gradient = around(model, layer, image)
        tokens = range(len(x)) if chosen is None else chosen[place].tolist()
        of_image, number, of_felt, weight = 0, 0, 0, 0
        for token, own in zip(tokens, share[place].double().tolist(), strict=True):
            one = torch.cat((x[token], x.new_ones(1)))
            outer = torch.outer(one, one)
            of_image, number = of_image + own * outer, number + own
            strength = own * float(gradient[token].square().sum())
            of_felt, weight = of_felt + strength * outer, weight + strength
        plain = plain + of_image / number / len(images)
        felt = felt + of_felt / weight / len(images)
        for token in counted[place].nonzero()[:, 0].tolist():
            metric = metric + torch.outer(gradient[token], gradient[token]) / len(images)
    return plain, felt, metric


def layer_of(unit, kind):
    return dict(unit.consumers())[kind]


def check_halves(found, model, layer, batches, counted):
    """The first half is of every other image of each batch."""
    numbers = [sum(len(batch[half::2]) for batch in batches) for half in (0, 1)]
    halves = [half.double() for half in found.halves]
    for name in ('second', 'metric'):
        parts = [getattr(half, name) * own for half, own in zip(halves, numbers, strict=True)]
        close(sum(parts) / sum(numbers), getattr(found, name), 1e-6)
    if counted is None and batches[0].shape[1] < MOMENT_TOKENS:
        for half, own in enumerate(halves):
            plain, felt, metric = by_hand(
                model, layer, torch.cat([batch[half::2] for batch in batches])
            )
            close(own.metric, metric)
            close(own.second, (1 - FELT) * plain + FELT * felt)


def check(model, batches, kind, counted=None):
    images = torch.cat(batches)
    for unit in (unit for unit in find_units(model) if kind in unit.kinds):
        observer = MomentObserver(unit, kind)
        found = calibrate(model, batches, [observer]).moments(unit, kind)
        plain, felt, metric = by_hand(model, layer_of(unit, kind), images, counted)
        close(found.metric, metric)
        close(found.second, (1 - FELT) * plain + FELT * felt)
        check_halves(found, model, layer_of(unit, kind), batches, counted)
        x = plain[:-1, -1]
        without = MomentObserver(unit, kind, metric=False)
        found = calibrate(model, batches, [without]).moments(unit, kind)
        assert found.metric is None
        close(found.second, plain)
        close(found.covariance, plain[:-1, :-1] - torch.outer(x, x))


@pytest.mark.parametrize('kind', KINDS)
def test_moments_are_those_of_all_tokens_one_by_one(transformer, batches, kind):
    check(transformer, [batch.double() for batch in batches], kind)


@pytest.mark.parametrize('kind', KINDS)
def test_moments_of_many_tokens_are_those_of_the_chosen_ones(transformer, kind):
    images = torch.randn(3, MOMENT_TOKENS + 9, 12, generator=torch.Generator().manual_seed(1))
    check(transformer, [images.double()], kind)


class Counting(networks.Transformer):
    """Tells which tokens count, as YOLOS does."""

    counted_tokens = None

    def forward(self, x):
        self.counted_tokens = self.which(x)
        return super().forward(x)

    @staticmethod
    def which(x):
        counted = torch.ones(len(x), x.shape[1] + 1, dtype=torch.bool)
        counted[::2, -2:] = False  # padding in every other image
        counted[:, 2] = False
        return counted


@pytest.mark.parametrize('length', [6, MOMENT_TOKENS + 9])
@pytest.mark.parametrize('kind', KINDS)
def test_tokens_that_do_not_count_enter_nothing(kind, length):
    torch.manual_seed(0)
    model, images = Counting().double().eval(), torch.randn(4, length, 12).double()
    check(model, [images], kind, Counting.which(images))


@pytest.mark.parametrize('number', [MOMENT_TOKENS + 1, 50, 197, 577])
def test_each_token_stands_for_as_many_as_there_are(number):
    images = 2048
    chosen, share = sample_tokens(torch.zeros(images, number, 1), None)
    assert chosen.shape == share.shape == (images, MOMENT_TOKENS)
    assert bool((chosen[:, 0] == 0).all()) and bool((share[:, 0] == 1).all())
    assert bool((chosen.diff() > 0).all()) and int(chosen.max()) < number  # none twice
    torch.testing.assert_close(share.sum(1), torch.full((images,), float(number)))
    weight = torch.zeros(images, number).scatter(1, chosen, share).mean(0)
    torch.testing.assert_close(weight, torch.ones(number), rtol=0, atol=0.05)
    counted = torch.arange(number)[None].expand(images, -1) % 3 != 1
    chosen, share = sample_tokens(torch.zeros(images, number, 1), counted)
    weight = torch.zeros(images, number).scatter(1, chosen, share).mean(0)
    torch.testing.assert_close(weight, counted[0].float(), rtol=0, atol=0.05)


def test_few_tokens_are_all_taken():
    values = torch.randn(2, MOMENT_TOKENS, 3)
    chosen, share = sample_tokens(values, None)
    assert chosen is None and share.tolist() == [[1] * MOMENT_TOKENS] * 2
    assert take(values, chosen) is values
    index = torch.tensor([[0, 5], [0, 7]])
    assert torch.equal(take(values, index), torch.stack((values[0, [0, 5]], values[1, [0, 7]])))


def test_equal_observers_are_one_and_follow_gradients_when_one_does(transformer, batches):
    batches = [batch.double() for batch in batches]
    unit = find_units(transformer).attentions[0]
    first = [MomentObserver(unit, 'heads', False), MomentObserver(unit, 'v', True)]
    seen = calibrate(transformer, batches, first)
    assert len(seen.results) == 1 and seen.moments(unit, 'heads').metric is not None
    assert torch.equal(seen.moments(unit, 'v').second, seen.moments(unit.name, 'heads').second)


def test_results_are_numbers_that_a_file_of_float32_holds(transformer, batches):
    unit = find_units(transformer).attentions[0]
    seen = calibrate(
        transformer, [batches[0].double()], [MomentObserver(unit, 'v'), PairObserver(unit)]
    )
    for result in seen.results.values():
        for value in vars(result).values():
            if isinstance(value, torch.Tensor):
                assert value.dtype == torch.double and torch.equal(value.float().double(), value)


@pytest.mark.parametrize('make', [lambda u: MomentObserver(u, 'v'), PairObserver])
def test_no_images_and_values_that_are_not_finite_are_named(transformer, batches, make):
    unit = find_units(transformer).attentions[0]
    with pytest.raises(CalibrationError, match=r'blocks\.0\.attn\.\w+ was not run: .*no images'):
        calibrate(transformer, [], [make(unit)])
    batch = batches[0].double()
    batch[2, 0, 0] = torch.nan
    with pytest.raises(
        CalibrationError, match=r'blocks\.0\.attn\.\w+ is not finite for image .* 2'
    ):
        calibrate(transformer, [batch], [make(unit)])


def observers_of(model, felt):
    return [
        PairObserver(unit, felt) if kind == 'qk' else MomentObserver(unit, kind, felt)
        for unit in find_units(model)
        for kind in unit.kinds
    ]


def _calibrate_share(rank, size, folder, works):
    """One of several processes; leaves what it found."""
    torch.set_num_threads(1)
    store = f'file://{folder}/store'
    distributed.init_process_group('gloo', init_method=store, rank=rank, world_size=size)
    found = []
    for model, batches, felt, labels in works:
        observers = observers_of(model, felt)
        torch.manual_seed(rank)  # which nothing depends on
        share = batches[rank::size]
        found.append(calibrate(model, share, observers, shared=True, labels=labels).results)
    torch.save(found, folder / f'{rank}.pt')
    distributed.barrier()
    os._exit(0)


def test_processes_that_share_the_images_find_what_one_finds(transformer, batches, tmp_path):
    batches = [batch.double() for batch in batches]
    # Three batches for two processes are unequal shares; one leaves a process without images.
    works = [
        (transformer, images, felt, labels)
        for images in (batches, batches[:1])
        for felt, labels in ((False, 'predicted'), (True, 'predicted'), (True, 'sampled'))
    ]
    torch.multiprocessing.spawn(_calibrate_share, (2, tmp_path, works), nprocs=2)
    parts = [torch.load(tmp_path / f'{rank}.pt', weights_only=False) for rank in range(2)]
    for place, (model, images, felt, labels) in enumerate(works):
        alone = calibrate(model, images, observers_of(model, felt), labels=labels).results
        first, second = (part[place] for part in parts)
        assert alone.keys() == first.keys() == second.keys()
        for key, result in alone.items():
            for name, value in vars(result).items():
                if name == 'halves':
                    continue
                if isinstance(value, torch.Tensor):
                    close(getattr(first[key], name), value, 1e-6)
                    assert torch.equal(getattr(first[key], name), getattr(second[key], name))
                else:
                    assert getattr(first[key], name) == getattr(second[key], name) == value


@pytest.mark.parametrize('name', ['mmpretrain SwinTransformer', 'mmdet SwinTransformer'])
def test_padding_of_windows_counts_nowhere(name):
    import zoo  # not above: the processes would import all libraries

    # 6 x 6 tokens in windows of 4 are padded to 8 x 8.
    model = zoo.network(name).double()
    images = torch.randn(2, 3, 24, 24, dtype=torch.double)
    unit = find_units(model).attentions[0]
    seen = calibrate(model, [images], [MomentObserver(unit, 'v', metric=False)])
    assert seen.moments(unit, 'v').tokens <= 2 * 36
    outputs = []
    outer = model.get_submodule(unit.name.removesuffix('.w_msa'))
    handle = outer.register_forward_hook(lambda m, args, out: outputs.append(out.detach()))
    model(images)
    handle.remove()
    assert outputs[0].shape[1] == 36
    # proj is linear, so what it is given tells by what it makes of it; a sample, so nearly.
    mean = augmented(unit.proj) @ seen.moments(unit, 'v').second[:, -1]
    spread = outputs[0].flatten(0, 1).std(0)
    assert bool(((mean - outputs[0].mean((0, 1))).abs() < spread).all())
