"""A micro classifier on disk, and the tool that compares what becomes of it."""

import json
import os
from pathlib import Path

import torch
from fork_server import run_tool
from mmengine.config import Config

from mcf_mm.engine.networks import build_model

ROOT = Path(__file__).resolve().parents[2]
BUDGET = ['--budget', 'macs=75%']
#: Heads of 16 channels: 8 are the fewest that the closed form leaves.
ARCH = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
SWIN = dict(
    type='SwinTransformer',
    arch=dict(embed_dims=16, depths=[1, 2], num_heads=[2, 4]),
    img_size=32,
    window_size=4,
    out_indices=(1,),
)


def write(cfg: Config, folder: Path) -> Path:
    """Write ``micro.py`` and ``dense.pth``, with weights of a size at which every part matters."""
    cfg.dump(folder / 'micro.py')
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    torch.save(model.state_dict(), folder / 'dense.pth')
    return folder


def command(folder: Path, *options) -> list:
    files = [folder / 'micro.py', folder / 'dense.pth', '--out', folder / 'out']
    fast = ['--num-images', 6, '--batch', 2, '--rounds', 1]
    return [ROOT / 'tools' / 'compare.py', *files, *fast, *options]


def run(folder: Path, *options, status: int = 0):
    """Run the tool on the files of :func:`write`; it ends as expected, without a traceback."""
    process = run_tool(command(folder, *options), env=environment(folder))
    assert process.returncode == status, process.stderr + process.stdout
    assert 'Traceback' not in process.stderr, process.stderr
    return process


def environment(folder: Path) -> dict[str, str]:
    """Environment in which configs find modules in a folder, and no line is broken."""
    path = [str(folder), str(ROOT), os.environ.get('PYTHONPATH', '')]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, path)), 'COLUMNS': '400'}


def results(folder: Path) -> dict:
    return json.loads((folder / 'out' / 'results.json').read_text())
