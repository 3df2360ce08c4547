"""Crops and flips come from their own generator, and leave padding where it is."""

import pytest
import torch

from mcf_mm.pruning.augmentation import augment, draw_crop


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_repeats_itself_and_leaves_images_and_other_generators_alone():
    images = torch.randn(6, 3, 20, 30)
    before, state = images.clone(), torch.get_rng_state()
    first = augment(images, generator())
    assert torch.equal(first, augment(images, generator()))
    assert not torch.equal(first, augment(images, generator(1)))
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)
    assert first.shape == images.shape


def test_half_of_the_images_are_flipped_and_nothing_else():
    images = torch.randn(200, 3, 4, 4)
    done = augment(images, generator(), crop=False)
    flipped = [torch.equal(new, old.flip(-1)) for new, old in zip(done, images, strict=True)]
    same = [torch.equal(new, old) for new, old in zip(done, images, strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert 70 < sum(flipped) < 130


def test_a_crop_is_a_resized_part():
    ramp = torch.arange(32.0).expand(8, 1, 32, 32)
    done = augment(ramp, generator(), flip=False)[:, 0]
    assert (done.diff(dim=2) >= 0).all()
    assert (done - done[:, :1]).abs().max() < 1e-4
    widths = (done.amax((1, 2)) - done.amin((1, 2))) / 31
    assert 0.5**0.5 * 0.8 < widths.min() < 0.95 and widths.max() <= 1
    assert len(set(widths.tolist())) > 4


@pytest.mark.parametrize('height, width', [(224, 224), (200, 40), (1, 1)])
def test_crops_have_the_asked_area_and_shape(height, width):
    draws = generator()
    for _ in range(50):
        top, left, rows, columns = draw_crop(height, width, draws)
        assert 0 <= top <= height - rows and 0 <= left <= width - columns
        assert rows * columns >= 0.47 * height * width
        if height > 1:
            assert 0.7 < columns / rows * height / width < 1.43


def test_padding_stays_where_it_is():
    images = torch.zeros(4, 1, 8, 10)
    images[:, :, :6, :7] = torch.rand(4, 1, 6, 7) + 1
    done = augment(images, generator(), sizes=[(6, 7)] * 4)
    assert (done[:, :, :6, :7] >= 1 - 1e-4).all()
    assert done[:, :, 6:].sum() == done[:, :, :, 7:].sum() == 0


@pytest.mark.parametrize('images', [torch.zeros(2, 3, 4), torch.zeros(1, 3, 4, 4).byte(), None])
def test_other_inputs_are_refused(images):
    with pytest.raises(ValueError, match=r'floating-point \(B, 3, H, W\), got .* crop=False'):
        augment(images, generator())
