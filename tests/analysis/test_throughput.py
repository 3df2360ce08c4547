"""Throughput: the right order, a fair measurement, errors."""

import time

import pytest
import torch
from torch import nn

from mcf_mm.analysis.throughput import measure_throughput


class Slow(nn.Module):
    """Takes a known time; notes when it is called."""

    def __init__(self, seconds: float, calls: list[float]):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seconds, self.calls = seconds, calls

    def forward(self, images):
        assert not self.training and not torch.is_grad_enabled()
        self.calls.append(self.seconds)
        time.sleep(self.seconds)
        return images


def test_known_times_in_turn():
    calls: list[float] = []
    models = dict(dense=Slow(0.02, calls), pruned=Slow(0.01, calls))
    speeds = measure_throughput(models, (3, 4, 4), batch_size=8, rounds=5)
    assert calls == [0.02, 0.01] * 7
    # Sleeping takes at least as long as asked, and on a busy machine longer.
    assert 100 < speeds['dense'] <= 400 and 200 < speeds['pruned'] <= 800
    assert all(model.training for model in models.values())


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
