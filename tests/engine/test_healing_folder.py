"""Healing with other photos, drawn from a folder."""

from pathlib import Path

import pytest
import torch
from fork_server import run_tool
from healing import assert_same, command, write_dense
from PIL import Image

from mcf_mm.engine.calibration_data import calibration_loader, folder_images
from mcf_mm.engine.heal import _Batches
from mcf_mm.engine.networks import build_model
from mcf_mm.pruning.precision import fast_bf16
from mcf_mm.weights.checkpoint import read_header, read_state_dict


@pytest.fixture
def dense(cfg, tmp_path) -> Path:
    return write_dense(cfg, tmp_path)


def test_other_images_are_drawn_from_a_folder(dense, tmp_path):
    photos = tmp_path / 'photos' / 'of' / 'mine'
    photos.mkdir(parents=True)
    for number in range(30):
        Image.new('RGB', (40 + number, 50), (8 * number, 90, 200)).save(photos / f'{number}.jpg')
    heal = f'epochs=2,lr=1e-3,bf16=True,folder={tmp_path / "photos"}'
    out, again = tmp_path / 'healed', tmp_path / 'again'
    for folder in (out, again):
        done = run_tool(command(dense, folder, '--heal', heal))
        assert done.returncode == 0, done.stderr
    # Nine calibration images of ten, and nine others, twice.
    assert 'healed on 36 images in' in done.stdout
    told = read_header(out / 'slim.safetensors')['heal']  # without a path of this machine
    assert (told['folder'], told['bf16'], told['images']) == (
        'photos',
        fast_bf16('cpu'),
        36,
    )  # no path of this machine
    first, second = (read_state_dict(str(path / 'slim.safetensors')) for path in (out, again))
    assert_same(first, second)
    (photos / '7.jpg').write_bytes(b'no image')
    done = run_tool(command(dense, tmp_path / 'damaged', '--heal', heal.replace('=2', '=9')))
    assert done.returncode == 1 and '7.jpg' in done.stderr
    assert not (tmp_path / 'damaged' / 'slim.safetensors').exists()


def test_others_are_drawn_anew_in_each_epoch(cfg, tmp_path):
    photos = tmp_path / 'others'
    photos.mkdir()
    for number in range(40):
        Image.new('RGB', (32, 32), (6 * number, 3, 250)).save(photos / f'{number:02}.png')
    cfg.custom_hooks = []
    model, loader = build_model(cfg), calibration_loader(cfg, 6)
    others = folder_images(cfg, str(photos))
    batches = _Batches(loader, range(6), model, 4, others)
    generator = torch.Generator().manual_seed(0)
    epochs = [torch.cat([b['inputs'] for b in batches.shuffled(generator)]) for _ in range(2)]
    own = torch.cat([batch['inputs'] for batch in batches])
    assert len(batches) == 3 and len(own) == 6
    drawn = []
    for images in epochs:
        is_own = [any(torch.equal(image, one) for one in own) for image in images]
        assert len(images) == 12 and sum(is_own) == 6
        drawn.append(
            {float(image.sum()) for image, mine in zip(images, is_own, strict=True) if not mine}
        )
    assert len(drawn[0]) == len(drawn[1]) == 6 and drawn[0] != drawn[1]
