"""The same weights give the same logits in mmpretrain, timm and transformers; back, the same bits.

The networks are tiny and have random weights in every parameter: biases, norms and tables that
start at zero or one would hide a mistake.
"""

import sys

import pytest
import timm
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import build_classifier
from safetensors.torch import load_file
from timm.models import swin_transformer, vision_transformer
from torch import Tensor, nn

from mcf_mm.pruning import Structure, cut, find_ffns
from mcf_mm.weights.convert import convert_checkpoint, convert_state_dict
from mcf_mm.weights.files import save_pth

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval()


def mmpretrain_classifier(backbone: dict, head: str, **kwargs) -> nn.Module:
    head = dict(type=head, num_classes=5, in_channels=16)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return build_classifier(
            dict(type='ImageClassifier', backbone=dict(backbone, img_size=32), head=head, **kwargs)
        )


def mmpretrain_vit(kind: str = 'VisionTransformer', head: str = 'VisionTransformerClsHead'):
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=64)
    return mmpretrain_classifier(dict(type=kind, arch=arch, patch_size=8), head)


def mmpretrain_deit():
    return mmpretrain_vit('DistilledVisionTransformer', 'DeiTClsHead')


def mmpretrain_swin():
    arch = dict(embed_dims=8, depths=[2, 2], num_heads=[2, 4])
    backbone = dict(type='SwinTransformer', arch=arch, window_size=4, out_indices=(1,))
    return mmpretrain_classifier(backbone, 'LinearClsHead', neck=dict(type='GlobalAveragePooling'))


VIT = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5)
SWIN = dict(img_size=32, embed_dim=8, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=5)


def logits(classifier: nn.Module) -> Tensor:
    return classifier.head(classifier.extract_feat(IMAGES))


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


NETWORKS = {'vit': mmpretrain_vit, 'deit': mmpretrain_deit, 'swin': mmpretrain_swin}
TIMM = {
    'vit': lambda: vision_transformer.VisionTransformer(**VIT),
    'deit': lambda: timm.models.deit.VisionTransformerDistilled(**VIT),
    'swin': lambda: swin_transformer.SwinTransformer(**SWIN),
}


@pytest.mark.parametrize('kind', NETWORKS)
@torch.inference_mode()
def test_timm(kind):
    ours, theirs = randomised(NETWORKS[kind]()), TIMM[kind]().eval()
    theirs.load_state_dict(convert_state_dict(ours.state_dict(), 'timm'))
    torch.testing.assert_close(theirs(IMAGES), logits(ours), atol=1e-5, rtol=0)
    assert_same(convert_state_dict(theirs.state_dict(), 'mmpretrain'), ours.state_dict())
    assert_same(convert_state_dict(ours.state_dict(), 'timm'), theirs.state_dict())


@torch.inference_mode()
def test_original_swin():
    """timm reads the names of the release as well, by its own rules."""
    ours, theirs = randomised(mmpretrain_swin()), TIMM['swin']().eval()
    original = convert_state_dict(ours.state_dict(), 'original')
    assert 'layers.0.downsample.reduction.weight' in original and 'head.weight' in original
    assert original['layers.1.blocks.0.attn.relative_position_index'].shape == (16, 16)
    theirs.load_state_dict(swin_transformer.checkpoint_filter_fn(dict(original), theirs))
    torch.testing.assert_close(theirs(IMAGES), logits(ours), atol=1e-5, rtol=0)

    original['layers.0.blocks.1.attn_mask'] = torch.zeros(4, 16, 16)
    assert_same(convert_state_dict(original, 'mmpretrain'), ours.state_dict())
    assert_same(convert_state_dict(original, 'timm'), theirs.state_dict())
    del original['layers.0.blocks.1.attn_mask']
    assert_same(convert_state_dict(theirs.state_dict(), 'original'), original)


def huggingface(kind: str):
    transformers = pytest.importorskip('transformers')
    vit = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    vit |= dict(image_size=32, patch_size=8, layer_norm_eps=1e-6, num_labels=5)
    swin = dict(image_size=32, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4)
    network, config = {
        'vit': ('ViTForImageClassification', transformers.ViTConfig(**vit)),
        'deit': ('DeiTForImageClassificationWithTeacher', transformers.DeiTConfig(**vit)),
        'swin': ('SwinForImageClassification', transformers.SwinConfig(**swin, num_labels=5)),
    }[kind]
    return getattr(transformers, network), config


@pytest.mark.parametrize('kind', NETWORKS)
@torch.inference_mode()
def test_huggingface(kind, tmp_path):
    network, config = huggingface(kind)
    ours = randomised(NETWORKS[kind]())
    config.save_pretrained(tmp_path)
    save_pth(tmp_path / 'ours.pth', ours.state_dict())
    convert_checkpoint(tmp_path / 'ours.pth', tmp_path / 'model.safetensors', 'huggingface')
    theirs, report = network.from_pretrained(tmp_path, output_loading_info=True)
    assert not report['missing_keys'] and not report['unexpected_keys']
    theirs.eval()
    torch.testing.assert_close(theirs(IMAGES).logits, logits(ours), atol=1e-5, rtol=0)

    theirs.save_pretrained(tmp_path / 'again')
    files = [load_file(tmp_path / folder / 'model.safetensors') for folder in ('.', 'again')]
    # Version 5 does not save the index of a Swin, older ones do.
    assert_same(*({key: file[key] for key in file if 'index' not in key} for file in files))
    assert_same(convert_state_dict(files[1], 'mmpretrain'), ours.state_dict())
    # The names that version 5 uses in memory, and older versions in memory and in files.
    in_memory = theirs.state_dict()
    assert_same(convert_state_dict(in_memory, 'mmpretrain'), ours.state_dict())
    assert_same(convert_state_dict(in_memory, 'timm'), convert_state_dict(files[0], 'timm'))


@torch.inference_mode()
def test_huggingface_deit_without_teacher():
    """Its class token alone is classified; the distillation token only attends."""
    _, config = huggingface('deit')
    theirs = randomised(sys.modules['transformers'].DeiTForImageClassification(config))
    weights = convert_state_dict(theirs.state_dict(), 'mmpretrain')
    backbone = mmpretrain_deit().eval().backbone
    prefix = 'backbone.'
    backbone.load_state_dict(
        {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
    )
    class_token, _ = backbone(IMAGES)[0]
    ours = class_token @ weights['head.layers.head.weight'].T + weights['head.layers.head.bias']
    torch.testing.assert_close(theirs(IMAGES).logits, ours, atol=1e-5, rtol=0)
    names = convert_state_dict(weights, 'huggingface').keys()
    assert 'classifier.weight' in names and 'deit.embeddings.distillation_token' in names


@pytest.mark.parametrize('to', ['timm', 'original', 'huggingface'])
@pytest.mark.parametrize('kind', NETWORKS)
def test_slim_networks_there_and_back(kind, to):
    model = randomised(NETWORKS[kind]())
    ffn = find_ffns(model)[-1]
    kept = dict(inputs=torch.arange(0, 16, 2), hidden=torch.arange(0, 64, 3))
    cut(model, Structure({ffn.name: kept}))
    there = convert_state_dict(model.state_dict(), to)
    (inputs,) = [key for key in there if key.endswith('.inputs')]
    assert torch.equal(there[inputs], kept['inputs'])
    assert there[inputs.replace('inputs', 'weight')].shape == (22, 8)
    assert_same(convert_state_dict(there, 'mmpretrain'), model.state_dict())


def test_swin_keys_that_cannot_be_converted():
    weights = mmpretrain_swin().state_dict()
    for wrong in ('backbone.norm0.weight', 'head.fc.scale', 'backbone.stages.0.ffn.weight'):
        with pytest.raises(ValueError, match=f"1 of .* a Swin in the names of mmp.*: '{wrong}'"):
            convert_state_dict({**weights, wrong: torch.ones(8)}, 'timm')
    position = {'backbone.absolute_pos_embed': torch.ones(1, 64, 8)}
    with pytest.raises(ValueError, match="timm has no counterpart of 'backbone.absolute_pos_em"):
        convert_state_dict(weights | position, 'timm')
    assert 'absolute_pos_embed' in convert_state_dict(weights | position, 'original')
    timm_weights = convert_state_dict(weights, 'timm')
    table = 'layers.0.blocks.0.attn.relative_position_bias_table'
    with pytest.raises(ValueError, match=r'relative_position_bias_table. has 50 rows.*\(2w - 1\)'):
        convert_state_dict({**timm_weights, table: torch.ones(50, 2)}, 'mmpretrain')


def test_incomplete_and_doubled_attention():
    weights = convert_state_dict(mmpretrain_vit().state_dict(), 'huggingface')
    key = 'vit.encoder.layer.1.attention.attention.key.bias'
    lacking = {name: value for name, value in weights.items() if name != key}
    with pytest.raises(ValueError, match=rf"\['{key}'\] are missing beside 'vit.encoder.layer.1"):
        convert_state_dict(lacking, 'mmpretrain')
    with pytest.raises(ValueError, match="'cls_classifier.bias' and a key before it name the same"):
        convert_state_dict({**weights, 'cls_classifier.bias': torch.ones(5)}, 'timm')
