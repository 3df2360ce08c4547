"""Small networks that drop tokens."""

import timm
import torch

from mcf_mm.models import SlimVisionTransformer
from mcf_mm.pruning import cut, find_units, uniform
from mcf_mm.pruning.structure import Structure
from mcf_mm.pruning.token_units import Tokens

ARCH = dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=48)


def vit(**kwargs) -> SlimVisionTransformer:
    torch.manual_seed(0)
    model = SlimVisionTransformer(arch=ARCH, img_size=64, **kwargs).eval()
    for parameter in model.parameters():  # large enough for every part to be felt
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def timm_vit(**kwargs):
    torch.manual_seed(0)
    model = timm.create_model(
        'vit_tiny_patch16_224', img_size=64, embed_dim=24, depth=4, num_heads=2, **kwargs
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def token_units(model) -> list[Tokens]:
    return find_units(model).tokens


def drop(model, ratio: float):
    units = find_units(model)
    sizes = uniform(units, dict(tokens=ratio))
    cut(
        model, Structure({name: {'tokens': torch.arange(k['tokens'])} for name, k in sizes.items()})
    )
    return sizes


def images(*, batch: int = 5) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))
