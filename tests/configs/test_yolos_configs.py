from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from PIL import Image

from mcf_mm.models import YOLOS
from mcf_mm.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'yolos'
SMALL = 'deit-small_8xb1-150e_coco'
SMALL_TYPE_II = 'deit-small-type2_8xb1-150e_coco'
TINY = 'deit-tiny_8xb2-300e_coco'
FACEMASK = 'deit-tiny_2cpu-40e_facemask'


@pytest.fixture(autouse=True)
def mmdet_scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'yolos_{name}.py')


def build(config: Config) -> YOLOS:
    with torch.device('meta'):
        return MODELS.build(config.model)


@pytest.mark.parametrize(
    'name, parameters',
    [
        (SMALL, 30_684_768 - 4_235),
        # 4,200 instead of 1,728 patch positions, and once instead of twelve times.
        (SMALL_TYPE_II, 30_684_768 - 4_235 + (4_200 - 1_728 - 11 * 1_829) * 384),
        (TINY, 6_488_736 - 2_123),
        # 121 instead of 4,150 patch positions, 40 instead of 100 detection tokens twice, and 88
        # classes less than 91.
        (FACEMASK, 6_488_736 - (4_150 - 121 + 2 * 60) * 192 - 88 * 193),
    ],
)
def test_size_of_the_model(name, parameters):
    model = build(load(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize('name', [SMALL, SMALL_TYPE_II, TINY, FACEMASK])
def test_the_mcf_config_differs_in_the_backbone_only(name):
    dense, mcf = load(name).to_dict(), load(f'mcf-{name}').to_dict()
    assert mcf.pop('checkpoint').endswith('slim.safetensors')
    backbone = mcf['model']['backbone']
    assert backbone.pop('sizes') == 'auto'
    for config in (dense, mcf):
        config['model']['backbone']['init_cfg'].pop('checkpoint')
    assert mcf == dense


def test_type_ii_differs_in_the_position_embeddings_only():
    one, two = load(SMALL).to_dict(), load(SMALL_TYPE_II).to_dict()
    for config, img_size in ((one, (512, 864)), (two, (800, 1344))):
        assert config['model']['backbone'].pop('img_size') == img_size
        assert config['model']['backbone'].pop('with_mid_pos_embed') == (config is one)
    assert one == two


def test_weight_decay():
    config = load(SMALL)
    model = build(config)
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(group['params'][0])]: group for group in optimizer.param_groups}
    for name, parameter in model.named_parameters():
        none = name.endswith(('.bias', '.pos_embed', '.cls_token', '.det_token'))
        expected = 0 if none or parameter.ndim == 1 else 1e-4
        assert decay[name]['weight_decay'] == expected, name
        assert decay[name]['lr'] == 2.5e-5
    assert decay['backbone.mid_pos_embed']['weight_decay'] == 1e-4
    assert config.optim_wrapper.clip_grad == dict(max_norm=0.1)


@pytest.mark.parametrize(
    'name, lr, epochs, batch_size', [(SMALL, 2.5e-5, 150, 1), (TINY, 5e-5, 300, 2)]
)
def test_schedule(name, lr, epochs, batch_size):
    config = load(name)
    assert config.optim_wrapper.optimizer.lr == lr
    assert config.train_cfg.max_epochs == epochs
    assert config.train_dataloader.batch_size == batch_size
    assert config.auto_scale_lr.base_batch_size == 8 * batch_size
    (scheduler,) = config.param_scheduler
    assert scheduler == dict(type='CosineAnnealingLR', T_max=epochs, end=epochs, eta_min=1e-7)


@pytest.mark.parametrize(
    'name, sides, evaluated',
    [
        (SMALL, (480, 800), (800, 1056)),
        (TINY, (256, 608), (512, 672)),
        (FACEMASK, (96, 128), (128, 176)),
    ],
)
def test_pipelines(tmp_path, name, sides, evaluated):
    config = load(name)
    path = str(tmp_path / 'image.png')
    Image.fromarray(np.zeros((480, 640, 3), dtype=np.uint8)).save(path)
    instance = dict(bbox=[10, 10, 600, 400], bbox_label=0, ignore_flag=0)
    image = dict(img_path=path, img_id=0, height=480, width=640, instances=[instance])

    def run(pipeline: list) -> tuple[int, int]:
        results = Compose(pipeline)(dict(image))
        shape = tuple(results['inputs'].shape[1:])
        assert results['data_samples'].img_shape == shape
        return shape

    for _ in range(8):
        shape = run(config.train_dataloader.dataset.pipeline)
        assert all(side % 16 == 0 for side in shape)
        assert sides[0] <= min(shape) <= sides[1]
    for loader in (config.val_dataloader, config.test_dataloader):
        assert run(loader.dataset.pipeline) == evaluated


@pytest.mark.parametrize('name, limit', [(SMALL, 1333), (TINY, 1013)])
def test_two_paths(name, limit):
    flip, choice = load(name).train_pipeline[2:4]
    assert flip == dict(type='RandomFlip', prob=0.5)
    (resize,), (before, crop, again) = choice.transforms  # chosen alike, for there is no prob
    assert resize == again and resize.resize_type == before.resize_type == 'mcf_mm.PatchResize'
    assert {max(scale) for scale in resize.scales} == {limit}
    steps = {min(scale) for scale in resize.scales}
    assert steps == set(range(min(steps), max(steps) + 1, 16)) and 'prob' not in choice
    assert [min(scale) for scale in before.scales] == [400, 500, 600]
    # A panorama of the shorter side 600 and 1,800 is not made smaller before the crop.
    assert min(max(scale) for scale in before.scales) > 1800
    assert (crop.crop_type, crop.crop_size) == ('absolute_range', (384, 600))


def test_images_without_boxes_are_kept():
    for name in (SMALL, TINY, FACEMASK):
        assert load(name).train_dataloader.dataset.filter_cfg is None
