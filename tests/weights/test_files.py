"""Files: tied weights are written, broken headers are named, ends of names do not matter."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mcf_mm.weights.files import (
    HEADER,
    read_checkpoint,
    read_header,
    read_safetensors,
    read_weights,
    save_state_dict,
)

STORED = Path(__file__).parents[1] / 'stored' / 'before_units' / 'slim.safetensors'


def test_tied_weights_are_written_under_each_name(tmp_path):
    """As the heads of DETR's kin, one module in a list many times."""
    head = nn.Linear(3, 4)
    model = nn.ModuleDict({'heads': nn.ModuleList([head] * 3), 'other': nn.Linear(3, 4)})
    model['other'].weight = head.weight
    base = torch.arange(12.0)
    views = {'view': base[:6].view(2, 3), 'rest': base[3:], 'whole': base, 'empty': base[:0]}
    path = tmp_path / 'tied.safetensors'
    save_state_dict(path, {**model.state_dict(), **views}, {})
    # Whole for those without mcf_mm.
    found = load_file(path)
    assert all(torch.equal(found[name], value) for name, value in views.items())
    model.load_state_dict({name: value for name, value in found.items() if name not in views})
    assert read_weights(path).keys() == found.keys()


def raw(path: Path, header: bytes) -> Path:
    path.write_bytes(struct.pack('<Q', len(header)) + header)
    return path


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path):
    path = tmp_path / 'slim.safetensors'
    save_state_dict(path, {'weight': torch.ones(2)}, {})
    (tmp_path / 'other').touch()
    assert path.stat().st_mode == (tmp_path / 'other').stat().st_mode


def test_headers_that_are_no_object(tmp_path):
    path = tmp_path / 'a.safetensors'
    deep = '[' * 200_000 + ']' * 200_000
    for text, message in (
        ('[1, 2]', r"a\.safetensors: its header 'mcf_mm' is a list, no object"),
        ('{broken', r"a\.safetensors: its header 'mcf_mm' is damaged"),
        (deep, r"a\.safetensors: its header 'mcf_mm' is damaged"),
    ):
        save_file({'weight': torch.ones(1)}, path, metadata={HEADER: text})
        for read in (read_header, read_safetensors, read_weights, read_checkpoint):
            with pytest.raises(ValueError, match=message):
                read(path)
    save_file({'weight': torch.ones(1)}, path, metadata={HEADER: '{"indices_sha256": 3}'})
    with pytest.raises(ValueError, match='its header speaks of .indices_sha256 3'):
        read_weights(path)


@pytest.mark.parametrize(
    'data, message',
    [
        (b'', 'it is empty'),
        (b'\0' * 8, '.'),
        (b'<!DOCTYPE html><html>404</html>' * 10, 'it is the page of a download'),
        (b'version https://git-lfs.github.com/spec/v1\nsize 3\n', 'the pointer of Git LFS'),
        (struct.pack('<Q', 2**63) + b'{}', '.'),
        (b'PK\x03\x04' + b'\0' * 30, r'it is a file of torch.save, let its name end in \.pth'),
    ],
)
def test_no_safetensors_file(data, message, tmp_path):
    path = tmp_path / 'a.safetensors'
    path.write_bytes(data)
    for read in (read_header, read_safetensors, read_weights, read_checkpoint):
        with pytest.raises(ValueError, match=rf'a\.safetensors is not a whole safe.*: .*{message}'):
            read(path)


def test_shapes_that_do_not_go_with_the_data(tmp_path):
    for shape in ([10**6, 10**6], [2**62, 4]):
        part = {'dtype': 'F32', 'shape': shape, 'data_offsets': [0, 0]}
        path = raw(tmp_path / 'a.safetensors', json.dumps({'weight': part}).encode())
        with pytest.raises(ValueError, match=r'a\.safetensors is not a whole safetensors file'):
            read_checkpoint(path)


def test_any_case_of_the_ending(tmp_path):
    path = tmp_path / 'SLIM.SafeTensors'
    path.write_bytes(STORED.read_bytes())
    checkpoint = read_checkpoint(path)
    assert checkpoint['meta']['method'] == 'mcf'
    assert read_weights(path).keys() == checkpoint['state_dict'].keys()
    torch.save({'model': {'weight': torch.ones(2)}}, tmp_path / 'a.CKPT')
    assert read_weights(tmp_path / 'a.CKPT')['weight'].tolist() == [1, 1]


def test_indices_that_make_no_sense_are_named_with_their_file(tmp_path):
    weights, header = read_safetensors(STORED)
    name = 'backbone.layers.0.ffn.layers.0.0.inputs'
    for change, message in (
        (lambda index: index.flip(0), 'are not ascending'),
        (lambda index: index.clone().index_fill_(0, torch.tensor([8]), 16), 'go up to 16'),
        (lambda index: index.float() + 0.7, 'are no indices: torch.float32'),
    ):
        # The hash is that of the changed indices: who changes one can change the other.
        path = tmp_path / 'a.safetensors'
        save_state_dict(path, {**weights, name: change(weights[name])}, {'method': 'mcf'})
        with pytest.raises(ValueError, match=rf'a\.safetensors: {name} {message}'):
            read_checkpoint(path)
    assert header['indices_sha256'].startswith('fd984ac1d4cb')


def test_what_is_no_dictionary(tmp_path):
    torch.save([torch.ones(1)], tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'a\.pth: no weights in it, but one list'):
        read_checkpoint(tmp_path / 'a.pth')
    with pytest.raises(FileNotFoundError, match='no checkpoint .*absent.pth'):
        read_checkpoint(tmp_path / 'absent.pth')


@pytest.mark.parametrize('classes', [['cat'], ['Käse', '犬', '"quoted"', 'a\tb\x01']])
def test_the_same_content_is_the_same_bytes(tmp_path, classes):
    tensors = {f'layer.{number}': torch.full((3,), float(number)) for number in range(5)}
    header = dict(dataset_meta=dict(classes=classes), ratio=0.4)
    written = set()
    for number in range(12):  # a random order would show
        path = tmp_path / f'{number}.safetensors'
        save_state_dict(path, tensors, header)
        written.add(path.read_bytes())
    assert len(written) == 1
    state_dict, read = read_safetensors(path)
    assert read['dataset_meta'] == header['dataset_meta']
    assert all(torch.equal(value, tensors[key]) for key, value in state_dict.items())
