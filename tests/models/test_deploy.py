"""A network with all kinds of units pruned where programs are recorded, and under LoRA."""

import warnings

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models.peft import LoRAModel
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from packaging.version import Version
from torch import nn

from mcf_mm.models import (
    SlimSwinTransformer,
    SlimT2T_ViT,
    SlimVisionTransformer,
    YOLOSVisionTransformer,
)
from mcf_mm.models.lora import SlimLoRALinear
from mcf_mm.pruning import find_units

#: Odd numbers, which AlignedLinear would pad.
SIZES = dict(inputs=13, hidden=[33, 21], heads=[1, 2], qk=5, v=7)
ARCH = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)
BUILD = {
    'ViT': lambda: SlimVisionTransformer(arch=ARCH, img_size=32, patch_size=8, sizes=SIZES),
    'Swin': lambda: SlimSwinTransformer(
        arch=dict(embed_dims=16, depths=[2], num_heads=[2]),
        img_size=24,
        window_size=4,
        pad_small_map=True,
        out_indices=(0,),
        sizes=SIZES,
    ),
    'T2T-ViT': lambda: SlimT2T_ViT(
        img_size=32,
        embed_dims=24,
        num_layers=2,
        t2t_cfg=dict(token_dims=8),
        layer_cfgs=dict(num_heads=3, feedforward_channels=48),
        sizes={f'encoder.{i}.{unit}': sizes for i in (0, 1) for unit, sizes in UNITS.items()},
    ),
    'YOLOS': lambda: YOLOSVisionTransformer(
        arch=ARCH, img_size=32, num_det_tokens=5, with_mid_pos_embed=True, sizes=SIZES
    ),
}
UNITS = {'attn': dict(heads=2, qk=5, v=7), 'ffn': dict(inputs=13, hidden=33)}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = BUILD[name]()
    for unit in find_units(model).ffns:
        index = getattr(unit.fc1, 'inputs', None)
        if index is not None:
            index.copy_(torch.randperm(unit.width)[: len(index)].sort().values)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def images(name: str, number: int = 2) -> torch.Tensor:
    side = 24 if name == 'Swin' else 32
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('name', BUILD)
def test_trace(name, grad, tmp_path):
    """The program does not depend on whether gradients were on, neither in what it computes."""
    model = build(name)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # sizes become constants
        traced = torch.jit.trace(model, images(name))
    traced.save(tmp_path / 'model.pt')
    again = torch.jit.load(tmp_path / 'model.pt')
    with torch.no_grad():
        expected = model(torch.ones_like(images(name)))
        torch.testing.assert_close(again(torch.ones_like(images(name))), expected)
    # AlignedLinear pads weights for MKL; a program has none of it.
    if name != 'Swin':  # which pads its windows
        assert 'aten::pad' not in str(traced.inlined_graph)


@pytest.mark.skipif(Version(torch.__version__) < Version('2.5'), reason='a young torch.export')
@pytest.mark.parametrize('name', BUILD)
def test_export(name):
    model = build(name)
    # At any batch size where the library's own code allows it.
    shapes = ({0: torch.export.Dim('batch', min=2, max=64)},) if name == 'ViT' else None
    program = torch.export.export(model, (images(name),), dynamic_shapes=shapes)
    number = 2 if shapes is None else 5
    with torch.no_grad():
        expected = model(images(name, number))
        torch.testing.assert_close(program.module()(images(name, number)), expected)


@pytest.mark.parametrize('name', BUILD)
def test_compile(name):
    """Without a compiler: the graphs are captured, with their gradients, and run as they are."""
    model = build(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='aot_eager')
    x = images(name)
    expected = [y.detach() for y in model(x)]
    model.zero_grad()
    outputs = compiled(x)
    torch.testing.assert_close([y.detach() for y in outputs], expected, atol=1e-5, rtol=1e-5)
    sum(y.square().sum() for y in outputs).backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sum(y.square().sum() for y in model(x)).backward()
    own = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == own.keys()
    torch.testing.assert_close(gradients, own, atol=1e-4, rtol=1e-4)


def lora(**kwargs) -> LoRAModel:
    """mmpretrain's, around a slim network."""
    backbone = dict(
        type='mcf_mm.SlimVisionTransformer', arch=ARCH, img_size=32, patch_size=8, sizes=SIZES
    )
    targets = [dict(type='.*qkv'), dict(type='.*ffn.layers.0.0'), dict(type='proj')]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MMPRETRAIN_MODELS.build(
            dict(
                type='LoRAModel',
                module={**backbone, **kwargs},
                rank=2,
                alpha=4,
                targets=targets,
            )
        )
    assert isinstance(model, LoRAModel)
    return model


def test_lora_around_pruned_layers():
    torch.manual_seed(0)
    model = lora()
    dense = SlimVisionTransformer(arch=ARCH, img_size=32, patch_size=8, sizes=SIZES)
    names = {key.replace('.original_layer', ''): key for key in model.module.state_dict()}
    dense.load_state_dict(
        {key: model.module.state_dict()[names[key]] for key in dense.state_dict()}
    )
    x = images('ViT')
    model.train(False), dense.train(False)
    torch.testing.assert_close(model(x)[0], dense(x)[0])  # the branch starts at zero
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (model(x)[0] * torch.linspace(-1, 1, 24)).sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    model.train(False)
    assert (model(x)[0] - dense(x)[0]).abs().max() > 1e-3
    # What is added is the product of both small matrices, in the columns that are kept.
    layer = model.module.layers[0].ffn.layers[0][0]
    assert isinstance(layer, SlimLoRALinear)
    change = layer.lora_up.weight @ layer.lora_down.weight * layer.scaling
    with torch.no_grad():
        layer.original_layer.weight += change
        before = model(x)[0]
        layer.original_layer.weight -= change
    layer.lora_up.weight.data.mul_(2)
    torch.testing.assert_close(model(x)[0], before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('sizes', [SIZES, 'auto'])
def test_an_adapter(tmp_path, sizes):
    torch.manual_seed(0)
    model = lora()
    for key, parameter in model.named_parameters():
        if '.lora_' in key:
            nn.init.normal_(parameter, std=0.2)
    adapter = model.state_dict()
    assert adapter and all('.lora_' in key for key in adapter)
    network = {
        f'backbone.{key.replace(".original_layer", "")}': value
        for key, value in model.module.state_dict().items()
        if '.lora_' not in key
    }
    torch.save(network, tmp_path / 'slim.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'slim.pth'), prefix='backbone.')
    again = lora(sizes=sizes, init_cfg=init_cfg)
    result = again.load_state_dict(adapter)
    assert not result.missing_keys and not result.unexpected_keys
    # With an adapter it is ready, also without a call of train() or eval().
    x = images('ViT')
    assert again(x)[0].isfinite().all()
    model.train(False), again.train(False)
    assert torch.equal(again(x)[0], model(x)[0])
    del adapter['module.layers.0.attn.qkv.lora_up.weight']
    with pytest.raises(ValueError, match="lacks 1 of .* 'module.layers.0.attn.qkv.lora_up.weight'"):
        again.load_state_dict(adapter)
