"""Weights out of checkpoints of many programs."""

import copy

import pytest
import torch
from mmengine.runner import Runner
from timm.utils import ModelEmaV2
from torch import nn

from mcf_mm.weights.check import check_weights, unwrap
from mcf_mm.weights.pickles import load_pickle


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


WEIGHTS = network().state_dict()


def wrapped(prefix: str) -> dict:
    return {prefix + name: value for name, value in WEIGHTS.items()}


@pytest.mark.parametrize(
    'checkpoint, note',
    [
        (WEIGHTS, None),
        ({'state_dict': WEIGHTS, 'meta': {}, 'optimizer': {'state': {}}}, None),
        ({'model': WEIGHTS, 'epoch': 3, 'args': None}, None),
        ({'model_state_dict': WEIGHTS}, None),
        ({'net': WEIGHTS, 'acc': 93.2}, None),
        ({'model': {'state_dict': WEIGHTS}}, None),
        ({'state_dict': wrapped('module.')}, None),
        ({'model': wrapped('_orig_mod.')}, None),
        (wrapped('_orig_mod.module.'), None),
        ({'model': WEIGHTS, 'model_ema': WEIGHTS}, "those of 'model' not of 'model_ema'"),
        ({'state_dict_ema': wrapped('module.'), 'epoch': 3}, "of 'state_dict_ema', an average"),
        ({'ema': {'model': WEIGHTS}}, "those of 'ema.model', an average"),
        ({'teacher': wrapped('module.'), 'student': WEIGHTS}, "those of 'teacher', an average"),
        ({'model_ema': {**wrapped('module.'), 'n_averaged': torch.tensor(3)}}, 'an average'),
    ],
)
def test_where_the_weights_are(checkpoint, note):
    weights, told = unwrap(checkpoint)
    assert check_weights(network(), weights) == []
    assert list(weights) == list(WEIGHTS)
    assert told is None if note is None else note in told


def test_plain_weights_are_the_same_object_with_their_versions():
    assert unwrap({'state_dict': WEIGHTS})[0] is WEIGHTS
    compiled = torch.compile(network()).state_dict()
    assert list(compiled)[0] == '_orig_mod.0.weight'
    weights, _ = unwrap(compiled)
    assert weights._metadata['1'] == WEIGHTS._metadata['1'] == {'version': 2}


def test_a_part_that_was_compiled():
    model = nn.ModuleDict({'backbone': network()})
    plain = list(model.state_dict())
    model['backbone'] = torch.compile(model['backbone'])
    weights, _ = unwrap({'state_dict': model.state_dict()})
    assert list(weights) == plain and 'backbone.1' in weights._metadata


def test_the_average_of_timm():
    model = network()
    average = ModelEmaV2(model)
    weights, note = unwrap({'state_dict_ema': average.state_dict()})
    assert check_weights(network(), weights) == [] and 'an average' in note


def test_the_average_of_mmengine(cfg, tmp_path):
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.train_cfg.max_epochs = 1
    runner = Runner.from_cfg(cfg)
    runner.train()
    checkpoint = load_pickle(tmp_path / 'work' / 'epoch_1.pth')
    weights, note = unwrap(checkpoint)
    assert "those of 'state_dict', an average (EMAHook), not of 'ema_state_dict'" in note
    assert check_weights(runner.model, weights) == []
    average = next(hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model'))
    name, value = next(average.module.named_parameters())
    assert torch.equal(weights[name], value)
    # What was averaged is wrapped, and counted.
    other, _ = unwrap({'ema_state_dict': checkpoint['ema_state_dict']})
    assert check_weights(runner.model, other) == []


def test_what_is_no_tensor_is_left_out():
    weights, _ = unwrap({**copy.copy(WEIGHTS), 'epoch': 3, 'a._extra_state': 'kept'})
    assert set(weights) == {*WEIGHTS, 'a._extra_state'}


def test_no_weights():
    message = r"no weights at the top level, under 'model' or .* its keys are \['epoch', 'lr'\]"
    with pytest.raises(ValueError, match=message):
        unwrap({'epoch': 3, 'lr': 0.1})
    with pytest.raises(ValueError, match='no weights in it, but one Linear'):
        unwrap(nn.Linear(1, 1))
    assert unwrap({'state_dict': {}}) == ({}, None)
