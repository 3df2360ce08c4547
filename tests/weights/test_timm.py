"""Slim networks of mmpretrain in timm, with the same logits; also without OpenMMLab."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import build_classifier
from safetensors.torch import load_file
from torch import nn

from mcf_mm.pruning import SlimLinear, Structure, cut, find_units, prune
from mcf_mm.weights.convert import convert_checkpoint
from mcf_mm.weights.files import save_state_dict
from mcf_mm.weights.timm import to_timm

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
DEIT = dict(img_size=32, depth=2)
SWIN = dict(img_size=32, embed_dim=8, depths=(2, 2), num_heads=(2, 4), window_size=4)


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


def slim_vit(dense: bool = False) -> nn.Module:
    """deit-tiny with two layers: the first dense, the second with 100 of 192 inputs."""
    arch = dict(embed_dims=192, num_layers=2, num_heads=3, feedforward_channels=768)
    backbone = dict(type='mcf_mm.SlimVisionTransformer', arch=arch, img_size=32, patch_size=16)
    if not dense:
        backbone |= dict(sizes=dict(inputs=[192, 100], hidden=[768, 300]))
    head = dict(type='VisionTransformerClsHead', num_classes=5, in_channels=192)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = build_classifier(dict(type='ImageClassifier', backbone=backbone, head=head))
    if not dense:
        find_units(model).ffns[1].fc1.inputs.copy_(spread(192, 100))
    return randomised(model)


def spread(size: int, kept: int) -> torch.Tensor:
    """Ascending indices that are no slice."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(2))[:kept].sort().values


def slim_swin(dense: bool = False) -> nn.Module:
    arch = dict(embed_dims=8, depths=[2, 2], num_heads=[2, 4])
    backbone = dict(type='SwinTransformer', arch=arch, window_size=4, out_indices=(1,), img_size=32)
    head = dict(type='LinearClsHead', num_classes=5, in_channels=16)
    neck = dict(type='GlobalAveragePooling')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = build_classifier(
            dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)
        )
    kept = {
        ffn.name: dict(
            inputs=spread(ffn.width, ffn.width // 2), hidden=spread(4 * ffn.width, 3 * ffn.width)
        )
        for ffn in find_units(model).ffns[1:]
    }
    if not dense:
        cut(model, Structure(kept))
    return randomised(model)


def logits(classifier: nn.Module) -> torch.Tensor:
    return classifier.head(classifier.extract_feat(IMAGES))


def ffn_sizes(model: nn.Module) -> list[tuple[int, int]]:
    return [tuple(ffn.sizes.values()) for ffn in find_units(model).ffns]


def slim_file(model: nn.Module, folder: Path) -> Path:
    sizes = find_units(model).sizes
    save_state_dict(folder / 'slim.safetensors', model.state_dict(), {'sizes': sizes})
    return folder / 'slim.safetensors'


@torch.inference_mode()
def test_vit_from_a_file(tmp_path):
    ours = slim_vit()
    path = slim_file(ours, tmp_path)
    theirs = to_timm(path, 'deit_tiny_patch16_224', **DEIT).eval()
    assert type(theirs) is timm.models.VisionTransformer and theirs.num_classes == 5
    assert type(theirs.blocks[0].mlp.fc1) is nn.Linear
    assert isinstance(theirs.blocks[1].mlp.fc1, SlimLinear)
    assert ffn_sizes(theirs) == [(192, 768), (100, 300)]
    torch.testing.assert_close(theirs(IMAGES), logits(ours), atol=1e-5, rtol=0)

    convert_checkpoint(path, tmp_path / 'timm.safetensors', 'timm')
    again = to_timm(tmp_path / 'timm.safetensors', 'deit_tiny_patch16_224', **DEIT).eval()
    assert torch.equal(again(IMAGES), theirs(IMAGES))


@torch.inference_mode()
def test_swin_into_a_model():
    ours = slim_swin()
    model = timm.models.SwinTransformer(num_classes=5, **SWIN)
    theirs = to_timm(ours.state_dict(), model)
    assert theirs is model
    assert ffn_sizes(theirs) == [(8, 32), (4, 24), (8, 48), (8, 48)]
    torch.testing.assert_close(theirs.eval()(IMAGES), logits(ours), atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize('network', [slim_vit, slim_swin])
def test_attention(network, tmp_path):
    """Heads, q/k and v channels as well, from a file and from timm's own names."""
    ours = network(dense=True)
    prune(
        ours,
        criterion='magnitude',
        ratios=dict(heads=0.4, qk=0.3, v=0.4, hidden=0.3, inputs=0.2),
    )
    randomised(ours)
    path = slim_file(ours, tmp_path)
    make = {
        slim_vit: lambda: timm.create_model('deit_tiny_patch16_224', num_classes=5, **DEIT),
        slim_swin: lambda: timm.models.SwinTransformer(num_classes=5, **SWIN),
    }[network]
    theirs = to_timm(path, make()).eval()
    sizes = list(find_units(theirs).sizes.values())
    assert sizes == list(find_units(ours).sizes.values())
    attention = find_units(theirs).attentions[0].module
    assert attention.sizes.tolist() == list(find_units(ours).attentions[0].sizes.values())
    assert isinstance(attention, type(find_units(make()).attentions[0].module))
    torch.testing.assert_close(theirs(IMAGES), logits(ours), atol=1e-5, rtol=0)
    again = to_timm(theirs.state_dict(), make()).eval()
    assert torch.equal(again(IMAGES), theirs(IMAGES))
    damaged = ours.state_dict()
    key = next(key for key in damaged if key.endswith('attn.sizes') or key.endswith('w_msa.sizes'))
    damaged[key] = damaged[key] + 1
    with pytest.raises(ValueError, match='attn: its buffer sizes says'):
        to_timm(damaged, make())


def test_gradients_reach_every_weight():
    model = to_timm(slim_vit().state_dict(), 'deit_tiny_patch16_224', **DEIT)
    model(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_weights_that_do_not_fit(tmp_path):
    weights = slim_vit().state_dict()
    with pytest.raises(
        ValueError, match=r'pos_embed is \(1, 5, 192\), not \(1, 197, 192\).*img_size'
    ):
        to_timm(weights, 'deit_tiny_patch16_224', depth=2)
    with pytest.raises(
        ValueError, match=r"lacks 12 of .* the first 'blocks.2.norm1.weight', \(192"
    ):
        to_timm(weights, 'deit_tiny_patch16_224', img_size=32, depth=3)
    index = 'backbone.layers.1.ffn.layers.0.0.inputs'
    lacking = {key: value for key, value in weights.items() if key != index}
    model = timm.create_model('deit_tiny_patch16_224', num_classes=5, **DEIT)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"'backbone.layers.1.ffn.layers.0.0.weight' is \(300, 100\) .* \(300, 192\)",
    ):
        to_timm(lacking, model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(TypeError, match=r"\['img_size'\] can be given with the name of a model"):
        to_timm(weights, model, img_size=32)
    with pytest.raises(
        ValueError, match="1 of .* in the names of mmpretrain: 'backbone.det_token'"
    ):
        to_timm({**weights, 'backbone.det_token': torch.ones(1)}, model)
    with pytest.raises(FileNotFoundError, match='no checkpoint .*absent.safetensors'):
        to_timm(tmp_path / 'absent.safetensors', model)


@torch.inference_mode()
def test_without_openmmlab(tmp_path):
    """A new interpreter in which no OpenMMLab package can be imported gives the same logits."""
    ours = slim_vit()
    torch.save(IMAGES, tmp_path / 'images.pt')
    code = """
import sys
for name in ('mmengine', 'mmcv', 'mmpretrain', 'mmdet'):
    sys.modules[name] = None  # import raises ImportError
import torch
from safetensors.torch import save_file
from mcf_mm.weights.timm import to_timm
folder = sys.argv[1]
model = to_timm(f'{folder}/slim.safetensors', 'deit_tiny_patch16_224', img_size=32, depth=2).eval()
with torch.inference_mode():
    save_file({'logits': model(torch.load(f'{folder}/images.pt'))}, f'{folder}/logits.safetensors')
"""
    slim_file(ours, tmp_path)
    done = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    theirs = load_file(tmp_path / 'logits.safetensors')['logits']
    torch.testing.assert_close(theirs, logits(ours), atol=1e-5, rtol=0)
