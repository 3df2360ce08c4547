"""The hook on networks other than DeiT: Swin, distilled DeiT, timm's, DETR."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mcf_mm.engine.networks import build_model
from mcf_mm.models import SlimSwinTransformer
from mcf_mm.models.dense_heads.yolos_head import ASSIGNER
from mcf_mm.pruning import find_ffns
from mcf_mm.weights.checkpoint import read_state_dict
from mcf_mm.weights.slim_config import slim_config

SWIN = dict(
    type='SwinTransformer',
    arch=dict(embed_dims=16, depths=[1, 2], num_heads=[2, 4]),
    img_size=32,
    window_size=4,
    out_indices=(1,),
)
DISTILLED = dict(
    type='DistilledVisionTransformer',
    arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=40),
    img_size=32,
    patch_size=8,
)
TIMM = dict(
    type='TIMMBackbone', model_name='convnext_tiny', depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)
)
POOL = dict(type='GlobalAveragePooling')
NETWORKS = {
    'swin': (SWIN, POOL, dict(type='LinearClsHead', in_channels=32)),
    'distilled': (DISTILLED, None, dict(type='DeiTClsHead', in_channels=16)),
    'timm': (TIMM, POOL, dict(type='LinearClsHead', in_channels=16)),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_classifiers(cfg, name, tmp_path):
    backbone, neck, head = NETWORKS[name]
    cfg.model = dict(type='ImageClassifier', backbone=backbone, head=dict(head, num_classes=2))
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='Resize', scale=32))
    if neck:
        cfg.model.neck = neck
    runner = Runner.from_cfg(cfg)
    dense = type(runner.model.backbone)
    runner.train()
    assert all(ffn.sizes['inputs'] < ffn.width for ffn in find_ffns(runner.model))
    slim_cfg = Config.fromfile(Path(cfg.work_dir) / 'slim.py')
    slim_cfg.work_dir, slim_cfg.experiment_name = str(tmp_path / 'again'), 'again' + tmp_path.name
    again = Runner.from_cfg(slim_cfg)
    assert again.test() == runner.val()
    assert isinstance(again.model.backbone, dense)
    for key, value in runner.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key


def test_swin_backbone_takes_its_sizes_from_a_classifier(cfg, tmp_path):
    cfg.model = dict(
        type='ImageClassifier', backbone=SWIN, neck=POOL,
        head=dict(type='LinearClsHead', in_channels=32, num_classes=2),
    )  # fmt: skip
    runner = Runner.from_cfg(cfg)
    runner.train()
    path = f'{cfg.work_dir}/slim.safetensors'
    settings = {key: value for key, value in SWIN.items() if key != 'type'}
    backbone = SlimSwinTransformer(
        **dict(settings, out_indices=(0, 1), pad_small_map=True),
        sizes='auto',
        init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.'),
    )
    backbone.init_weights()
    sizes = [tuple(ffn.sizes.values()) for ffn in find_ffns(backbone)]
    assert sizes == [(9, 38), (19, 76), (19, 76)]
    assert backbone.train(False) is backbone
    maps = backbone(torch.randn(1, 3, 40, 56))
    assert [tuple(features.shape) for features in maps] == [(1, 16, 10, 14), (1, 32, 5, 7)]
    weights = read_state_dict(path)
    for key, value in backbone.state_dict().items():
        if not key.startswith('norm0'):  # of the new output
            assert torch.equal(value, weights[f'backbone.{key}']), key
    sizes = dict(inputs=[9, 19, 20], hidden=[38, 76, 76])
    backbone = SlimSwinTransformer(**settings, sizes=sizes)
    with pytest.raises(ValueError, match='stages.1.blocks.1.ffn: the checkpoint has 19 inputs'):
        backbone.load_state_dict(
            {key.removeprefix('backbone.'): value for key, value in weights.items()}
        )


def detr() -> dict:
    attention = dict(embed_dims=16, num_heads=2, batch_first=True)
    ffn = dict(embed_dims=16, feedforward_channels=40, num_fcs=2, act_cfg=dict(type='ReLU'))
    encoder = dict(self_attn_cfg=attention, ffn_cfg=ffn)
    return dict(
        type='DETR',
        num_queries=6,
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3),
        backbone=dict(type='ResNet', depth=18, out_indices=(2,)),
        neck=dict(
            type='ChannelMapper', in_channels=[256], kernel_size=1, out_channels=16, num_outs=1
        ),
        encoder=dict(num_layers=1, layer_cfg=encoder),
        decoder=dict(
            num_layers=2,
            layer_cfg=dict(encoder, cross_attn_cfg=attention),
            return_intermediate=True,
        ),
        positional_encoding=dict(num_feats=8, normalize=True),
        bbox_head=dict(
            type='DETRHead',
            num_classes=2,
            embed_dims=16,
            # mmdet changes its default in place, so that a second head could not be built.
            loss_cls=dict(type='CrossEntropyLoss', bg_cls_weight=0.1, class_weight=1.0),
        ),
        # A detector hands train_cfg=None on, so the head's default is lost.
        train_cfg=dict(assigner=ASSIGNER),
        test_cfg=dict(max_per_img=6),
    )


def test_detr(detection_cfg, tmp_path):
    cfg = Config(dict(detection_cfg, model=detr()))
    cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True)
    cfg.train_cfg.max_epochs = 4
    cfg.custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=0.4, num_images=6)]
    runner = Runner.from_cfg(cfg)
    runner.train()
    names = ['encoder.layers.0.ffn', 'decoder.layers.0.ffn', 'decoder.layers.1.ffn']
    kept = dict.fromkeys(names, dict(inputs=9, hidden=24))
    assert {ffn.name: ffn.sizes for ffn in find_ffns(runner.model)} == kept
    slim_cfg = Config.fromfile(Path(cfg.work_dir) / 'slim.py')
    assert slim_cfg.model.base == 'mmdet.DETR' and slim_cfg.model.backbone.depth == 18
    slim_cfg.work_dir, slim_cfg.experiment_name = str(tmp_path / 'again'), 'again' + tmp_path.name
    slim_cfg.test_dataloader, slim_cfg.test_evaluator = slim_cfg.val_dataloader, cfg.val_evaluator
    slim_cfg.test_cfg = dict()
    again = Runner.from_cfg(slim_cfg)
    assert type(again.model).__name__ == 'DETR'
    assert again.test() == runner.val()
    # A slim network that is trained on writes the same config.
    assert slim_config(again.model, again.cfg, 'x').model == again.cfg.model

    def build(sizes: dict) -> Runner:
        # From the file: mmdet's heads change the config that they are built from.
        bad = Config.fromfile(f'{cfg.work_dir}/slim.py')
        bad.merge_from_dict({key: slim_cfg[key] for key in ('test_dataloader', 'test_evaluator')})
        bad.test_cfg, bad.work_dir = dict(), slim_cfg.work_dir
        bad.model.pop('sizes')
        bad.model.update(sizes)
        bad.experiment_name = f'{len(str(sizes))}{tmp_path.name}'
        return Runner.from_cfg(bad)

    # As mcf_mm 0.1 wrote it.
    old = build(dict(ffn_sizes=dict.fromkeys(names, (9, 24))))
    assert find_ffns(old.model)[0].sizes == kept[names[0]]
    larger = dict.fromkeys(names, dict(inputs=9, hidden=25))
    with pytest.raises(ValueError, match='encoder.layers.0.ffn: the checkpoint has 9 inputs, 24'):
        build(dict(sizes=larger)).test()
    with pytest.raises(
        ValueError, match='sizes of mmdet.DETR: inputs of encoder.* is 17, it must be from 1 to 16'
    ):
        build(dict(sizes={names[0]: dict(inputs=17, hidden=25)}))
    with pytest.raises(
        ValueError, match="sizes of mmdet.DETR names the unit 'encoder.ffn', the network has"
    ):
        build(dict(sizes={'encoder.ffn': dict(inputs=9)}))


def test_a_network_without_slim_class_is_as_strict(cfg):
    cfg.model = dict(
        type='ImageClassifier', backbone=TIMM, neck=POOL,
        head=dict(type='LinearClsHead', in_channels=16, num_classes=2),
    )  # fmt: skip
    sizes = {'timm_model.stages.0.blocks.0.mlp': dict(inputs=4, hidden=16)}
    cfg.model.backbone = dict(cfg.model.backbone, type='mcf_mm.SlimModel', sizes=sizes)
    cfg.model.backbone.base = 'mmpretrain.TIMMBackbone'
    backbone = build_model(cfg).backbone
    weights = {f'timm_model.{k}': v for k, v in backbone.timm_model.state_dict().items()}
    backbone.load_state_dict(weights)
    del weights['timm_model.stem.0.weight']
    with pytest.raises(ValueError, match='lacks 1 of the weights of TIMMBackbone.*stem.0.weight'):
        backbone.load_state_dict(weights, strict=False)
