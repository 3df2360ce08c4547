"""Calibration streams the statistics that a full pass over all activations would give."""

import os

import pytest
import torch
from torch import distributed

from mcf_mm.pruning import CalibrationError, calibrate, find_ffns
from mcf_mm.pruning.calibration import _Rows


def activations_of(network, images, ffn):
    seen = []
    handle = ffn.fc2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        network(images)
    handle.remove()
    return seen[0]


def test_statistics_are_those_of_all_images_at_once(network, batches):
    network.train()
    calibration = calibrate(network, batches, second_moments=True)
    assert network.training and network.head.training
    images = torch.cat(batches)
    for ffn in find_ffns(network):
        h = activations_of(network, images, ffn)
        seen = calibration.hiddens[ffn.name]
        torch.testing.assert_close(seen.tokens, h[:, 0])
        torch.testing.assert_close(seen.mean, h.mean((0, 1)))
        torch.testing.assert_close(seen.rms, h.square().mean((0, 1)).sqrt())
        covariance = h.flatten(0, 1).T.cov(correction=0)
        torch.testing.assert_close(seen.covariance.float(), covariance, atol=1e-6, rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(calibration.classes, network(images).argmax(1))


def test_a_network_without_class_token_uses_the_mean_of_its_tokens(network, batches):
    network.token = network.cls_token
    del network.cls_token
    network.cls_token = network.token.data
    del network.token
    ffn = find_ffns(network)[0]
    calibration = calibrate(network, batches)
    h = activations_of(network, torch.cat(batches), ffn)
    torch.testing.assert_close(calibration.hiddens[ffn.name].tokens, h.mean(1))


def test_bad_values_name_layer_and_image(network, batches):
    batches[1][2, 0, 0] = torch.nan
    with pytest.raises(CalibrationError, match=r'blocks\.0\.mlp\.fc1 .* image number 10'):
        calibrate(network, batches)
    with pytest.raises(CalibrationError, match=r'blocks\.0\.mlp\.fc1 .* image b\.jpg'):
        calibrate(network, batches, image_names=lambda batch: ['x', 'y', 'b.jpg', *'abcde'])


def test_no_images_is_an_error_and_leaves_no_hooks(network):
    with pytest.raises(CalibrationError, match='no images'):
        calibrate(network, [])
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_rows_are_kept_in_one_tensor():
    # A tensor kept for each batch fragmented the memory: 5 GB instead of 1 for 1,024 images.
    rows, parts = _Rows(), list(torch.randn(2100, 3).split(32))
    places = set()
    for part in parts:
        rows.append(part)
        places.add(rows.rows.data_ptr())
    assert len(places) <= 3
    assert len(rows) == 2100 and torch.equal(rows.result(), torch.cat(parts))


def _calibrate_share(rank, size, folder, works):
    """One of several processes; leaves what it found, or the error."""
    torch.set_num_threads(1)
    store = f'file://{folder}/store'
    distributed.init_process_group('gloo', init_method=store, rank=rank, world_size=size)
    found = []
    for network, batches in works:
        try:
            found.append(calibrate(network, batches[rank::size], second_moments=True, shared=True))
        except CalibrationError as error:
            found.append(str(error))
    torch.save(found, folder / f'{rank}.pt')
    # Both have all they need; torch 2.1's gloo now and then hangs when it is taken apart.
    distributed.barrier()
    os._exit(0)


def test_processes_that_share_the_images_find_what_one_finds(network, batches, tmp_path):
    bad = [batches[0], batches[1].clone()]
    bad[1][2, 0, 0] = torch.nan
    # Three batches for two processes are unequal shares; one leaves a process without images.
    works = [(network, batches), (network, batches[:1]), (network, bad)]
    torch.multiprocessing.spawn(_calibrate_share, (2, tmp_path, works), nprocs=2)
    parts = [torch.load(tmp_path / f'{rank}.pt', weights_only=False) for rank in range(2)]

    for (_, images), first, second in zip(works[:2], *(part[:2] for part in parts), strict=True):
        alone = calibrate(network, images, second_moments=True)
        for shared in (first, second):
            assert torch.equal(shared.classes, alone.classes)
            assert torch.equal(shared.output, alone.output)
            for kind in ('inputs', 'hiddens'):
                for name, one in getattr(alone, kind).items():
                    both = getattr(shared, kind)[name]
                    assert torch.equal(both.tokens, one.tokens)
                    assert torch.equal(both.mean, one.mean)
                    assert torch.equal(both.mean_square, one.mean_square)
                    torch.testing.assert_close(
                        both.covariance, one.covariance, atol=1e-14, rtol=1e-12
                    )
                    assert torch.equal(both.covariance, getattr(first, kind)[name].covariance)
    # An image of the second process was bad: no process waits for it.
    assert parts[0][2] == parts[1][2]
    assert 'blocks.0.mlp.fc1 is not finite for image number 2' in parts[0][2]
