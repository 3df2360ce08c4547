"""Slim checkpoints: whole or not there, with a header that can be trusted."""

import json
import struct

import pytest
import torch
from mmengine.runner import CheckpointLoader
from safetensors.torch import load_file, save_file

import mcf_mm
from mcf_mm.weights.checkpoint import HEADER, read_header, read_state_dict, save_state_dict

WEIGHTS = {
    'ffn.weight': torch.arange(6.0).reshape(2, 3).T,  # not contiguous
    'ffn.inputs': torch.tensor([0, 2, 5]),
}


def test_round_trip_through_mmengine(tmp_path):
    path = tmp_path / 'new' / 'slim.safetensors'
    save_state_dict(path, WEIGHTS, {'origin': 'a.pth', 'sizes': {'ffn': [3, 2]}})
    checkpoint = CheckpointLoader.load_checkpoint(str(path))
    assert checkpoint['state_dict'].keys() == WEIGHTS.keys()
    for key, value in read_state_dict(str(path)).items():
        assert torch.equal(value, WEIGHTS[key])
    header = read_header(path)
    assert header['version'] == mcf_mm.__version__
    assert header['origin'] == 'a.pth' and header['sizes'] == {'ffn': [3, 2]}
    assert [file.name for file in path.parent.iterdir()] == ['slim.safetensors']


def test_the_header_is_readable_without_our_code(tmp_path):
    path = tmp_path / 'slim.safetensors'
    save_state_dict(path, WEIGHTS, {'method': 'mcf'})
    data = path.read_bytes()
    length = struct.unpack('<Q', data[:8])[0]
    metadata = json.loads(data[8 : 8 + length])['__metadata__']
    assert json.loads(metadata[HEADER])['method'] == 'mcf'


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'slim.safetensors'
    save_state_dict(path, WEIGHTS, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_state_dict(path, {'bad': torch.zeros(1)}, {'method': object()})
    with pytest.raises(AttributeError):
        save_state_dict(path, {'bad': 'not a tensor'}, {})
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cut_off_file_is_named(tmp_path):
    path = tmp_path / 'slim.safetensors'
    save_state_dict(path, WEIGHTS, {})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r'slim\.safetensors is not a whole safetensors file'):
        read_state_dict(str(path))
    with pytest.raises(FileNotFoundError, match='no checkpoint .*other.safetensors'):
        read_state_dict(str(tmp_path / 'other.safetensors'))


def test_changed_indices_are_noticed(tmp_path):
    path = tmp_path / 'slim.safetensors'
    save_state_dict(path, WEIGHTS, {})
    changed = load_file(path) | {'ffn.inputs': torch.tensor([0, 1, 5])}
    save_file(changed, path, metadata={HEADER: json.dumps(read_header(path))})
    with pytest.raises(ValueError, match='kept inputs differ from those its header speaks of'):
        read_state_dict(str(path))


def test_files_of_others_are_read_as_well(tmp_path):
    path = tmp_path / 'other.safetensors'
    save_file({'a': torch.ones(2)}, path)
    assert read_header(path) == {}
    assert read_state_dict(str(path))['a'].tolist() == [1, 1]
