"""YOLOS drops patches and never a detection token."""

import copy

import pytest
import torch
from dropping import ARCH, drop, token_units

from mcf_mm.models import YOLOSVisionTransformer
from mcf_mm.pruning import find_units, heal, measure_costs
from mcf_mm.weights.checkpoint import save_state_dict


def yolos(**kwargs) -> YOLOSVisionTransformer:
    torch.manual_seed(0)
    model = YOLOSVisionTransformer(arch=ARCH, img_size=(64, 96), num_det_tokens=5, **kwargs).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize('mid', [False, True])
def test_yolos_drops_patches_and_sees_a_batch_as_single_images(mid):
    model = yolos(with_mid_pos_embed=mid)
    dense = copy.deepcopy(model)
    sizes = drop(model, 0.4)
    assert [kinds['tokens'] for kinds in sizes.values()] == [18, 11, 7]
    shapes = [(64, 96), (48, 64), (32, 96), (64, 64)]
    x = torch.zeros(4, 3, 64, 96)
    for image, (height, width) in zip(x, shapes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    with torch.no_grad():
        batch = model(x, shapes)[0]
        for row, image, (height, width) in zip(batch, x, shapes, strict=True):
            single = model(image[None, :, :height, :width])[0][0]
            assert torch.allclose(row, single, atol=1e-4)
        assert batch.shape == (4, 5, 24)
        assert not torch.allclose(batch, dense(x, shapes)[0], atol=1e-2)


def test_yolos_keeps_all_detection_tokens_however_many_tokens_go():
    model = yolos()
    drop(model, 0.95)
    with torch.no_grad():
        assert model(torch.randn(2, 3, 64, 96))[0].shape == (2, 5, 24)
    assert {unit.least for unit in token_units(model)} == {7}


def test_yolos_is_built_with_the_tokens_of_its_config_and_of_a_checkpoint(tmp_path):
    model = yolos()
    drop(model, 0.4)
    named = yolos(sizes=dict(tokens=[18, 11, 7]))
    named.load_state_dict(model.state_dict())
    save_state_dict(tmp_path / 'slim.safetensors', model.state_dict(), {})
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'slim.safetensors'))
    auto = yolos(sizes='auto', init_cfg=init_cfg)
    auto.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(named(x)[0], model(x)[0])
        assert torch.equal(auto(x)[0], model(x)[0])


@pytest.mark.parametrize('size', [(64, 96), (96, 160), (32, 48)])
def test_costs_of_an_image_of_another_size_are_those_that_are_counted(size):
    model = yolos()
    forward = lambda model: model(torch.zeros(1, 3, *size))  # noqa: E731
    costs = measure_costs(model, forward)
    sizes = drop(model, 0.4)
    counted = measure_costs(model, forward)
    assert counted.of({}) == costs.of(sizes)
    for unit in find_units(model).tokens:  # and back again, from the network that drops some
        unit.keep(unit.arriving)
    everything = {name: {'tokens': 30} for name in sizes}
    assert counted.of(everything) == costs.of({}) == measure_costs(model, forward).of({})


def test_healing_of_detection_tokens_is_refused():
    model, dense = yolos(), yolos()
    drop(model, 0.4)
    batches = [torch.zeros(2, 3, 64, 96)]
    with pytest.raises(ValueError, match='heal: layers.1 drops patches of a network with detect'):
        heal(model, dense, batches, batches, epochs=1)
