"""Throughput: the right order, a fair measurement, errors; the tool."""

import json
import runpy
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fork_server import run_tool
from mmengine.config import Config
from packaging.version import Version
from torch import nn

from mcf_mm.analysis.throughput import Comparison, Speed, compare, measure_throughput
from mcf_mm.engine.networks import dense_and_pruned
from mcf_mm.pruning import SlimLinear, find_ffns

TOOL = Path(__file__).parents[2] / 'tools' / 'throughput.py'


class Slow(nn.Module):
    """Takes a known time of the processor, or asleep; notes when it is called."""

    def __init__(self, seconds: float, calls: list[float], asleep: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seconds, self.calls, self.asleep = seconds, calls, asleep

    def forward(self, images):
        assert not self.training and not torch.is_grad_enabled()
        self.calls.append(self.seconds)
        if self.asleep:
            time.sleep(self.seconds)
        end = time.thread_time() + self.seconds
        while not self.asleep and time.thread_time() < end:
            pass
        return images


@pytest.fixture
def threads():
    """Sets the number of threads, and sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_known_times_in_turn(threads):
    threads(1)
    calls: list[float] = []
    models = dict(dense=Slow(0.02, calls), pruned=Slow(0.01, calls))
    speeds = measure_throughput(models, (3, 4, 4), batch_size=8, rounds=5)
    assert calls == [0.02, 0.01] * 7
    # At least as long as asked, and little longer: what others do does not count.
    assert 350 < speeds['dense'] <= 400 and 650 < speeds['pruned'] <= 800
    assert all(model.training for model in models.values())


def test_several_threads_are_timed_by_the_clock(threads):
    threads(2)
    models = dict(dense=Slow(0.02, [], asleep=True), pruned=Slow(0.01, [], asleep=True))
    speeds = measure_throughput(models, (3, 4, 4), batch_size=8, rounds=5)
    assert 50 < speeds['dense'] <= 400 and 50 < speeds['pruned'] <= 800


class Types(nn.Linear):
    """Notes the type of its results."""

    def __init__(self):
        super().__init__(4, 4)
        self.types = []

    def forward(self, images):
        result = super().forward(images)
        self.types.append(result.dtype)
        return result


def test_amp():
    models = dict(one=Types())
    measure_throughput(models, (3, 4, 4), batch_size=2, rounds=1)
    measure_throughput(models, (3, 4, 4), batch_size=2, rounds=1, amp=True)
    assert models['one'].types == [torch.float32] * 3 + [torch.bfloat16] * 3


class Scaled(nn.Linear):
    """Has a number of numpy, as mmpretrain's DropPath has."""

    scale = np.float64(0.5)

    def forward(self, images):
        return super().forward(images * self.scale)


def test_compile_runs_the_compiled_network(monkeypatch):
    """Inductor needs a C++ compiler; that the network goes through Dynamo is seen without."""
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda model: real(model, backend=backend))
    models = dict(one=Scaled(4, 4), two=nn.Linear(4, 8))
    speeds = measure_throughput(models, (3, 4, 4), batch_size=2, rounds=1, compile=True)
    # The Dynamo of torch 2.1 leaves a network with numbers of numpy to Python.
    expected = 2 if Version(torch.__version__) >= Version('2.4') else 1
    assert len(graphs) == expected and min(speeds.values()) > 0


@pytest.mark.parametrize('arguments', [dict(batch_size=0), dict(rounds=0)])
def test_counts_must_be_positive(arguments):
    with pytest.raises(ValueError, match='both must be at least 1'):
        measure_throughput(dict(one=Slow(0, [])), (3, 4, 4), **arguments)


def test_networks_must_share_a_device():
    models = dict(one=Slow(0, []), other=Slow(0, []).to('meta'))
    with pytest.raises(ValueError, match='must be on one device, they are on cpu, meta'):
        measure_throughput(models, (3, 4, 4))
    with pytest.raises(ValueError, match='they are on no device'):
        measure_throughput({}, (3, 4, 4))


def test_ratios():
    comparison = Comparison(dict(A=Speed(20, 300, 10.0), B=Speed(10, 200, 14.25)))
    assert (comparison.macs_ratio, comparison.throughput_ratio) == (1.5, 1.425)
    assert comparison.share == pytest.approx(0.95)
    assert comparison.to_dict()['networks']['B'] == dict(
        params=10, macs=200, images_per_second=14.25
    )


def test_images_have_the_channels_of_the_networks():
    models = dict(A=nn.Conv2d(1, 4, 3), B=nn.Conv2d(1, 2, 3))
    comparison = compare(models, (6, 6), batch_size=2, rounds=1)
    assert [speed.macs for speed in comparison.networks.values()] == [576, 288]


def micro_config(pruned: bool = True, depth: int = 2) -> Config:
    hook = dict(type='mcf_mm.MCFPruningHook', ratio=0.4)
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier',
                backbone=dict(
                    type='mcf_mm.SlimVisionTransformer',
                    arch=dict(
                        embed_dims=16, num_layers=depth, num_heads=2, feedforward_channels=64
                    ),
                    img_size=32,
                    patch_size=8,
                ),
                head=dict(type='VisionTransformerClsHead', num_classes=2, in_channels=16),
            ),
            custom_hooks=[hook] if pruned else [],
        )
    )


def test_which_networks_are_compared():
    models = dense_and_pruned(micro_config())
    assert [ffn.sizes for ffn in find_ffns(models['A'])] == [dict(inputs=16, hidden=64)] * 2
    slim = find_ffns(models['B'])
    assert [ffn.sizes for ffn in slim] == [dict(inputs=9, hidden=38)] * 2
    for ffn in slim:
        inputs = ffn.fc1.inputs
        assert isinstance(ffn.fc1, SlimLinear)
        # As after pruning: ascending, and not one block.
        assert (inputs.diff() > 0).all() and inputs[-1] < 16 and inputs[-1] - inputs[0] > 8
    # A config with the hook stands for the dense network as A, for the pruned one as B.
    models = dense_and_pruned(micro_config(pruned=False, depth=3), micro_config())
    assert [ffn.sizes for ffn in find_ffns(models['A'])] == [dict(inputs=16, hidden=64)] * 3
    assert [ffn.sizes for ffn in find_ffns(models['B'])] == [dict(inputs=9, hidden=38)] * 2
    models = dense_and_pruned(micro_config(), micro_config(pruned=False, depth=3))
    assert [ffn.sizes for ffn in find_ffns(models['B'])] == [dict(inputs=16, hidden=64)] * 3
    with pytest.raises(ValueError, match='no mcf_mm.MCFPruningHook .* name a second config'):
        dense_and_pruned(micro_config(pruned=False))


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_tool_prints_one_object(tmp_path):
    micro_config().dump(tmp_path / 'micro.py')
    arguments = ['--batch', '2', '--rounds', '3', '--json', '--amp', '--shape', '32', '32']
    done = run_tool([TOOL, tmp_path / 'micro.py', *arguments])
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert list(printed) == ['networks', 'throughput_ratio', 'macs_ratio', 'share']
    dense, pruned = printed['networks'].values()
    assert dense['macs'] / pruned['macs'] == printed['macs_ratio'] > 1.2
    speeds = pruned['images_per_second'] / dense['images_per_second']
    assert speeds == pytest.approx(printed['throughput_ratio'])


def test_tool_prints_a_table(tmp_path, monkeypatch, capsys):
    micro_config().dump(tmp_path / 'micro.py')
    run(monkeypatch, *[tmp_path / 'micro.py'] * 2, '--batch', 2, '--rounds', 3)
    printed = capsys.readouterr().out
    for text in ('images/s', '32 x 32 pixels', 'float32, batch 2', 'MACs ratio 1.', '% of it'):
        assert text in printed
    assert 'timing' not in printed


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['absent.py'], 'error: .*absent.py'),
        (['dense.py'], 'error: the config has no mcf_mm.MCFPruningHook'),
        (['micro.py', '--batch', 0], 'error: batch_size is 0'),
        (['micro.py', '--device', 'gpu'], 'error: .*device type.* gpu'),
    ],
)
def test_tool_names_what_is_wrong(tmp_path, monkeypatch, capsys, arguments, message):
    micro_config().dump(tmp_path / 'micro.py')
    micro_config(pruned=False).dump(tmp_path / 'dense.py')
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, tmp_path / arguments[0], *arguments[1:])
    assert capsys.readouterr().out == ''
