"""A slim backbone in mmdet's own detectors, by its type alone."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from mcf_mm.models import SlimVisionTransformer
from mcf_mm.weights.checkpoint import save_state_dict

ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
SIZES = dict(inputs=(20, 24, 32, 16), hidden=(40, 64, 30, 20), heads=(1, 2, 2, 1), qk=12, v=9)
PREPROCESSOR = dict(type='mmdet.DetDataPreprocessor', pad_size_divisor=16)
TEST_CFG = dict(nms_pre=100, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20)


def retinanet(backbone: dict) -> dict:
    """One feature map, from which the neck makes a pyramid."""
    return dict(
        type='mmdet.RetinaNet',
        data_preprocessor=PREPROCESSOR,
        backbone=backbone,
        neck=dict(
            type='mmdet.ChannelMapper', in_channels=[32], kernel_size=1, out_channels=16, num_outs=3
        ),
        bbox_head=dict(
            type='mmdet.RetinaHead',
            num_classes=2,
            in_channels=16,
            feat_channels=16,
            stacked_convs=1,
            anchor_generator=dict(
                type='mmdet.AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=1,
                ratios=[1.0],
                strides=[16, 32, 64],
            ),
        ),
        train_cfg=dict(
            assigner=dict(
                type='mmdet.MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0
            ),
            sampler=dict(type='mmdet.PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=TEST_CFG,
    )


def fcos(backbone: dict) -> dict:
    """Feature maps of four layers, all of one size, through an FPN."""
    return dict(
        type='mmdet.FCOS',
        data_preprocessor=PREPROCESSOR,
        backbone=dict(backbone, out_indices=[0, 1, 2, 3]),
        neck=dict(type='mmdet.FPN', in_channels=[32] * 4, out_channels=16, num_outs=4),
        bbox_head=dict(
            type='mmdet.FCOSHead',
            num_classes=2,
            in_channels=16,
            feat_channels=32,
            stacked_convs=1,
            strides=[16] * 4,
            regress_ranges=((-1, 16), (16, 32), (32, 64), (64, 1e8)),
        ),
        test_cfg=TEST_CFG,
    )


@pytest.mark.parametrize('detector', [retinanet, fcos])
def test_trains_and_predicts(detector, tmp_path):
    classifier = SlimVisionTransformer(arch=ARCH, img_size=48, sizes=SIZES)
    classifier.init_weights()
    path = str(tmp_path / 'slim.safetensors')
    state_dict = {f'backbone.{key}': value for key, value in classifier.state_dict().items()}
    save_state_dict(path, state_dict, {})
    backbone = dict(
        type='mcf_mm.SlimVisionTransformer',
        arch=ARCH,
        img_size=64,
        out_type='featmap',
        sizes='auto',
        init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.'),
    )
    model = MODELS.build(ConfigDict(detector(backbone)))
    model.init_weights()
    for name, weight in classifier.state_dict().items():
        if name != 'pos_embed':  # resized
            torch.testing.assert_close(model.backbone.state_dict()[name], weight)

    shape = (70, 90)
    gts = InstanceData(bboxes=torch.tensor([[8.0, 8.0, 60.0, 60.0]]), labels=torch.tensor([1]))
    meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    image = torch.randint(0, 255, (3, *shape), dtype=torch.uint8)
    data = dict(inputs=[image], data_samples=[DetDataSample(metainfo=meta, gt_instances=gts)])
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    total = sum(value if torch.is_tensor(value) else sum(value) for value in losses.values())
    total.backward()
    assert total.isfinite()
    assert model.backbone.layers[3].ffn.layers[0][0].weight.grad.shape == (20, 16)
    assert model.backbone.layers[3].attn.qkv.weight.grad.shape == (12 + 12 + 9, 32)

    model.train(False)
    with torch.no_grad():
        (result,) = model.test_step(data)
    boxes = result.pred_instances.bboxes
    assert len(boxes) > 0 and (boxes[:, 2] <= 90).all() and (boxes[:, 3] <= 70).all()
