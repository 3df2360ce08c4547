"""A pruned network is an ordinary backbone; what does not fit is an error, not a warning."""

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import MODELS

from mcf_mm.models import SlimVisionTransformer
from mcf_mm.pruning import find_ffns, prune
from mcf_mm.weights.checkpoint import save_state_dict

ARCH = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=40)
SMALL = dict(arch=ARCH, img_size=32, patch_size=8)


@pytest.fixture
def slim_checkpoint(tmp_path):
    """A pruned classifier's weights and the network itself."""
    torch.manual_seed(0)
    init_default_scope('mmpretrain')
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='mcf_mm.SlimVisionTransformer', **SMALL),
            head=dict(type='VisionTransformerClsHead', num_classes=2, in_channels=16),
        )
    )
    prune(model, [torch.randn(4, 3, 32, 32)], forward=lambda x: model(x, mode='tensor'))
    path = tmp_path / 'slim.safetensors'
    save_state_dict(path, model.state_dict(), {})
    return path, model


def test_without_sizes_it_is_the_class_of_mmpretrain():
    dense, plain = SlimVisionTransformer(**SMALL), VisionTransformer(**SMALL)
    assert dense.state_dict().keys() == plain.state_dict().keys()
    dense.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 32, 32)
    dense.train(False), plain.train(False)
    assert torch.equal(dense(image)[0], plain(image)[0])


def test_sizes_per_layer():
    model = SlimVisionTransformer(**SMALL, ffn_inputs=[9, 16, 4], ffn_hiddens=[24, 40, 8])
    assert [ffn.sizes for ffn in find_ffns(model)] == [(9, 24), (16, 40), (4, 8)]
    assert model(torch.randn(1, 3, 32, 32))[0].shape == (1, 16)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(ffn_inputs=0), r'ffn_inputs\[0\] is 0, it must be from 1 to 16'),
        (dict(ffn_hiddens=[40, 41, 40]), r'ffn_hiddens\[1\] is 41, it must be from 1 to 40'),
        (dict(ffn_hiddens=[1, 2]), 'ffn_hiddens has 2 entries for 3 layers'),
        (dict(sizes='small'), "sizes must be None or 'auto', got 'small'"),
        (dict(sizes='auto', ffn_inputs=9), "either sizes='auto' or ffn_inputs and ffn_hiddens"),
    ],
)
def test_sizes_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SlimVisionTransformer(**SMALL, **arguments)


@pytest.mark.parametrize('prefix', ['backbone', 'backbone.'])
def test_auto_sizes_from_init_cfg(slim_checkpoint, prefix):
    path, model = slim_checkpoint
    backbone = SlimVisionTransformer(
        **SMALL,
        sizes='auto',
        init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix=prefix),
    )
    assert {ffn.sizes for ffn in find_ffns(backbone)} == {(9, 24)}
    backbone.init_weights()
    backbone.train(False), model.train(False)
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone(image)[0], model.backbone(image)[0])


def test_auto_sizes_from_a_checkpoint_loaded_later(slim_checkpoint):
    path, model = slim_checkpoint
    dense = {f'backbone.{k}': v for k, v in SlimVisionTransformer(**SMALL).state_dict().items()}
    model.backbone.sizes = 'auto'
    parameters = list(model.parameters())
    for state_dict, sizes in ((dense, (16, 40)), (model.state_dict(), (9, 24))):
        state_dict = {key: value.clone() for key, value in state_dict.items()}
        model.load_state_dict(state_dict, strict=False)
        assert {ffn.sizes for ffn in find_ffns(model)} == {sizes}
        assert all(torch.equal(model.state_dict()[k], v) for k, v in state_dict.items())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_other_sizes_are_an_error_that_names_layer_and_sizes(slim_checkpoint):
    path, model = slim_checkpoint
    model.backbone = SlimVisionTransformer(**SMALL, ffn_inputs=8, ffn_hiddens=24)
    message = (
        r'backbone\.layers\.0\.ffn: the checkpoint has 9 inputs and 24 hidden units, '
        r'the model 8 and 24'
    )
    with pytest.raises(ValueError, match=message):
        load_checkpoint(model, str(path))


def test_a_checkpoint_without_the_backbone_is_an_error(slim_checkpoint):
    path, model = slim_checkpoint
    with pytest.raises(ValueError, match=r'lacks \d+ of the weights of SlimVisionTransformer'):
        load_checkpoint(model.backbone, str(path))  # keys have the prefix backbone. here
    wrong = dict(type='Pretrained', checkpoint=str(path), prefix='encoder.')
    with pytest.raises(ValueError, match=r"has no 'encoder\.layers\.0\.ffn\.layers\.0\.0\.weight'"):
        SlimVisionTransformer(**SMALL, sizes='auto', init_cfg=wrong)


def test_lost_indices_are_an_error(slim_checkpoint):
    _, model = slim_checkpoint
    state_dict = model.state_dict()
    del state_dict['backbone.layers.1.ffn.layers.0.0.inputs']
    with pytest.raises(ValueError, match=r"lacks 'backbone\.layers\.1\.ffn\.layers\.0\.0\.inputs'"):
        model.load_state_dict(state_dict)
