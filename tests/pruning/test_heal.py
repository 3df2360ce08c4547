"""Healing with torch alone: it draws the student to its teacher, repeats itself, and goes on."""

import copy
import math
import time

import pytest
import timm
import torch
from zoo import images as zoo_images
from zoo import network as zoo_network
from zoo import outputs, timm_vit

from mcf_mm.pruning import find_units, heal, precision, prune, split_aside

PLAIN = dict(crop=False, flip=False)


def same(first, second) -> bool:
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 32, 32, generator=generator) for _ in range(6)]


@pytest.fixture
def pair(images):
    """A dense network of timm with dropout, and a pruned one in training mode."""
    torch.manual_seed(0)
    dense = timm_vit(drop_rate=0.1, drop_path_rate=0.2)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    student = copy.deepcopy(dense)
    prune(student, images, 'fisher', dict(hidden=0.5, qk=0.5, v=0.5))
    return student.train(), dense.train()


def test_the_student_comes_nearer_and_nothing_else_changes(pair, images):
    student, dense = pair
    frozen, untouched = student.pos_embed, copy.deepcopy(dense)
    frozen.requires_grad_(False)
    start, gradient = copy.deepcopy(student), torch.ones_like(student.head.bias)
    student.head.bias.grad = gradient
    state, told = torch.get_rng_state(), []
    healed = heal(
        student, dense, images[:5], images[5:], epochs=6, lr=2e-3,
        progress=lambda share, text: told.append(share),
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    assert healed.after.loss < 0.8 * healed.before.loss
    assert healed.after.logits < healed.before.logits
    assert healed.after.blocks < healed.before.blocks
    assert healed.epochs == 6 and healed.images == 120 and 0 < healed.best_epoch <= 6
    assert told == [step / 30 for step in range(1, 31)]
    assert same(dense, untouched)
    assert torch.equal(student.pos_embed, start.pos_embed) and student.pos_embed.grad is None
    assert student.head.bias.grad is gradient
    assert all(module.training for model in pair for module in model.modules())
    assert not any(m._forward_hooks for model in pair for m in model.modules())
    assert find_units(student).sizes == find_units(start).sizes
    # What is told is true, with the weights that were kept.
    student.eval(), dense.eval()
    with torch.no_grad():
        wanted, seen = (model(images[5]).log_softmax(-1) for model in (dense, student))
        kl = (wanted.exp() * (wanted - seen)).sum(-1).mean()
        seen, wanted = (
            model.forward_intermediates(images[5], output_fmt='NLC', intermediates_only=True,
                                        return_prefix_tokens=True)
            for model in (student, dense)
        )  # fmt: skip
        tokens = [
            [torch.cat((prefix, patches), 1) for patches, prefix in part] for part in (seen, wanted)
        ]
    blocks = torch.stack([(a - b).square().mean() / b.var() for a, b in zip(*tokens, strict=True)])
    assert healed.after.logits == pytest.approx(float(kl), rel=1e-4)
    assert healed.after.blocks == pytest.approx(float(blocks.mean()), rel=1e-4)
    assert healed.after.loss == pytest.approx(float(kl + 2 * blocks.mean()), rel=1e-4)


def test_it_repeats_itself_and_depends_on_its_seed(pair, images):
    student, dense = pair
    again, other = copy.deepcopy(student), copy.deepcopy(student)
    first = heal(student, dense, images[:5], images[5:], epochs=2, lr=1e-3)
    torch.rand(5)
    second = heal(again, dense, images[:5], images[5:], epochs=2, lr=1e-3)
    heal(other, dense, images[:5], images[5:], epochs=2, lr=1e-3, seed=1)
    assert same(student, again) and not same(student, other)
    assert first.facts() == second.facts()


def test_it_heals_in_bfloat16(pair, images, monkeypatch):
    monkeypatch.setattr(precision, 'fast_bf16', lambda device: True)
    student, dense = pair
    plain = copy.deepcopy(student)
    first = heal(plain, dense, images[:5], images[5:], epochs=3, lr=1e-3)
    second = heal(student, dense, images[:5], images[5:], epochs=3, lr=1e-3, bf16=True)
    # What is kept aside is measured in single precision, so both begin equal.
    assert second.before == first.before and not same(student, plain)
    assert second.after.loss < 0.95 * second.before.loss
    assert second.after.loss == pytest.approx(first.after.loss, rel=0.02)
    assert all(value.dtype == torch.float32 for value in student.parameters())


def test_graphics_cards_compute_in_bfloat16():
    assert precision.fast_bf16('cuda') is True and isinstance(precision.fast_bf16('cpu'), bool)


def test_a_processor_without_bfloat16_heals_in_float32_and_says_so(pair, images, monkeypatch):
    monkeypatch.setattr(precision, 'fast_bf16', lambda device: False)
    student, dense = pair
    plain = copy.deepcopy(student)
    first = heal(plain, dense, images[:5], images[5:], epochs=2, lr=1e-3)
    with pytest.warns(UserWarning, match='heal: bf16=True: this processor has no bfloat16'):
        second = heal(student, dense, images[:5], images[5:], epochs=2, lr=1e-3, bf16=True)
    assert same(student, plain) and first.facts() == second.facts()
    assert second.facts()['bf16'] is False


def test_it_never_ends_worse(pair, images):
    student, dense = pair
    start = copy.deepcopy(student)
    # A rate at which nothing heals, on images that are all one colour.
    healed = heal(student, dense, [torch.zeros(4, 3, 32, 32)], images[5:], epochs=2, lr=0.1)
    assert healed.after == healed.before and healed.best_epoch == 0
    assert same(student, start)


@pytest.mark.parametrize(
    'name',
    [
        'mmpretrain VisionTransformer',
        'mmpretrain DistilledVisionTransformer',
        'mmpretrain SwinTransformer',
        'timm Swin',
        'timm ViT with q/k norm',
        'Hugging Face ViT',
    ],
)
def test_networks_of_every_library(name):
    dense = zoo_network(name)
    batches = [zoo_images(name) + shift for shift in range(3)]
    student = copy.deepcopy(dense)
    prune(student, batches, 'magnitude', dict(hidden=0.5), forward=lambda x: outputs(student, x))
    healed = heal(student, dense, batches[:2], batches[2:], epochs=3, lr=1e-3, forward=outputs)
    assert healed.after.loss < healed.before.loss


class Killed(BaseException):
    pass


@pytest.mark.parametrize('after', [1, 2, 3])
def test_an_interrupted_healing_goes_on_to_the_same_weights(pair, images, tmp_path, after):
    student, dense = pair
    start, whole = copy.deepcopy(student), copy.deepcopy(student)
    arguments = dict(epochs=3, lr=1e-3, state_file=tmp_path / 'state.pt')
    wanted = heal(whole, dense, images[:5], images[5:], **arguments)
    assert not list(tmp_path.iterdir())

    def kill(share: float, text: str) -> None:
        # In the middle of the epoch that follows, or in the last step.
        if share >= min(1, (after + 0.4) / 3):
            raise Killed

    if after == 3:
        heal(student, dense, images[:5], images[5:], **arguments, keep_state=True)
    else:
        with pytest.raises(Killed):
            heal(student, dense, images[:5], images[5:], **arguments, progress=kill)
        assert same(student, start)
    assert [path.name for path in tmp_path.iterdir()] == ['state.pt']
    resumed = copy.deepcopy(start)
    told = []
    found = heal(
        resumed, dense, images[:5], images[5:], **arguments,
        progress=lambda share, text: told.append(share),
    )  # fmt: skip
    assert len(told) == 5 * (3 - after)
    assert same(resumed, whole)
    assert found.facts() == wanted.facts()
    assert not list(tmp_path.iterdir())


def test_a_state_of_another_healing_is_refused(pair, images, tmp_path):
    student, dense = pair
    path = tmp_path / 'state.pt'
    arguments = dict(state_file=path, keep_state=True)
    start, other = copy.deepcopy(student), copy.deepcopy(student)
    heal(student, dense, images[:5], images[5:], epochs=2, **arguments)
    with torch.no_grad():
        other.head.bias.add_(1)
    for network, settings, batches, message in (
        (start, dict(epochs=3), images[:5], r'state.pt is of .*: epochs is 3 here and 2 there: '),
        (start, dict(minutes=1), images[:5], 'minutes is 1 here and None there; epochs is None'),
        (start, dict(epochs=2, lr=1e-3), images[:5], 'lr is 0.001 here and 5e-05 there'),
        (other, dict(epochs=2), images[:5], 'state.pt is of .* began with other weights'),
        (start, dict(epochs=2), images[:4], 'of a healing with 5 batches, here are 4: give the'),
    ):
        before = copy.deepcopy(network)
        with pytest.raises(ValueError, match=message):
            heal(network, dense, batches, images[5:], **settings, **arguments)
        assert same(network, before)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match='state.pt is damaged .*: delete it to start anew'):
        heal(start, dense, images[:5], images[5:], epochs=2, **arguments)


def test_minutes_end_in_time(pair, images, tmp_path):
    student, dense = pair
    begun = time.monotonic()
    healed = heal(
        student, dense, images[:5], images[5:], minutes=0.1, lr=1e-3, state_file=tmp_path / 's.pt'
    )
    assert 5 < time.monotonic() - begun < 9
    assert 5 < healed.seconds < 9
    assert healed.after.loss < healed.before.loss
    assert healed.epochs == healed.images / 20 and healed.best_epoch <= healed.epochs
    assert not list(tmp_path.iterdir())


def test_minutes_go_on_with_what_is_left(pair, images, tmp_path):
    student, dense = pair
    start = copy.deepcopy(student)
    arguments = dict(minutes=0.1, lr=1e-3, state_file=tmp_path / 'state.pt')

    def kill(share: float, text: str) -> None:
        if share > 0.7:
            raise Killed

    with pytest.raises(Killed):
        heal(student, dense, images[:5], images[5:], **arguments, progress=kill)
    begun = time.monotonic()
    healed = heal(start, dense, images[:5], images[5:], **arguments)
    assert time.monotonic() - begun < 5
    assert healed.after.loss < healed.before.loss


def test_a_loss_that_is_no_number_stops_it(pair, images):
    student, dense = pair
    start = copy.deepcopy(student)
    broken = [*images[:2], torch.full((4, 3, 32, 32), math.nan)]
    with pytest.raises(ValueError, match='the loss is nan after .* steps with lr=0.01: take a low'):
        heal(student, dense, broken, images[5:], epochs=1, lr=0.01)
    assert same(student, start)
    with pytest.raises(ValueError, match='kept aside is nan before any step: look for NaN'):
        heal(student, dense, images, broken, epochs=1)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(), 'either minutes or epochs, .* got minutes=None and epochs=None'),
        (dict(minutes=1, epochs=1), 'either minutes or epochs, .* got minutes=1 and epochs=1'),
        (dict(minutes=0), 'minutes must be a number above 0, got 0'),
        (dict(minutes=float('nan')), 'minutes must be a number above 0, got nan'),
        (dict(minutes='15'), "minutes must be a number above 0, got '15'"),
        (dict(minutes=True), 'minutes must be a number above 0, got True'),
        (dict(epochs=0), 'epochs must be at least 1, got 0'),
        (dict(epochs=1.5), 'epochs must be a whole number, got 1.5'),
        (dict(epochs=1, lr=-1), 'lr must be a number above 0, got -1'),
        (dict(epochs=1, temperature=0), 'temperature must be a number above 0, got 0'),
        (dict(epochs=1, blocks=-1), 'blocks is a weight and must be a number from 0 on, got -1'),
        (dict(epochs=1, logits=0, blocks=0), 'logits and blocks are both 0'),
        (dict(epochs=1, folder=3), 'folder must be that of some images, got 3'),
        (dict(epochs=1, folder='photos'), "folder='photos' is read where a config says how"),
        (dict(epochs=1, bf16=1), 'bf16 must be True or False, got 1'),
        (dict(epochs=1, crop=1), 'crop must be True or False, got 1'),
        (dict(epochs=1, seed=-1), 'seed must be a whole number .* got -1'),
        (dict(epochs=1, rate=1), "heal: no setting 'rate'; there are minutes, epochs, logits, "),
    ],
)
def test_arguments_out_of_range_are_named(pair, images, arguments, message):
    with pytest.raises(ValueError, match=message):
        heal(*pair, images[:5], images[5:], **arguments)


def test_what_cannot_be_healed_is_refused(pair, images):
    student, dense = pair
    with pytest.raises(ValueError, match='batches must be iterable more than once, got generator'):
        heal(student, dense, (batch for batch in images), images, epochs=1)
    with pytest.raises(ValueError, match='aside has no batch'):
        heal(student, dense, images, [], epochs=1)
    with pytest.raises(ValueError, match='batches has no batch'):
        heal(student, dense, [], images, epochs=1)
    with pytest.raises(ValueError, match='student and dense are one network'):
        heal(dense, dense, images, images, epochs=1)
    with pytest.raises(ValueError, match='forward does not run the classifier of VisionTran'):
        heal(student, dense, images, images, epochs=1, forward=lambda m, x: m.forward_features(x))
    with pytest.raises(ValueError, match='forward runs no FFN and no classifier'):
        heal(student, dense, images, images, epochs=1, logits=0, forward=lambda m, x: None)
    tokens = [torch.randn(2, 17, 24)]
    with pytest.raises(ValueError, match=r'got torch.float32 \(2, 17, 24\); set crop=False'):
        heal(student.blocks, dense.blocks, tokens, tokens, epochs=1)
    student.requires_grad_(False)
    with pytest.raises(ValueError, match='no parameter of the student needs a gradient'):
        heal(student, dense, images, images, epochs=1)


def test_a_network_without_classifier_heals_by_its_blocks(pair, images):
    student, dense = (model.blocks for model in pair)
    tokens = [torch.randn(4, 17, 24) for _ in range(4)]
    healed = heal(student, dense, tokens[:3], tokens[3:], epochs=4, lr=1e-3, **PLAIN)
    assert healed.after.loss == 2 * healed.after.blocks < healed.before.loss
    assert healed.before.logits == 0
    with pytest.raises(ValueError, match='logits is 1, but Sequential has no classifier; leave'):
        heal(student, dense, tokens[:3], tokens[3:], epochs=1, logits=1, **PLAIN)


def test_another_network_is_refused(pair, images):
    student, _ = pair
    wider = timm.create_model(
        'vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=48, depth=2, num_classes=5
    )
    with pytest.raises(ValueError, match=r'blocks.0.mlp puts out \(4, 17, 24\) in the student and'):
        heal(student, wider, images[:5], images[5:], epochs=1)


def test_every_tenth_image_is_kept_aside():
    training, aside = split_aside(range(25))
    assert aside == [9, 19] and training == [n for n in range(25) if n not in aside]
    assert split_aside('ab') == (['a'], ['b'])
    training, aside = split_aside(range(1024))
    assert len(aside) == 64 and aside[-1] == 639 and len(training) == 960
    with pytest.raises(ValueError, match='at least 2 images, .* got 1'):
        split_aside([0])
