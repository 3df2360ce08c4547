import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from PIL import Image

from mcf_mm.models import YOLOS
from mcf_mm.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SMALL = 'deit-small_8xb1-150e_coco'
SMALL_TYPE_II = 'deit-small-type2_8xb1-150e_coco'
TINY = 'deit-tiny_8xb2-300e_coco'
FACEMASK = 'deit-tiny_2cpu-24e_facemask'
FACEMASK_GPU = 'deit-tiny_1xb8-300e_facemask'
# Parameters counted on the public code, with 91 classes.
PUBLIC = {
    'deit-tiny_public_coco': 6_488_736,
    'deit-small_public_coco': 30_684_768,
    'deit-small-dwr_public_coco': 27_561_696,
    'deit-base_public_coco': 127_798_368,
}


@pytest.fixture(autouse=True)
def mmdet_scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def load(name: str) -> Config:
    (path,) = CONFIGS.glob(f'*/yolos_{name}.py')
    return Config.fromfile(path)


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
        # 204 instead of 4,150 patch positions, 40 instead of 100 detection tokens twice, and 88
        # classes less than 91.
        (FACEMASK, 6_488_736 - (4_150 - 204 + 2 * 60) * 192 - 88 * 193),
        *PUBLIC.items(),
    ],
)
def test_size_of_the_model(name, parameters):
    model = build(load(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize('name', [SMALL, SMALL_TYPE_II, TINY, FACEMASK, FACEMASK_GPU])
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


@pytest.mark.parametrize('name', [SMALL, TINY, FACEMASK, FACEMASK_GPU])
def test_weight_decay_is_that_of_the_public_code(name):
    config = load(name)
    model = build(config)
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    decay = {names[id(group['params'][0])]: group for group in optimizer.param_groups}
    lr = config.optim_wrapper.optimizer.lr
    for key, parameter in model.named_parameters():
        none = parameter.ndim == 1 or key.endswith(('.pos_embed', '.cls_token', '.det_token'))
        # The head is one group there, its biases among them.
        expected = 0 if none and key.startswith('backbone.') else 1e-4
        assert decay[key]['weight_decay'] == expected, key
        if config.optim_wrapper.clip_grad.max_norm == 0.1:
            assert decay[key]['lr'] == lr
    biases = [key for key in decay if key.startswith('bbox_head.') and key.endswith('.bias')]
    assert len(biases) == 6 and all(decay[key]['weight_decay'] == 1e-4 for key in biases)
    if name == SMALL:
        assert decay['backbone.mid_pos_embed']['weight_decay'] == 1e-4


def test_images_are_drawn_at_random_and_the_last_small_batch_is_left_out(tmp_path):
    photos = [
        dict(id=i, file_name=f'{i}.jpg', width=48 + 32 * (i % 2), height=64) for i in range(21)
    ]
    boxes = [
        dict(id=i + 1, image_id=i, category_id=1, bbox=[4, 4, 30, 30], area=900, iscrowd=0)
        for i in range(21)
    ]
    names = [dict(id=i + 1, name=name) for i, name in enumerate(CocoDataset.METAINFO['classes'])]
    for photo in photos:
        Image.new('RGB', (photo['width'], photo['height'])).save(tmp_path / photo['file_name'])
    content = dict(images=photos, annotations=boxes, categories=names)
    (tmp_path / 'boxes.json').write_text(json.dumps(content))
    loader = load(TINY).train_dataloader
    loader.update(num_workers=0, persistent_workers=False)
    loader.dataset.update(data_root=str(tmp_path), ann_file='boxes.json', data_prefix=dict(img=''))
    batches = list(Runner.build_dataloader(loader, seed=0))
    assert [len(batch['inputs']) for batch in batches] == [2] * 10
    ids = [[sample.img_id for sample in batch['data_samples']] for batch in batches]
    # Photos of both shapes come together, which mmdet's AspectRatioBatchSampler keeps apart.
    assert any(sum(pair) % 2 for pair in ids)


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
        (FACEMASK, (112, 192), (192, 256)),
        (FACEMASK_GPU, (256, 608), (512, 672)),
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


def annotations(coco_mini: Path) -> Path:
    return coco_mini / 'annotations' / 'instances_val2017.json'


@pytest.mark.parametrize('name', PUBLIC)
def test_outputs_of_the_public_weights_are_category_ids(name, coco_mini):
    categories = json.loads(annotations(coco_mini).read_text())['categories']
    ids = {category['name']: category['id'] for category in categories}
    head = load(name).model.bbox_head
    assert head.class_ids == [ids[label] for label in CocoDataset.METAINFO['classes']]
    assert head.num_classes == 91 and max(head.class_ids) == 90


def test_public_weights_evaluate(coco_mini, tmp_path):
    """A small network that everywhere sees output 12, no category, and toothbrushes second."""
    config = load('deit-tiny_public_coco')
    config.work_dir = str(tmp_path)
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    config.model.backbone.update(arch=arch, img_size=(64, 96), num_det_tokens=4)
    config.model.bbox_head.embed_dims = 16
    loader = config.test_dataloader
    loader.update(num_workers=0, persistent_workers=False, batch_size=8)
    loader.dataset.update(data_root=f'{coco_mini}/', indices=list(range(16)))
    loader.dataset.pipeline[1].scale = (96, 64)
    config.test_evaluator.update(
        ann_file=str(annotations(coco_mini)), outfile_prefix=str(tmp_path / 'results')
    )
    model = MODELS.build(config.model)
    last = model.bbox_head.fc_cls[-1]
    torch.nn.init.zeros_(last.weight)
    last.bias.data.fill_(-50.0)
    last.bias.data[12], last.bias.data[90], last.bias.data[91] = 6.0, 5.0, 4.0
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    config.load_from = str(tmp_path / 'weights.pth')
    metrics = Runner.from_cfg(config).test()
    assert 0 <= metrics['coco/bbox_mAP'] < 0.1
    results = json.loads((tmp_path / 'results.bbox.json').read_text())
    assert len(results) == 16 * 4
    assert {result['category_id'] for result in results} == {90}
    # The softmax is over all 92, also when the best of them is no category.
    score = last.bias.data.softmax(0)[90].item()
    assert 0.2 < score < 0.3
    assert [result['score'] for result in results] == pytest.approx([score] * 64)
