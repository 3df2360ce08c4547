"""What would go wrong without a word, or only after the last epoch: refused by name, or right."""

from pathlib import Path

import pytest
from mmcv.cnn.bricks.transformer import FFN
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from mmengine.runner import Runner

from mcf_mm.engine.config import load_config
from mcf_mm.engine.networks import build_model
from mcf_mm.engine.runner import build_runner
from mcf_mm.registry import MODELS, own_scope
from mcf_mm.weights.checkpoint import read_header


def log(cfg: Config) -> str:
    return ''.join(path.read_text() for path in Path(cfg.work_dir).glob('*/*.log'))


def test_our_classes_are_found_without_scope(cfg, tmp_path):
    cfg.custom_hooks[0].type = 'MCFPruningHook'
    cfg.model.backbone.type = 'SlimVisionTransformer'
    cfg.default_hooks.checkpoint.type = 'AtomicCheckpointHook'
    cfg.train_dataloader.sampler = dict(type='ShortEpochSampler', epoch_size=8)
    cfg.train_cfg.max_epochs = 4
    cfg.dump(tmp_path / 'bare.py')
    read = load_config(str(tmp_path / 'bare.py'))
    assert read.custom_hooks[0].type == 'mcf_mm.MCFPruningHook'
    assert read.train_dataloader.sampler.type == 'mcf_mm.ShortEpochSampler'
    build_runner(cfg).train()  # of a config that was made otherwise
    assert (Path(cfg.work_dir) / 'slim.safetensors').is_file()


def test_classes_of_others_keep_their_names():
    part = dict(
        dataset=dict(type='CocoDataset', pipeline=[dict(type='LoadImageFromFile')]),
        hooks=(dict(type='EMAHook'), dict(type='PruningHook'), dict(type='mmdet.YOLOS')),
        kind=dict(type=Path),
        optim_wrapper=dict(type='Bf16OptimWrapper', optimizer=dict(type='AdamW')),
        metrics=[dict(type='CocoMetric')],
    )
    own_scope(part)
    assert part['optim_wrapper']['type'] == 'mcf_mm.Bf16OptimWrapper'
    assert part['optim_wrapper']['optimizer']['type'] == 'AdamW'
    assert [metric['type'] for metric in part['metrics']] == ['CocoMetric']
    assert part['dataset'] == dict(type='CocoDataset', pipeline=[dict(type='LoadImageFromFile')])
    assert [hook['type'] for hook in part['hooks']] == [
        'EMAHook', 'mcf_mm.PruningHook', 'mmdet.YOLOS',
    ]  # fmt: skip
    assert part['kind'] == dict(type=Path)


class Scripted(BaseMetric):
    """Gives one score after the other."""

    def __init__(self, scores: list[float]):
        super().__init__()
        self.scores = iter(scores)

    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict:
        score = next(self.scores)
        return dict(first=score, second=1 - score)


METRICS.register_module(module=Scripted, force=True)


@pytest.fixture
def scripted(cfg) -> Config:
    """Scores of the dense and masked network (epochs 1 to 3), then of the small one (4 and 5)."""
    cfg.val_evaluator = dict(type='Scripted', scores=[0.7, 0.9, 0.8, 0.4, 0.5])
    return cfg


@pytest.mark.parametrize('keys', ['first', ['first', 'second']])
def test_the_best_checkpoint_is_one_of_the_small_network(scripted, keys):
    scripted.default_hooks.checkpoint.update(save_best=keys, rule=['greater', 'less'][: len(keys)])
    if keys == 'first':
        scripted.default_hooks.checkpoint.rule = 'greater'
    runner = build_runner(scripted)
    runner.train()
    end = '' if keys == 'first' else '_first'
    assert runner.message_hub.get_info(f'best_score{end}') == 0.5
    assert runner.message_hub.get_info(f'best_ckpt{end}').endswith('best_first_epoch_5.pth')
    names = sorted(path.name for path in Path(scripted.work_dir).glob('best_first*'))
    assert names == ['best_first_epoch_2.pth', 'best_first_epoch_5.pth']
    assert 'best_first_epoch_2.pth (first 0.9) is of the network before surgery' in log(scripted)


def test_the_best_is_forgotten_in_a_run_that_goes_on(scripted, tmp_path):
    scripted.default_hooks.checkpoint.update(save_best='first', rule='greater')
    build_runner(scripted).train()
    scripted.load_from, scripted.resume = f'{scripted.work_dir}/epoch_3.pth', True
    scripted.work_dir, scripted.experiment_name = str(tmp_path / 'again'), 'again' + tmp_path.name
    scripted.val_evaluator.scores = [0.3, 0.2]
    runner = build_runner(scripted)
    runner.train()
    assert runner.message_hub.get_info('best_score') == 0.3


def test_early_stopping_counts_anew_after_surgery(scripted):
    scripted.custom_hooks.append(
        dict(type='EarlyStoppingHook', monitor='first', rule='greater', patience=2)
    )
    runner = build_runner(scripted)
    runner.train()  # 0.8, 0.4 are two epochs below 0.9
    assert runner.epoch == 5


def test_a_detector_with_a_teacher_of_its_own_is_refused(detection_cfg):
    cfg = detection_cfg
    detector = dict(
        type='mcf_mm.YOLOS',
        data_preprocessor=dict(type='mmdet.DetDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3),
        backbone=dict(
            type='mcf_mm.YOLOSVisionTransformer',
            arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32),
            img_size=(64, 96),
            num_det_tokens=5,
        ),
        bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=2, embed_dims=16),
    )
    cfg.model = dict(
        type='SemiBaseDetector',
        detector=detector,
        data_preprocessor=dict(
            type='MultiBranchDataPreprocessor',
            data_preprocessor=detector['data_preprocessor'],
        ),
        semi_train_cfg=dict(freeze_teacher=True),
        semi_test_cfg=dict(predict_on='teacher'),
    )
    cfg.train_cfg.max_epochs = 4
    for kind in ('MCFPruningHook', 'PruningHook'):
        cfg.custom_hooks = [dict(type=f'mcf_mm.{kind}', num_images=4)]
        cfg.experiment_name += kind
        message = rf'{kind} cuts one network, and SemiBaseDetector has two, student and teacher'
        with pytest.raises(ValueError, match=message):
            build_runner(Config(dict(cfg))).train()


def test_a_run_without_a_batch_is_refused(cfg):
    cfg.train_dataloader.update(batch_size=64, drop_last=True)
    message = 'gives no batch: 10 images, batch_size=64 and drop_last=True'
    with pytest.raises(ValueError, match=message):
        build_runner(cfg).train()
    assert not list(Path(cfg.work_dir).glob('*.pth'))


def test_the_header_tells_how_many_images_there_were(cfg):
    cfg.custom_hooks[0].num_images = 1024
    cfg.train_cfg.max_epochs = 4
    build_runner(cfg).train()
    assert read_header(Path(cfg.work_dir) / 'slim.safetensors')['num_images'] == 10


def test_a_model_that_was_built_before_is_refused(cfg):
    settings = {key: value for key, value in cfg.items() if key not in ('model', 'log_level')}
    model = build_model(cfg)
    with pytest.raises(ValueError, match='MCFPruningHook needs the config of the model'):
        Runner(model=model, **settings).train()
    assert not list(Path(cfg.work_dir).glob('*.pth'))


@pytest.mark.parametrize('kind', ['MCFPruningHook', 'PruningHook'])
def test_an_ffn_that_evaluation_does_not_run_is_refused(cfg, kind):
    class Twice(MODELS.get('mmpretrain.ImageClassifier')):
        """Has a head of Transformer layers for training alone."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.auxiliary = FFN(16, 32, add_identity=False)

    MODELS.register_module(module=Twice, name='Twice', force=True)
    cfg.model.type = 'Twice'
    cfg.train_cfg.max_epochs = 6
    cfg.custom_hooks = [dict(type=f'mcf_mm.{kind}', num_images=4)]
    with pytest.raises(ValueError, match='auxiliary.* does not use it'):
        build_runner(cfg).train()
    assert not list(Path(cfg.work_dir).glob('*.pth'))
