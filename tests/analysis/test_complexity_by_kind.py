"""The split by kinds adds up, and agrees with what is counted by part."""

import pytest
from mmengine.config import Config

from mcf_mm.analysis.complexity import count_complexity, masked, resized
from mcf_mm.analysis.complexity_by_kind import KINDS, complexity_by_kind
from mcf_mm.engine.networks import build_model
from mcf_mm.pruning import find_units, uniform

RATIOS = dict(heads=0.4, qk=0.25, v=0.5, inputs=0.2, hidden=0.4)
ARCH = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)
NETWORKS = {
    'ViT': (
        'mmpretrain',
        (32, 32),
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='mcf_mm.SlimVisionTransformer', arch=ARCH, img_size=32, patch_size=8
            ),
            head=dict(type='VisionTransformerClsHead', num_classes=5, in_channels=24),
        ),
    ),
    'Swin': (
        'mmpretrain',
        (24, 24),
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='mcf_mm.SlimSwinTransformer',
                arch=dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4]),
                img_size=24,  # 6 x 6 tokens: windows of 4 are padded
                window_size=4,
                pad_small_map=True,
                out_indices=(1,),
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=5, in_channels=32),
        ),
    ),
    'YOLOS': (
        'mmdet',
        (64, 96),
        dict(
            type='mcf_mm.YOLOS',
            data_preprocessor=dict(type='mmdet.DetDataPreprocessor'),
            backbone=dict(
                type='mcf_mm.YOLOSVisionTransformer',
                arch=ARCH,
                img_size=(64, 96),
                num_det_tokens=5,
            ),
            bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=2, embed_dims=24),
        ),
    ),
}


@pytest.mark.parametrize('pruned', [False, True])
@pytest.mark.parametrize('name', NETWORKS)
def test_the_split_adds_up(name, pruned):
    scope, shape, model = NETWORKS[name]
    network = build_model(Config(dict(default_scope=scope, model=model)))
    if pruned:
        network = resized(network, uniform(find_units(network), RATIOS))
    found, wanted = complexity_by_kind(network, shape), count_complexity(network, shape)
    assert (found.params, found.macs) == (wanted.params, wanted.macs)
    parts = found.parts
    assert tuple(parts) == KINDS
    assert sum(part.params for part in parts.values()) == found.params
    assert sum(part.macs for part in parts.values()) == found.macs
    assert parts['ffn'] == wanted.parts['ffn']
    attention = ('q/k', 'v', 'projection', 'attention products')
    assert sum(parts[kind].macs for kind in attention) == wanted.parts['attention'].macs
    tables = sum(
        getattr(unit.module, table).numel()
        for unit in find_units(network).attentions
        for table in unit.layout.per_head_names
    )
    in_attention = sum(parts[kind].params for kind in attention) + tables
    assert in_attention == wanted.parts['attention'].params
    assert parts['attention products'].params == 0 and parts['attention products'].macs > 0
    assert parts['other'].params > 0 and parts['other'].macs > 0


def test_each_ratio_takes_from_its_kind():
    scope, shape, model = NETWORKS['ViT']
    network = build_model(Config(dict(default_scope=scope, model=model)))
    dense = complexity_by_kind(network, shape).parts
    for ratios, touched in (
        (dict(qk=0.5), {'q/k', 'attention products'}),
        (dict(v=0.5), {'v', 'projection', 'attention products'}),
        (dict(hidden=0.5), {'ffn'}),
    ):
        small = resized(network, uniform(find_units(network), ratios))
        parts = complexity_by_kind(small, shape).parts
        assert {kind for kind in KINDS if parts[kind].macs != dense[kind].macs} == touched
        assert all(parts[kind].macs <= dense[kind].macs for kind in KINDS)


def test_masked_layers_are_refused():
    scope, shape, model = NETWORKS['ViT']
    network = build_model(Config(dict(default_scope=scope, model=model)))
    with pytest.raises(ValueError, match='zeros of masked layers are of no kind'):
        complexity_by_kind(masked(network, uniform(find_units(network), 0.4)), shape)
