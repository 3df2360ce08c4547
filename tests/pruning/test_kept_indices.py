"""MCF keeps exactly the indices that it kept before the core was rebuilt around units.

``tests/stored/kept_indices.json`` was written by the code of then (commit 0e6d3a5), on these
networks and images.
"""

import copy
import functools
import hashlib
import json
from pathlib import Path

import pytest
import torch
import zoo

from mcf_mm.pruning import prune

STORED = Path(__file__).resolve().parents[1] / 'stored' / 'kept_indices.json'


def classifier(backbone: dict, head: dict, neck: dict | None = None):
    """An mmpretrain classifier with seeded weights that are not at their start."""
    torch.manual_seed(0)
    model = zoo.built(
        'mmpretrain', dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # Of a size that trained weights have, or every product would lie inside the band.
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.08 if parameter.dim() > 1 else 0.2))
    return model.eval() or model


def deit(arch: str, kind: str = 'VisionTransformer', head: str = 'VisionTransformerClsHead'):
    width = dict(tiny=192, small=384)[arch]
    return classifier(
        dict(type=kind, arch=f'deit-{arch}', img_size=64),
        dict(type=head, num_classes=10, in_channels=width),
    )


def swin():
    return classifier(
        dict(
            type='SwinTransformer',
            arch=dict(embed_dims=24, depths=[2, 2], num_heads=[2, 4]),
            img_size=32,
            window_size=4,
            out_indices=(1,),
        ),
        dict(type='LinearClsHead', num_classes=10, in_channels=48),
        dict(type='GlobalAveragePooling'),
    )


NETWORKS = {
    'deit-tiny': lambda: deit('tiny'),
    'deit-small': lambda: deit('small'),
    'deit-tiny-distilled': lambda: deit('tiny', 'DistilledVisionTransformer', 'DeiTClsHead'),
    'swin': swin,
}

#: Name of the network, then what differs from MCF's defaults.
RUNS = {
    'deit-tiny': ('deit-tiny', {}),
    'deit-tiny unguided': ('deit-tiny', dict(guide=1.0)),
    'deit-tiny one set for all': ('deit-tiny', dict(shared_inputs='network')),
    'deit-tiny multiples of 16': ('deit-tiny', dict(multiple=16)),
    'deit-tiny magnitude': ('deit-tiny', dict(method='magnitude')),
    'deit-tiny activation': ('deit-tiny', dict(method='activation')),
    'deit-small': ('deit-small', {}),
    'deit-tiny-distilled': ('deit-tiny-distilled', {}),
    'deit-tiny-distilled unguided': ('deit-tiny-distilled', dict(guide=1.0)),
    'swin': ('swin', {}),
    'swin activation': ('swin', dict(method='activation')),
}

build = functools.cache(lambda name: NETWORKS[name]())


def images(name: str) -> list[torch.Tensor]:
    side = 32 if name == 'swin' else 64
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(12, 3, side, side, generator=generator) for _ in range(2)]


@pytest.mark.parametrize('run', RUNS)
def test_mcf_keeps_the_indices_that_it_kept_before_the_core_was_rebuilt(run):
    name, arguments = RUNS[run]
    criterion = dict(type='mcf', **arguments)
    multiple = criterion.pop('multiple', 1)
    model = copy.deepcopy(build(name))
    structure = prune(model, images(name), criterion=criterion, multiple=multiple)
    plain = {
        unit: {kind: index.tolist() for kind, index in kinds.items()}
        for unit, kinds in structure.items()
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    assert digest == json.loads(STORED.read_text())[run]
