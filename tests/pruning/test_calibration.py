"""Calibration leaves a network as it was, names what is wrong, and may be shared by processes."""

import os

import pytest
import torch
from torch import distributed

from mcf_mm.pruning import (
    ActivationObserver,
    AttentionObserver,
    CalibrationError,
    GradientObserver,
    calibrate,
    find_units,
)
from mcf_mm.pruning.calibration import _labels
from mcf_mm.pruning.moments import MomentObserver, Moments
from mcf_mm.pruning.pairs import PairObserver
from mcf_mm.pruning.streams import Rows


def observers_of(model, *wanted: str) -> list:
    """Observers of every place of every unit, of the classes that are named."""
    made = []
    for unit in find_units(model):
        for kind in unit.kinds:
            if 'activations' in wanted:
                made.append(ActivationObserver(unit, kind, covariance=True))
            if 'gradients' in wanted:
                made.append(GradientObserver(unit, kind))
        if 'attention' in wanted and unit.kinds[0] == 'heads':
            made.append(AttentionObserver(unit))
    return made


def test_calibration_leaves_no_trace_in_the_network(transformer, batches):
    batches = [batch.double() for batch in batches]
    transformer.train()
    transformer.blocks[0].eval()
    transformer.mix.weight.requires_grad_(False)
    modes = [module.training for module in transformer.modules()]
    before = {key: value.clone() for key, value in transformer.state_dict().items()}
    calibrate(transformer, batches, observers_of(transformer, 'activations', 'gradients'))
    assert [module.training for module in transformer.modules()] == modes
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in transformer.modules())
    assert all(torch.equal(value, before[key]) for key, value in transformer.state_dict().items())
    assert all(parameter.grad is None for parameter in transformer.parameters())
    frozen = [name for name, p in transformer.named_parameters() if not p.requires_grad]
    assert frozen == ['mix.weight']


def test_output_and_classes_are_those_of_the_classifier(network, batches):
    seen = calibrate(network, batches, observers_of(network, 'activations'))
    inputs = []
    handle = network.head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        scores = network(torch.cat(batches))
    handle.remove()
    assert torch.equal(seen.classes, scores.argmax(1))
    torch.testing.assert_close(seen.output, inputs[0])


def test_without_classifier_there_are_neither(network, batches):
    network.head = torch.nn.Identity()
    seen = calibrate(network, batches, observers_of(network, 'activations'))
    assert seen.output is None and seen.classes is None


@pytest.mark.parametrize(
    'wanted, place',
    [
        ('activations', r'output of blocks\.0\.attn\.qkv|input of blocks\.0\.mlp\.fc1'),
        ('attention', r'attention of blocks\.0\.attn\.qkv'),
        ('gradients', r'gradient of blocks\.0\.mlp\.fc1'),
    ],
)
def test_values_that_are_not_finite_name_layer_and_image(transformer, batches, wanted, place):
    batches = [batch.double() for batch in batches]
    batches[1][2, 0, 0] = torch.nan
    with pytest.raises(CalibrationError, match=rf'{place} is not finite for image number 10;'):
        calibrate(transformer, batches, observers_of(transformer, wanted))
    names = ['x', 'y', 'b.jpg', *'abcde']
    with pytest.raises(CalibrationError, match=r'is not finite for image b\.jpg;'):
        calibrate(
            transformer,
            batches,
            observers_of(transformer, wanted),
            image_names=lambda batch: names,
        )


@pytest.mark.parametrize('wanted', ['activations', 'attention', 'gradients'])
def test_no_images_is_an_error_and_leaves_no_hooks(transformer, wanted):
    with pytest.raises(CalibrationError, match=r'blocks\.0\.\S+ was not run: .*no images'):
        calibrate(transformer, [], observers_of(transformer, wanted))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in transformer.modules())


def test_gradients_need_a_classifier_or_a_loss(transformer, batches):
    transformer.head = torch.nn.Identity()
    batches = [batch.double() for batch in batches]
    with pytest.raises(ValueError, match='Transformer has no classifier .*: give a loss'):
        calibrate(transformer, batches, observers_of(transformer, 'gradients'))
    (unit, *_) = find_units(transformer)
    seen = calibrate(
        transformer,
        batches,
        [GradientObserver(unit, unit.kinds[0])],
        loss=lambda batch, output: output.square().sum(),
    )
    assert (seen.gradient(unit, unit.kinds[0]) > 0).all()


def drawn(model, batches, **more):
    """Moments of the last FFN, whose gradients tell which labels there were."""
    unit = find_units(model).ffns[-1]
    return calibrate(model, batches, [MomentObserver(unit, 'hidden')], **more).moments(
        unit, 'hidden'
    )


def test_sampled_labels_are_the_same_each_time_and_leave_the_generators_alone(network, batches):
    torch.manual_seed(1)
    first = drawn(network, batches, labels='sampled')
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = drawn(network, batches, labels='sampled')
    assert torch.equal(first.metric, again.metric) and torch.equal(first.second, again.second)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.metric, drawn(network, batches).metric)
    # By the place of the batch, not by the images in it.
    other = drawn(network, batches[1:] + batches[:1], labels='sampled')
    assert not torch.equal(first.metric, other.metric)


def test_sampled_labels_come_as_often_as_the_network_expects():
    scores = torch.tensor([0.1, 0.2, 0.7]).log().expand(2000, 3)
    for place in (0, 1):
        often = _labels(scores, 'sampled', place).bincount(minlength=3) / 2000
        torch.testing.assert_close(often, torch.tensor([0.1, 0.2, 0.7]), rtol=0, atol=0.04)
    assert _labels(scores, 'predicted', 0).unique().tolist() == [2]
    assert not torch.equal(_labels(scores, 'sampled', 0), _labels(scores, 'sampled', 1))


def test_what_was_seen_can_be_replaced_in_a_copy(transformer, batches):
    unit = find_units(transformer).attentions[0]
    observers = [MomentObserver(unit, 'heads'), PairObserver(unit)]
    seen = calibrate(transformer, [batch.double() for batch in batches], observers)
    assert seen.has(MomentObserver, unit, 'v') and seen.has(MomentObserver, unit.name, 'heads')
    assert seen.has(PairObserver, unit, 'qk') and not seen.has(PairObserver, unit, 'v')
    assert not seen.has(MomentObserver, 'blocks.1.attn', 'v')
    moments = seen.moments(unit, 'v')
    other = Moments(2 * moments.second, None, 1)
    again = seen.replaced(MomentObserver, unit.name, 'v', other)
    assert again.moments(unit, 'heads') is other and seen.moments(unit, 'v') is moments
    assert again.pairs(unit) is seen.pairs(unit) and again.classes is seen.classes
    with pytest.raises(KeyError, match="not gathered MomentObserver of 'hidden' of blocks.0.mlp"):
        seen.moments('blocks.0.mlp', 'hidden')
    with pytest.raises(KeyError, match="not gathered PairObserver of 'qk' of blocks.1.attn"):
        seen.pairs('blocks.1.attn')


def test_what_was_not_gathered_is_named(network, batches):
    (ffn, *_) = find_units(network)
    seen = calibrate(network, batches, [ActivationObserver(ffn, 'hidden')])
    assert (ffn, 'hidden') in seen and (ffn.name, 'inputs') not in seen
    with pytest.raises(KeyError, match="not gathered ActivationObserver of 'inputs' of blocks.0"):
        seen[ffn, 'inputs']
    with pytest.raises(KeyError, match="GradientObserver of 'hidden'.*must ask for it"):
        seen.gradient(ffn, 'hidden')


def test_rows_are_kept_in_one_tensor():
    # A tensor kept for each batch fragmented the memory: 5 GB instead of 1 for 1,024 images.
    rows, parts = Rows(), list(torch.randn(2100, 3).split(32))
    places = set()
    for part in parts:
        rows.append(part)
        places.add(rows.rows.data_ptr())
    assert len(places) <= 3
    assert len(rows) == 2100 and torch.equal(rows.result(), torch.cat(parts))


WANTED = ('activations', 'attention', 'gradients')


def _calibrate_share(rank, size, folder, works):
    """One of several processes; leaves what it found, or the error."""
    torch.set_num_threads(1)
    store = f'file://{folder}/store'
    distributed.init_process_group('gloo', init_method=store, rank=rank, world_size=size)
    found = []
    for model, batches in works:
        try:
            share = batches[rank::size]
            found.append(calibrate(model, share, observers_of(model, *WANTED), shared=True))
        except CalibrationError as error:
            found.append(str(error))
    torch.save(found, folder / f'{rank}.pt')
    # Both have all they need; torch 2.1's gloo now and then hangs when it is taken apart.
    distributed.barrier()
    os._exit(0)


def test_processes_that_share_the_images_find_what_one_finds(transformer, batches, tmp_path):
    batches = [batch.double() for batch in batches]
    bad = [batches[0], batches[1].clone()]
    bad[1][2, 0, 0] = torch.nan
    # Three batches for two processes are unequal shares; one leaves a process without images.
    works = [(transformer, batches), (transformer, batches[:1]), (transformer, bad)]
    torch.multiprocessing.spawn(_calibrate_share, (2, tmp_path, works), nprocs=2)
    parts = [torch.load(tmp_path / f'{rank}.pt', weights_only=False) for rank in range(2)]

    for (_, images), first, second in zip(works[:2], *(part[:2] for part in parts), strict=True):
        alone = calibrate(transformer, images, observers_of(transformer, *WANTED))
        for shared in (first, second):
            assert torch.equal(shared.classes, alone.classes)
            assert torch.equal(shared.output, alone.output)
            for unit in find_units(transformer):
                for kind in unit.kinds:
                    one, both = alone[unit, kind], shared[unit, kind]
                    assert torch.equal(both.tokens, one.tokens)
                    assert torch.equal(both.mean, one.mean)
                    assert torch.equal(both.mean_square, one.mean_square)
                    torch.testing.assert_close(
                        both.covariance, one.covariance, atol=1e-14, rtol=1e-12
                    )
                    assert torch.equal(both.covariance, first[unit, kind].covariance)
                    gradients = [seen.gradient(unit, kind) for seen in (shared, alone)]
                    assert torch.equal(*gradients)
                if 'qk' in unit.kinds:
                    assert torch.equal(shared.attention(unit), alone.attention(unit))
    # An image of the second process was bad: no process waits for it.
    assert parts[0][2] == parts[1][2]
    assert 'is not finite for image number 2' in parts[0][2]
