"""A pruned network is an ordinary backbone; what does not fit is an error, not a warning."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmpretrain.models import DistilledVisionTransformer, VisionTransformer
from mmpretrain.registry import MODELS

from mcf_mm.models import SlimDistilledVisionTransformer, SlimVisionTransformer
from mcf_mm.pruning import Structure, cut, find_units, mask, prune
from mcf_mm.weights.checkpoint import read_state_dict, save_state_dict

STORED = Path(__file__).resolve().parents[1] / 'stored' / 'before_units'
ARCH = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=40)
SMALL = dict(arch=ARCH, img_size=32, patch_size=8)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def sizes_of(model: torch.nn.Module) -> list[tuple[int, ...]]:
    return [tuple(unit.sizes.values()) for unit in find_units(model)]


@pytest.fixture
def slim_checkpoint(tmp_path):
    """The weights of a classifier with all kinds pruned, and the network itself."""
    torch.manual_seed(0)
    init_default_scope('mmpretrain')
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='mcf_mm.SlimVisionTransformer', **SMALL),
            head=dict(type='VisionTransformerClsHead', num_classes=2, in_channels=16),
        )
    )
    prune(
        model,
        criterion='magnitude',
        ratios=dict(inputs=0.4, hidden=0.4, heads=0.5, qk=0.3, v=0.2),
    )
    path = tmp_path / 'slim.safetensors'
    save_state_dict(path, model.state_dict(), {})
    return path, model


SLIM, DENSE = [(1, 5, 6), (9, 24)] * 3, [(2, 8, 8), (16, 40)] * 3


@pytest.mark.parametrize(
    'slim, plain',
    [
        (SlimVisionTransformer, VisionTransformer),
        (SlimDistilledVisionTransformer, DistilledVisionTransformer),
    ],
)
def test_without_sizes_it_is_the_class_of_mmpretrain(slim, plain):
    dense, plain = slim(**SMALL), plain(**SMALL)
    assert dense.state_dict().keys() == plain.state_dict().keys()
    dense.load_state_dict(plain.state_dict())
    dense.train(False), plain.train(False)
    torch.testing.assert_close(dense(IMAGES), plain(IMAGES), atol=0, rtol=0)


def test_sizes_by_kind():
    model = SlimVisionTransformer(
        **SMALL, sizes=dict(inputs=[9, 16, 4], hidden=[24, 40, 8], heads=[1, 2, 2], qk=5, v=[7])
    )
    assert sizes_of(model) == [(1, 5, 7), (9, 24), (2, 5, 7), (16, 40), (2, 5, 7), (4, 8)]
    assert model(torch.randn(1, 3, 32, 32))[0].shape == (1, 16)
    assert model.layers[0].attn.sizes.tolist() == [1, 5, 7]


def test_sizes_by_unit():
    sizes = {'layers.1.ffn': dict(hidden=8), 'layers.2.attn': dict(heads=1, v=3)}
    model = SlimVisionTransformer(**SMALL, sizes=sizes)
    assert sizes_of(model) == [*DENSE[:3], (16, 8), (1, 8, 3), (16, 40)]
    dense = SlimVisionTransformer(**SMALL).state_dict().keys()
    # Where all inputs are read there is nothing to gather.
    assert model.state_dict().keys() - dense == {'layers.2.attn.sizes'}


def test_a_config_keeps_either_form(tmp_path):
    for sizes in (dict(hidden=[24, 40, 8], heads=1), {'layers.1.ffn': dict(hidden=8)}):
        backbone = dict(type='mcf_mm.SlimVisionTransformer', **SMALL, sizes=sizes)
        Config(dict(backbone=backbone)).dump(tmp_path / 'slim.py')
        again = MODELS.build(Config.fromfile(tmp_path / 'slim.py').backbone)
        assert sizes_of(again) == sizes_of(SlimVisionTransformer(**SMALL, sizes=sizes))


def test_arguments_of_before():
    model = SlimVisionTransformer(
        **SMALL, ffn_inputs=[9, 16, 4], ffn_hiddens=24, ffn_selection='layer'
    )
    assert sizes_of(model)[1::2] == [(9, 24), (16, 24), (4, 24)]


def test_scale_of_the_softmax_is_that_of_the_dense_network(slim_checkpoint):
    _, model = slim_checkpoint
    dense = SlimVisionTransformer(**SMALL).eval()
    units = find_units(dense)
    channels = {unit.name: dict(qk=torch.tensor([0, 1, 8, 9])) for unit in units.attentions}
    structure = Structure({name: units.by_name[name].complete(c) for name, c in channels.items()})
    with mask(units, structure):
        (masked,) = dense(IMAGES)
    cut(dense, structure)
    small = SlimVisionTransformer(**SMALL, sizes=dict(qk=2)).eval()
    small.load_state_dict(dense.state_dict())
    torch.testing.assert_close(small(IMAGES)[0], masked, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(sizes=dict(inputs=0)), r"sizes\['inputs'\]\[0\] is 0, it must be from 1 to 16"),
        (
            dict(sizes=dict(hidden=[40, 41, 40])),
            r"\['hidden'\]\[1\] is 41, it must be from 1 to 40 for layers\.1\.ffn",
        ),
        (dict(ffn_hiddens=[40, 41, 40]), r'ffn_hiddens\[1\] is 41, it must be from 1 to 40'),
        (dict(ffn_hiddens=[1, 2]), 'ffn_hiddens has 2 entries for 3 units'),
        (dict(sizes=dict(heads=3)), r"sizes\['heads'\]\[0\] is 3, it must be from 1 to 2 for"),
        (dict(sizes=dict(heads=True)), r"sizes\['heads'\]\[0\] is True"),
        (
            dict(sizes=dict(heads='2')),
            r"\['heads'\] must be a number or one for each unit, got '2'",
        ),
        (dict(sizes=dict(tiles=3)), r"has no 'tiles', but \['heads', 'hidden', 'inputs', 'qk'"),
        (dict(sizes={'layers.3.ffn': dict(hidden=8)}), "names the unit 'layers.3.ffn', the netw"),
        (dict(sizes={'layers.0.ffn': dict(heads=1)}), r"\['heads'\] of layers.0.ffn, which has"),
        (dict(sizes={'layers.0.ffn': dict(hidden=99)}), 'of layers.0.ffn is 99, it must be from 1'),
        (dict(sizes={'layers.0.ffn': dict(hidden=9), 'heads': 1}), 'either units or kinds'),
        (dict(sizes='small'), "sizes must be {kind: .*'auto' or None, got 'small'"),
        (dict(sizes='auto', ffn_inputs=9), "either sizes='auto' or ffn_inputs, not both"),
        (dict(ffn_selection='row'), "ffn_selection must be 'layer', got 'row': .* prune the dense"),
    ],
)
def test_sizes_that_cannot_be_are_named(arguments, message):
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
    assert sizes_of(backbone) == SLIM
    backbone.init_weights()
    backbone.train(False), model.train(False)
    assert torch.equal(backbone(IMAGES)[0], model.backbone(IMAGES)[0])


def test_auto_sizes_from_a_checkpoint_loaded_later(slim_checkpoint):
    path, model = slim_checkpoint
    dense = {f'backbone.{k}': v for k, v in SlimVisionTransformer(**SMALL).state_dict().items()}
    model.backbone.sizes = 'auto'
    parameters = list(model.parameters())
    for state_dict, sizes in ((dense, DENSE), (model.state_dict(), SLIM)):
        state_dict = {key: value.clone() for key, value in state_dict.items()}
        model.load_state_dict(state_dict, strict=False)
        assert sizes_of(model) == sizes
        assert all(torch.equal(model.state_dict()[k], v) for k, v in state_dict.items())
        assert all('sizes' not in key or sizes == SLIM for key in model.state_dict())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_other_sizes_are_an_error_that_names_layer_and_sizes(slim_checkpoint):
    path, model = slim_checkpoint
    sizes = dict(inputs=8, hidden=24, heads=1, qk=5, v=6)
    model.backbone = SlimVisionTransformer(**SMALL, sizes=sizes)
    message = (
        r'backbone\.layers\.0\.ffn: the checkpoint has 9 inputs, 24 hidden, '
        r"the model 8 inputs, 24 hidden\. Set sizes='auto' or"
    )
    with pytest.raises(ValueError, match=message):
        load_checkpoint(model, str(path))
    # The same number of rows and columns, and yet another attention.
    model.backbone = SlimVisionTransformer(**SMALL, sizes=dict(sizes, inputs=9, heads=2, qk=5, v=3))
    with pytest.raises(ValueError, match=r'attn: the checkpoint has 1 heads, 5 qk, 6 v, the model'):
        load_checkpoint(model, str(path))
    larger = SlimVisionTransformer(**dict(SMALL, arch=dict(ARCH, feedforward_channels=48)))
    with pytest.raises(
        ValueError, match='hidden of layers.0.ffn is 48 in the checkpoint, .* to 40'
    ):
        SlimVisionTransformer(**SMALL, sizes='auto').load_state_dict(larger.state_dict())


def test_a_checkpoint_without_the_backbone_is_an_error(slim_checkpoint):
    path, model = slim_checkpoint
    with pytest.raises(ValueError, match=r'lacks \d+ of the weights of SlimVisionTransformer'):
        load_checkpoint(model.backbone, str(path))  # keys have the prefix backbone. here
    wrong = dict(type='Pretrained', checkpoint=str(path), prefix='encoder.')
    with pytest.raises(ValueError, match=r"has no 'encoder\.layers\.0\.attn\.qkv\.weight'"):
        SlimVisionTransformer(**SMALL, sizes='auto', init_cfg=wrong)


def test_lost_indices_are_an_error(slim_checkpoint):
    _, model = slim_checkpoint
    state_dict = model.state_dict()
    del state_dict['backbone.layers.1.ffn.layers.0.0.inputs']
    message = r"lacks 1 of .* first 'backbone\.layers\.1\.ffn\.layers\.0\.0\.inputs'"
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state_dict)


def test_position_embeddings_of_another_grid_are_resized(slim_checkpoint):
    path, model = slim_checkpoint
    backbone = SlimVisionTransformer(
        **dict(SMALL, img_size=48),
        sizes='auto',
        init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone.'),
    )
    backbone.init_weights()
    assert backbone.pos_embed.shape == (1, 37, 16)
    assert torch.equal(backbone.pos_embed[:, 0], model.backbone.pos_embed[:, 0])


@pytest.mark.parametrize('sizes', [None, 'auto'])
def test_a_network_of_before(sizes):
    """What mcf_mm 0.1 wrote: ffn_inputs and ffn_hiddens in the config, no sizes of attention."""
    cfg = Config.fromfile(STORED / 'slim.py', import_custom_modules=False)
    if sizes == 'auto':
        cfg.model.backbone = dict(
            type='mcf_mm.SlimVisionTransformer',
            arch=cfg.model.backbone.arch,
            img_size=32,
            patch_size=8,
            sizes='auto',
        )
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    result = model.load_state_dict(read_state_dict(str(STORED / 'slim.safetensors')), strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert sizes_of(model) == [(2, 8, 8), (9, 24)] * 3
    assert model(IMAGES, mode='tensor').isfinite().all()
