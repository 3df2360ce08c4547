"""For runs to a budget: a network of which every kind can be pruned, and checks of what is left."""

from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.engine.calibration_data import calibration_loader, tensor_forward
from mcf_mm.engine.networks import build_model, model_costs
from mcf_mm.pruning import find_units
from mcf_mm.pruning.criteria import OBS
from mcf_mm.weights.checkpoint import read_state_dict

SHAPE = (32, 32)
ARCH = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
#: What a budget prunes unless told otherwise.
KINDS = ('heads', 'qk', 'v', 'inputs', 'hidden')


def widened(cfg: Config) -> Config:
    """``cfg`` with heads of 16 channels: 8 are the fewest that a budget leaves."""
    cfg.model.backbone.arch = dict(ARCH)
    cfg.model.head.in_channels = ARCH['embed_dims']
    return cfg


def built(folder: Path) -> nn.Module:
    """The network of ``slim.py`` with the weights of ``slim.safetensors``."""
    model = build_model(Config.fromfile(folder / 'slim.py')).eval()
    model.load_state_dict(read_state_dict(str(folder / 'slim.safetensors')))
    return model


def wanted_of(dense: nn.Module, budget: str, shape=SHAPE) -> int:
    """What a budget in percent comes to."""
    what, share = budget.rstrip('%').split('=')
    return round(model_costs(dense, shape).of({})[what] * float(share) / 100)


def assert_exact(dense: nn.Module, small: nn.Module, budget: str, kinds=KINDS, shape=SHAPE):
    """The cost is within the budget, and no element more of any kind would be."""
    what, costs, wanted = budget.split('=')[0], model_costs(dense, shape), wanted_of(dense, budget)
    full, sizes = find_units(dense).sizes, find_units(small).sizes
    counted = count_complexity(small, shape)
    assert dict(params=counted.params, macs=counted.macs) == costs.of(sizes)
    assert counted.params == sum(parameter.numel() for parameter in small.parameters())
    assert getattr(counted, what) <= wanted
    for name, own in sizes.items():
        for kind, size in own.items():
            if kind not in kinds:
                assert size == full[name][kind], (name, kind)
                continue
            assert size >= min(full[name][kind], OBS.floors[kind])
            if size < full[name][kind]:
                more = {**sizes, name: {**own, kind: size + 1}}
                assert costs.of(more)[what] > wanted, (name, kind)


@torch.no_grad()
def error(cfg: Config, small: nn.Module, dense: nn.Module, num_images: int = 10) -> float:
    """How far all tokens of the last layer are from those of the dense network.

    On the calibration images.
    """
    total = 0.0
    for batch in calibration_loader(cfg, num_images):
        tokens = []
        for model in (small, dense):
            handle = model.backbone.layers[-1].register_forward_hook(
                lambda module, args, out, tokens=tokens: tokens.append(out)
            )
            tensor_forward(model.eval())(batch)
            handle.remove()
        total += float((tokens[0] - tokens[1]).square().sum())
    return total
