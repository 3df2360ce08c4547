import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from mcf_mm.models import YOLOS
from mcf_mm.pruning import find_units
from mcf_mm.weights.checkpoint import read_state_dict

ARCH = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)

SIZES = dict(inputs=20, hidden=30, heads=[1, 2, 2], qk=9, v=7)


def yolos(arch=ARCH, width=32, num_classes=2, test_cfg=None, **kwargs) -> dict:
    return dict(
        type='mcf_mm.YOLOS',
        data_preprocessor=dict(type='mmdet.DetDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3),
        backbone=dict(type='mcf_mm.YOLOSVisionTransformer', arch=arch, **kwargs),
        bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=num_classes, embed_dims=width),
        test_cfg=test_cfg,
    )


def small_yolos(**kwargs) -> dict:
    return yolos(**{'img_size': (64, 96), 'num_det_tokens': 5, **kwargs})


def sample(height: int, width: int) -> DetDataSample:
    gts = InstanceData(bboxes=torch.tensor([[4.0, 4.0, 20.0, 30.0]]), labels=torch.tensor([1]))
    meta = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
    return DetDataSample(metainfo=meta, gt_instances=gts)


PUBLISHED = {
    # Counted on the public code with 91 classes.
    'S': (yolos('deit-small', 384, 91, img_size=(512, 864), with_mid_pos_embed=True), 30_684_768),
    'Ti': (yolos('deit-tiny', 192, 91, img_size=(800, 1333)), 6_488_736),
    'B': (yolos('deit-base', 768, 91, img_size=(800, 1344), with_mid_pos_embed=True), 127_798_368),
    'S, 80 classes': (
        yolos('deit-small', 384, 80, img_size=(512, 864), with_mid_pos_embed=True),
        30_684_768 - 4_235,
    ),
    'Ti, 80 classes': (yolos('deit-tiny', 192, 80, img_size=(800, 1333)), 6_488_736 - 2_123),
    # What pruning takes from the DeiT-S: 22,050,664 - 14,673,436 parameters.
    'S with MCF': (
        yolos(
            'deit-small',
            384,
            91,
            img_size=(512, 864),
            with_mid_pos_embed=True,
            sizes=dict(inputs=230, hidden=921),
        ),
        30_684_768 - 7_377_228,
    ),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_parameter_counts(name):
    config, expected = PUBLISHED[name]
    with torch.device('meta'):
        model = MODELS.build(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize('divisor', [1, 32])
@pytest.mark.parametrize('sizes', [None, SIZES], ids=['dense', 'slim'])
@pytest.mark.parametrize('type_one', [False, True])
def test_an_image_has_the_same_boxes_alone_and_in_a_batch(type_one, divisor, sizes):
    config = small_yolos(with_mid_pos_embed=type_one, sizes=sizes)
    config['data_preprocessor']['pad_size_divisor'] = divisor
    model = MODELS.build(config).eval()
    torch.nn.init.normal_(model.backbone.pos_embed)
    torch.nn.init.normal_(model.bbox_head.fc_reg[-1].weight)
    shapes = [(64, 96), (130, 70), (77, 150), (64, 96)]
    images = [torch.randint(0, 255, (3, *shape), dtype=torch.uint8) for shape in shapes]

    def predict(chosen: list[int]) -> list[DetDataSample]:
        data = dict(
            inputs=[images[i] for i in chosen], data_samples=[sample(*shapes[i]) for i in chosen]
        )
        with torch.no_grad():
            return model.test_step(data)

    for i, together in enumerate(predict([0, 1, 2, 3])):
        (alone,) = predict([i])
        for key in ('bboxes', 'scores'):
            difference = together.pred_instances[key] - alone.pred_instances[key]
            assert difference.abs().max() < 1e-4
        assert torch.equal(together.pred_instances.labels, alone.pred_instances.labels)
    spread = torch.stack([result.pred_instances.bboxes for result in predict([0, 3])]).std()
    assert spread > 1  # pixels: boxes that never differ would prove nothing


def test_losses_and_gradients():
    model = MODELS.build(small_yolos(with_mid_pos_embed=True, sizes=SIZES))
    shapes = [(64, 96), (64, 40)]
    data = dict(
        inputs=[torch.randint(0, 255, (3, *shape), dtype=torch.uint8) for shape in shapes],
        data_samples=[sample(*shape) for shape in shapes],
    )
    assert isinstance(model, YOLOS)
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    assert set(losses) == {'loss_cls', 'loss_bbox', 'loss_iou'}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_plain_tensors_in_and_out():
    model = MODELS.build(small_yolos()).eval()
    logits, boxes = model(torch.randn(2, 3, 64, 96))
    assert logits.shape == (1, 2, 5, 3) and boxes.shape == (1, 2, 5, 4)


def test_no_more_boxes_than_detection_tokens():
    model = MODELS.build(small_yolos(test_cfg=dict(max_per_img=100)))
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    (result,) = model.test_step(dict(inputs=[image], data_samples=[sample(64, 96)]))
    assert len(result.pred_instances) == 5


def test_head_of_another_width():
    with pytest.raises(ValueError, match='backbone is 32 wide and embed_dims of bbox_head is 64'):
        MODELS.build(small_yolos(width=64))


@pytest.fixture
def cfg(detection_cfg) -> Config:
    return Config(dict(detection_cfg, model=small_yolos()))


@pytest.mark.parametrize('type_one', [False, True])
def test_training_and_evaluation_with_mmdet(cfg, type_one):
    cfg.model = small_yolos(with_mid_pos_embed=type_one, mask_padding=True)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    assert np.isfinite([scalars['train/loss'].min(), scalars['val/coco/bbox_mAP'].current()]).all()
    checkpoint = torch.load(f'{cfg.work_dir}/epoch_1.pth', weights_only=False)
    again = MODELS.build(small_yolos(with_mid_pos_embed=type_one))
    assert not again.load_state_dict(checkpoint['state_dict']).missing_keys


def test_the_hook_prunes_a_detector(cfg):
    cfg.custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=0.5, num_images=10)]
    cfg.train_cfg.max_epochs = 4
    runner = Runner.from_cfg(cfg)
    runner.train()
    sizes = {tuple(unit.sizes.values()) for unit in find_units(runner.model).ffns}
    assert sizes == {(16, 32)}
    slim_cfg = Config.fromfile(f'{cfg.work_dir}/slim.py')
    again = MODELS.build(slim_cfg.model)
    state_dict = read_state_dict(f'{cfg.work_dir}/slim.safetensors')
    again.load_state_dict(state_dict)
    assert all(torch.equal(state_dict[k], v) for k, v in runner.model.state_dict().items())


@pytest.mark.parametrize('criterion', ['fisher', 'activation'])
def test_the_hook_prunes_every_kind_of_a_detector(cfg, criterion):
    ratios = dict(heads=0.5, qk=0.5, v=0.25, inputs=0.25, hidden=0.5)
    cfg.custom_hooks = [
        dict(type='mcf_mm.PruningHook', criterion=criterion, ratios=ratios, num_images=10)
    ]
    runner = Runner.from_cfg(cfg)
    runner.train()
    slim_cfg = Config.fromfile(f'{cfg.work_dir}/slim.py')
    assert set(slim_cfg.model.backbone.sizes) == {'heads', 'qk', 'v', 'inputs', 'hidden'}
    again = MODELS.build(slim_cfg.model)
    again.load_state_dict(read_state_dict(f'{cfg.work_dir}/slim.safetensors'))
    assert find_units(again).sizes == find_units(runner.model).sizes
