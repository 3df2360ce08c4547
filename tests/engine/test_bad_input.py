"""What a run does with bad images, annotations and losses, with Runners as tools/train.py has."""

import json
from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from mcf_mm.engine.calibration_data import calibration_loader, image_names
from mcf_mm.engine.resume import latest_checkpoint, make_resumable
from mcf_mm.engine.runner import build_runner

TOKENS = 5


@pytest.fixture
def detection(detection_cfg) -> Config:
    """YOLOS with 5 detection tokens on the scenes."""
    detection_cfg.model = dict(
        type='mcf_mm.YOLOS',
        data_preprocessor=dict(type='mmdet.DetDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3),
        backbone=dict(
            type='mcf_mm.YOLOSVisionTransformer',
            arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
            img_size=(64, 96),
            num_det_tokens=TOKENS,
        ),
        bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=2, embed_dims=16),
    )
    make_resumable(detection_cfg)
    return detection_cfg


def change_annotations(scenes: Path, change) -> None:
    path = scenes / 'scenes.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def checkpoints(cfg: Config) -> list[str]:
    return sorted(path.name for path in Path(cfg.work_dir).glob('*.pth'))


def log(cfg: Config) -> str:
    return ''.join(path.read_text() for path in Path(cfg.work_dir).glob('*/*.log'))


def truncate(path: Path) -> None:
    Image.open(path).save(path, format='JPEG')
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda path: path.write_bytes(b''), r'7\.png: the image file is empty'),
        (truncate, r'7\.png: the JPEG file of \d+ bytes is truncated'),
    ],
)
def test_a_bad_image_stops_training_by_name(detection, scenes, damage, message, workers):
    damage(scenes / '7.png')
    detection.train_dataloader.num_workers = workers
    with pytest.raises(ValueError, match=message):
        build_runner(detection).train()
    assert checkpoints(detection) == []


def test_a_bad_image_stops_evaluation_by_name(detection, scenes):
    (scenes / '7.png').write_bytes(b'')
    runner = build_runner(detection)
    with pytest.raises(ValueError, match=r'7\.png: the image file is empty'):
        runner.val()


def test_bad_images_can_be_left_out(detection, scenes):
    for number in (2, 7):
        (scenes / f'{number}.png').write_bytes(b'')
    detection.train_dataloader.dataset.pipeline[0].ignore_empty = True
    detection.pop('val_dataloader'), detection.pop('val_evaluator'), detection.pop('val_cfg')
    runner = build_runner(detection)
    runner.train()
    assert runner.iter == 2 and checkpoints(detection) == ['epoch_1.pth']
    for number in (2, 7):
        assert f'left out: {scenes}/{number}.png: the image file is empty' in log(detection)


def test_images_of_unlike_kinds_are_trained_on(detection, scenes):
    for number, mode in enumerate(('L', 'CMYK', 'P', 'RGBA')):
        path = scenes / f'{number}.png'
        image = Image.open(path).convert(mode)
        image.save(path, format='JPEG' if mode == 'CMYK' else 'PNG')
    runner = build_runner(detection)
    runner.train()
    assert runner.message_hub.get_scalar('train/loss').data[0].shape == (2,)
    assert checkpoints(detection) == ['epoch_1.pth']


@pytest.mark.parametrize(
    'kind, message',
    [
        ('crowds', r'nothing is left .* 10 images with 13 annotations: 13 that are crowds'),
        ('outside', '13 with a box outside the image'),
        ('no size', '13 with a box smaller than a pixel'),
        ('none', r"the training set has not a single box: .*\['.*scenes\.json'\] list no objects"),
    ],
)
def test_training_where_nothing_can_be_learnt(detection, scenes, kind, message):
    def change(content: dict) -> None:
        for annotation in content['annotations']:
            if kind == 'crowds':
                annotation['iscrowd'] = 1
            elif kind == 'outside':
                annotation['bbox'] = [500, 500, 20, 20]
            elif kind == 'no size':
                annotation.update(bbox=[5, 5, 0, 0], area=0)
        if kind == 'none':
            content['annotations'] = []

    change_annotations(scenes, change)
    detection.pop('val_dataloader'), detection.pop('val_evaluator'), detection.pop('val_cfg')
    with pytest.raises(ValueError, match=message):
        build_runner(detection).train()
    assert checkpoints(detection) == []


def test_images_without_objects_beside_others_are_trained_on(detection, scenes):
    content = json.loads((scenes / 'scenes.json').read_text())
    (scenes / 'negatives.json').write_text(json.dumps(dict(content, annotations=[])))
    inner = detection.train_dataloader.dataset
    negatives = dict(inner, ann_file='negatives.json')
    detection.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[negatives, inner])
    build_runner(detection).train()
    assert checkpoints(detection) == ['epoch_1.pth']
    detection.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[negatives] * 2)
    detection.experiment_name += 'again'
    with pytest.raises(ValueError, match='the training set has not a single box'):
        build_runner(detection).train()


def test_an_image_resized_after_labelling_is_named(detection, scenes):
    Image.open(scenes / '3.png').resize((50, 50)).save(scenes / '3.png')
    with pytest.raises(ValueError, match=r'3\.png: the image is 50 x 50 pixels .* are for \d+ x'):
        build_runner(detection).train()
    detection.experiment_name += 'again'
    with pytest.raises(ValueError, match=r'3\.png: the image is 50 x 50 pixels .* are for \d+ x'):
        build_runner(detection).val()


def test_what_pycocotools_would_crash_on_stops_before_training(detection, scenes):
    def change(content: dict) -> None:
        for annotation in content['annotations']:
            annotation['segmentation'] = [[5, 5, 9, 9]]

    change_annotations(scenes, change)
    detection.val_evaluator.metric = ['bbox', 'segm']
    with pytest.raises(ValueError, match=r'annotation 1 of 1\.png .* a polygon of 4 coordinates'):
        build_runner(detection).train()
    assert checkpoints(detection) == []


def test_an_unknown_category_stops_before_training(detection, scenes):
    change_annotations(scenes, lambda content: content['annotations'][3].update(category_id=8))
    with pytest.raises(ValueError, match=r'annotation 4 of \d\.png .* has category_id 8'):
        build_runner(detection).train()
    runner = build_runner(Config(dict(detection, experiment_name='evaluation')))
    with pytest.raises(ValueError, match=r'annotation 4 of \d\.png .* has category_id 8'):
        runner.val()


def test_a_class_that_the_detector_has_not(detection):
    """Its label would be that of no object, and the run would go on."""
    detection.model.bbox_head.num_classes = 1
    inner = detection.train_dataloader.dataset
    detection.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=inner)
    message = r'bbox_head \(YOLOSHead\) is for 1 classes and the training set has 2: red, green'
    with pytest.raises(ValueError, match=message):
        build_runner(detection).train()
    assert checkpoints(detection) == []


def test_more_outputs_than_classes(detection):
    """As the public weights have: fewer ``class_ids`` than classes are too few all the same."""
    detection.model.bbox_head.update(num_classes=8, class_ids=[3, 7])
    build_runner(detection).train()
    assert checkpoints(detection) == ['epoch_1.pth']
    detection.model.bbox_head.class_ids = [3]
    detection.experiment_name += 'again'
    with pytest.raises(ValueError, match='is for 1 classes'):
        build_runner(detection).train()


def test_more_objects_than_tokens_are_one_warning(detection, scenes):
    def add(content: dict) -> None:
        for image_id in (0, 1, 8):
            for number in range(9):
                box = dict(bbox=[3 * number, 5, 20, 20], area=400, iscrowd=0, category_id=3)
                content['annotations'].append(
                    dict(id=1000 + 10 * image_id + number, image_id=image_id, **box)
                )

    change_annotations(scenes, add)
    runner = build_runner(detection)
    runner.train()
    assert checkpoints(detection) == ['epoch_1.pth']
    text = log(detection)
    assert text.count('detection tokens') == 1
    assert f'{scenes}/0.png has 9 objects and the model 5 detection tokens' in text


def test_a_diverged_detector_names_the_image_and_writes_nothing_broken(detection):
    detection.optim_wrapper.optimizer.lr = float('inf')
    with pytest.raises(FloatingPointError, match=r'iteration 2: the class logits .*5\.png are NaN'):
        build_runner(detection).train()
    assert checkpoints(detection) == []


@pytest.fixture
def classification(cfg) -> Config:
    """The micro DeiT on photos; 3 iterations in an epoch."""
    cfg.custom_hooks = []
    cfg.train_cfg.max_epochs = 2
    make_resumable(cfg)
    return cfg


def test_a_loss_that_is_nan_names_the_batch(classification):
    classification.optim_wrapper.optimizer.lr = float('inf')
    names = r'(\S+/(cat|dog)/\d\.png, ){3}\S+/(cat|dog)/\d\.png\. '
    message = r'epoch 1, iteration 2: the loss is not finite \(loss nan\); images of the batch: '
    with pytest.raises(FloatingPointError, match=message + names + '.*the last one is none'):
        build_runner(classification).train()
    assert checkpoints(classification) == []


def test_names_of_a_semi_supervised_batch():
    # As mmdet's MultiBranch packs it; a branch that an image is not in has None.
    first, second = (DetDataSample(metainfo=dict(img_path=name)) for name in ('a.jpg', 'b.jpg'))
    batch = dict(data_samples=dict(sup=[first, None], unsup=[None, second]))
    assert image_names(batch) == ['a.jpg', 'b.jpg']


class InfiniteRate(Hook):
    """Lets the last step of epoch 2 go to infinity."""

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.epoch == 1:
            for group in runner.optim_wrapper.param_groups:
                group['lr'] = float('inf')


def test_a_good_checkpoint_outlives_weights_that_are_nan(classification):
    # One iteration in an epoch: in the second, the loss is fine and the weights are NaN after it.
    classification.train_dataloader.batch_size = 10
    classification.default_hooks = dict(
        checkpoint=dict(type='mcf_mm.AtomicCheckpointHook', interval=1, max_keep_ckpts=1)
    )
    runner = build_runner(classification)
    runner.register_hook(InfiniteRate(), priority='LOW')
    with pytest.raises(FloatingPointError, match=r'epoch 2, .* of the weights are NaN .*no check'):
        runner.train()
    assert checkpoints(classification) == ['epoch_1.pth']
    path = latest_checkpoint(classification.work_dir)
    assert path.endswith('epoch_1.pth')
    state = torch.load(path, weights_only=False)['state_dict']
    assert all(value.isfinite().all() for value in state.values())


def test_a_buffer_may_hold_infinity(classification):
    runner = build_runner(classification)
    mask = torch.full((2, 2), float('-inf')).triu(1)
    runner.model.register_buffer('mask', mask)
    runner.train()
    assert checkpoints(classification) == ['epoch_1.pth', 'epoch_2.pth']


def test_a_class_that_the_classifier_has_not(classification):
    classification.model.head.num_classes = 1
    message = (
        r'^head \(VisionTransformerClsHead\) is for 1 classes and the training set has 2: cat, dog'
    )
    with pytest.raises(ValueError, match=message):
        build_runner(classification).train()


def test_a_bad_photo_of_a_classifier_is_named(classification, photos):
    (photos / 'dog' / '3.png').write_bytes(b'')
    with pytest.raises(ValueError, match=r'dog/3\.png: the image file is empty'):
        build_runner(classification).train()
    with pytest.raises(ValueError, match=r'dog/3\.png: the image file is empty'):
        list(calibration_loader(classification, 10))


def test_the_config_keeps_its_names(classification):
    # The inferencers of mmpretrain look for it.
    runner = build_runner(classification)
    assert runner.cfg.train_dataloader.dataset.pipeline[0].type == 'LoadImageFromFile'
    (dumped,) = Path(classification.work_dir).glob('*.py')
    assert 'mcf_mm.LoadImageFromFile' not in dumped.read_text()
    runner.train()
    first = runner.train_dataloader.dataset.pipeline.transforms[0]
    assert type(first).__module__ == 'mcf_mm.datasets.loading'
    assert [type(hook).__name__ for hook in runner.hooks].count('FiniteLossHook') == 1


def test_a_wrapped_dataset_is_checked_too(detection, scenes):
    change_annotations(scenes, lambda content: content['annotations'][3].update(category_id=8))
    inner = detection.train_dataloader.dataset
    inner.type = 'mmdet.CocoDataset'
    detection.train_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[dict(type='RepeatDataset', times=2, dataset=inner)]
    )
    with pytest.raises(ValueError, match='has category_id 8'):
        build_runner(detection).train()


def test_classes_of_detectors_that_differ(detection):
    detection.val_dataloader.dataset.metainfo = dict(classes=('red',))
    with pytest.raises(ValueError, match='only in the training set: green; only in the validation'):
        build_runner(detection).train()
    assert checkpoints(detection) == []
