"""A small network on disk, and the command that prunes and heals it."""

from pathlib import Path

import torch
from mmengine.config import Config
from recording import ROOT

from mcf_mm.engine.networks import build_model


def with_large_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Weights of a size at which every part matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.train(False)
    return model


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def write_dense(cfg: Config, folder: Path) -> Path:
    """Weights of the dense network of a config; ``micro.py`` beside them is the config."""
    cfg.custom_hooks = []
    cfg.dump(folder / 'micro.py')
    torch.manual_seed(0)
    torch.save(with_large_weights(build_model(cfg)).state_dict(), folder / 'dense.pth')
    return folder / 'dense.pth'


def command(dense: Path, out: Path, *more) -> list:
    ratios = ['--criterion', 'fisher', '--ratios', 'hidden=0.5,qk=0.5', '--num-images', 10]
    return [ROOT / 'tools' / 'prune.py', dense.with_name('micro.py'), dense, '--out', out,
            *ratios, *more]  # fmt: skip
