"""Calibration streams the statistics that a full pass over all activations would give."""

import pytest
import torch

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
