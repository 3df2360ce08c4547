"""Files of torch.save: MMEngine's training checkpoints are read, code in files never runs."""

import argparse
import os
import sys

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from mcf_mm.weights import pickles
from mcf_mm.weights.pickles import TRUST, load_pickle

WHOLE = {'state_dict': {'weight': torch.ones(2)}}


class Call:
    """Pickled as the call of a function, perhaps with a state to set."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.fixture(params=['torch of today', 'torch 2.1'], autouse=True)
def torch_version(request, monkeypatch):
    """Both ways to read, whichever torch is here."""
    if request.param == 'torch 2.1':
        monkeypatch.setattr(pickles, '_TORCH_TAKES_NAMES', False)
    elif not pickles._TORCH_TAKES_NAMES:
        pytest.skip('this torch has no list to add names to')


def read(part, path):
    torch.save({**WHOLE, 'part': part}, path)
    return load_pickle(path)['part']


def same_logs(one: dict, other: dict) -> None:
    assert list(one) == list(other) and one
    for name, log in one.items():
        assert type(log) is HistoryBuffer and type(log.mean()) is np.float64
        for values, others in zip(log.data, other[name].data, strict=True):
            assert type(values) is np.ndarray and values.dtype == others.dtype
            assert np.array_equal(values, others)


def test_a_classifier_in_training(cfg, tmp_path):
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.train_cfg.max_epochs = 1
    Runner.from_cfg(cfg).train()
    path = tmp_path / 'work' / 'epoch_1.pth'
    checkpoint, expected = load_pickle(path), torch.load(path, weights_only=False)
    assert checkpoint.keys() == expected.keys() >= {'optimizer', 'ema_state_dict', 'message_hub'}
    same_logs(checkpoint['message_hub']['log_scalars'], expected['message_hub']['log_scalars'])
    assert checkpoint['meta'] == expected['meta']
    assert checkpoint['state_dict']._metadata == expected['state_dict']._metadata
    # What is written again is what MMEngine would have written.
    torch.save(checkpoint, tmp_path / 'again.pth')
    again = torch.load(tmp_path / 'again.pth', weights_only=False)
    same_logs(again['message_hub']['log_scalars'], expected['message_hub']['log_scalars'])


def test_a_detector_in_training(detection_cfg, tmp_path):
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    backbone = dict(type='mcf_mm.YOLOSVisionTransformer', arch=arch, img_size=96, num_det_tokens=4)
    detection_cfg.model = dict(
        type='mcf_mm.YOLOS',
        data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=backbone,
        bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=2, embed_dims=16),
    )
    detection_cfg.val_dataloader = detection_cfg.val_evaluator = detection_cfg.val_cfg = None
    Runner.from_cfg(detection_cfg).train()
    path = tmp_path / 'work' / 'epoch_1.pth'
    logs = load_pickle(path)['message_hub']['log_scalars']
    same_logs(logs, torch.load(path, weights_only=False)['message_hub']['log_scalars'])


@pytest.mark.parametrize(
    'value',
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype='>i4'),
        np.array(['a', 'bcd']),
        np.array([True, False]),
        np.zeros((0, 4)),
        np.float32(0.5),
        np.str_('name'),
        np.dtype('float16'),
    ],
    ids=repr,
)
def test_arrays_of_numpy_are_the_same(value, tmp_path):
    found = read({'deep': [(value,)]}, tmp_path / 'a.pth')['deep'][0][0]
    assert type(found) is type(value) and np.array_equal(found, value)
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype and found.flags == value.flags


def test_options_configs_and_logs(tmp_path):
    options = argparse.Namespace(lr=1e-3, seeds=np.arange(2))
    found = read(options, tmp_path / 'a.pth')
    assert found.lr == 1e-3 and np.array_equal(found.seeds, options.seeds)
    config = ConfigDict(classes=('cat', 'dog'), deep=[dict(a=1)])
    found = read(config, tmp_path / 'a.pth')
    assert type(found) is ConfigDict and found == config and found.deep[0].a == 1


def test_without_mmengine_its_log_is_passed_over(tmp_path, monkeypatch):
    torch.save({**WHOLE, 'log': HistoryBuffer([1, 2], [1, 1])}, tmp_path / 'a.pth')
    monkeypatch.delitem(sys.modules, 'mmengine.logging.history_buffer')
    assert load_pickle(tmp_path / 'a.pth')['state_dict']['weight'].tolist() == [1, 1]


GETATTR = Call(getattr, (Call(getattr, (getattr, '__self__')), 'exec'))


@pytest.mark.parametrize(
    'part, asked',
    [
        (None, r'(posix|nt)\.system'),
        (Call(eval, ('1',)), 'eval'),
        # getattr leads from itself to exec, and a log calls what it is given.
        (Call(HistoryBuffer, (), {'statistics_methods': {'mean': GETATTR}}), 'builtins.getattr'),
        (Call(getattr, (HistoryBuffer, '__init__')), 'HistoryBuffer.__init__'),
        (Call(getattr, (HistoryBuffer.mean, '__globals__')), 'builtins.getattr'),
        # A structured dtype may lay an object over numbers.
        (np.zeros(2, dtype=[('a', 'f4')]), r"numpy.dtype\('V4'\)"),
        (np.array([None]), r"numpy.dtype\('O8'\)"),
    ],
    ids=['system', 'eval', 'log', 'method', 'globals', 'structured', 'object'],
)
def test_what_may_run_code_is_refused(part, asked, tmp_path):
    mark = tmp_path / 'mark'
    if part is None:
        part = Call(os.system, (f'touch {mark}',))
    message = rf'bad\.pth: holds more than tensors .* asks for \S*{asked}, .* {TRUST}=1'
    with pytest.raises(ValueError, match=message):
        read(part, tmp_path / 'bad.pth')
    assert not mark.exists()
    assert HistoryBuffer([1], [1]).statistics('mean') == 1


def test_a_dtype_cannot_claim_that_numbers_are_pointers(tmp_path):
    state = (3, '<', None, None, None, -1, -1, 63)
    assert read(Call(np.dtype, ('f8', False, True), state), tmp_path / 'a.pth').flags == 0


def test_who_trusts_a_file_may_read_it(tmp_path, monkeypatch):
    monkeypatch.setenv(TRUST, '1')
    read(Call(os.system, (f'touch {tmp_path / "mark"}',)), tmp_path / 'a.pth')
    assert (tmp_path / 'mark').exists()


@pytest.mark.parametrize(
    'data, message',
    [
        (b'', 'it is empty'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'the pointer of Git LFS'),
        (b'\n<!DOCTYPE html><html>404</html>', 'the page of a download'),
        (b'\x02\0\0\0\0\0\0\0{}', r'a safetensors file, let its name end in \.safetensors'),
        (b'PK\x03\x04 and no more', '.+'),
        (b'\x80\x02}q\x00.', '.+'),
        (b'hello', '.+'),
    ],
)
def test_no_checkpoint_at_all(data, message, tmp_path):
    (tmp_path / 'a.pth').write_bytes(data)
    with pytest.raises(ValueError, match=rf'a\.pth is not a checkpoint that torch can.*{message}'):
        load_pickle(tmp_path / 'a.pth')
    with pytest.raises(FileNotFoundError):
        load_pickle(tmp_path / 'absent.pth')
