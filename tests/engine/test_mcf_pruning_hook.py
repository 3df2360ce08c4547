"""The hook inside real Runners, on ten images."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image
from recording import find_hook
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.engine import PruningHook
from mcf_mm.pruning import CalibrationError, SlimLinear, find_ffns
from mcf_mm.weights.checkpoint import read_header


def sizes_of(ffn):
    return ffn.sizes['inputs'], ffn.sizes['hidden']


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=0, atol=0, msg=key)


class Watch:
    """Records the model after every epoch of a Runner."""

    def __init__(self, runner):
        self.zeros, self.sizes = [], []
        watch = self

        class WatchHook(Hook):
            def after_train_epoch(self, runner):
                ffns = find_ffns(runner.model)
                watch.sizes.append([sizes_of(ffn) for ffn in ffns])
                watch.zeros.append([float((ffn.fc1.weight == 0).float().mean()) for ffn in ffns])

        runner.register_hook(WatchHook(), priority='LOWEST')


def test_one_ffn_per_epoch_then_small(cfg):
    runner = Runner.from_cfg(cfg)
    watch = Watch(runner)
    runner.train()
    # 9 of 16 inputs stay: 7/16 of W1 is zero and stays zero through the optimizer's steps.
    part = pytest.approx(7 / 16)
    assert watch.zeros[0] == [0, 0, part]
    assert watch.zeros[1] == [0, part, part]
    assert watch.zeros[2] == [part, part, part]
    assert watch.sizes[2] == [(16, 40)] * 3
    assert watch.sizes[3] == watch.sizes[4] == [(9, 24)] * 3
    optimizer = runner.optim_wrapper.optimizer
    for parameter in runner.model.parameters():
        assert optimizer.state[parameter]['exp_avg'].shape == parameter.shape

    work_dir = Path(cfg.work_dir)
    header = read_header(work_dir / 'slim.safetensors')
    assert header['sizes']['backbone.layers.1.ffn'] == dict(inputs=9, hidden=24)
    assert header['method'] == 'mcf' and header['input_ratio'] == 0.4 and header['epochs'] == 5
    log = next(Path(runner.log_dir).glob('*.log')).read_text()
    assert 'MCF: sparsified backbone.layers.2.ffn: band_fc1' in log
    assert 'backbone.layers.0.ffn keeps 9 inputs and 24 hidden' in log
    scalars = [
        json.loads(line)
        for line in (Path(runner.log_dir) / 'vis_data' / 'scalars.json').read_text().splitlines()
    ]
    sizes = next(entry for entry in scalars if 'mcf/params_after' in entry)
    assert sizes['mcf/params_after'] == count_complexity(runner.model, (32, 32)).params
    assert sizes['mcf/params_before'] > sizes['mcf/params_after']
    assert sizes['mcf/macs_before'] > sizes['mcf/macs_after']


def test_pictures_of_the_run(cfg, looks):
    cfg.visualizer.vis_backends.append(dict(type='TensorboardVisBackend'))
    runner = Runner.from_cfg(cfg)
    runner.train()
    names = {'kept_sizes', 'kept_inputs', 'parts'}
    names |= {f'importance_backbone.layers.{i}.ffn' for i in range(3)}
    pictures = list((Path(cfg.work_dir) / 'report').glob('*.png'))
    assert {file.stem for file in pictures} == names
    assert all(np.asarray(Image.open(file)).std() > 0 for file in pictures)
    runner.visualizer.close()
    events = EventAccumulator(str(Path(runner.log_dir) / 'vis_data'), dict(images=0))
    events.Reload()
    assert {f'mcf_{name}' for name in names} <= set(events.Tags()['images'])


def test_the_config_it_writes_builds_the_network_it_trained(cfg):
    runner = Runner.from_cfg(cfg)
    runner.train()
    slim_cfg = Config.fromfile(Path(cfg.work_dir) / 'slim.py')
    assert slim_cfg.model.backbone.sizes == dict(inputs=[9] * 3, hidden=[24] * 3)
    assert not slim_cfg.custom_hooks
    slim_cfg.work_dir, slim_cfg.experiment_name = cfg.work_dir + '/test', 'slim' + cfg.work_dir
    again = Runner.from_cfg(slim_cfg)
    metrics = again.test()
    assert_same(weights(again.model), weights(runner.model))
    assert metrics == runner.val()


def test_same_seed_same_network(cfg, tmp_path):
    first = Runner.from_cfg(cfg)
    first.train()
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'second'), 'second' + tmp_path.name
    second = Runner.from_cfg(cfg)
    second.train()
    assert_same(weights(first.model), weights(second.model))


@pytest.mark.parametrize('epoch', [2, 3, 4])
def test_resume_in_masking_at_surgery_and_in_recovery(cfg, epoch, tmp_path):
    # Without flips the images of an epoch do not depend on the state of the random generator.
    del cfg.train_dataloader.dataset.pipeline[1]
    whole = Runner.from_cfg(cfg)
    whole.train()
    cfg.load_from = f'{cfg.work_dir}/epoch_{epoch}.pth'
    cfg.resume = True
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'resumed'), 'resumed' + tmp_path.name
    resumed = Runner.from_cfg(cfg)
    resumed.train()
    assert_same(weights(whole.model), weights(resumed.model))
    assert (tmp_path / 'resumed' / 'slim.safetensors').is_file()


def test_resuming_a_run_without_the_hook_is_refused(cfg, tmp_path):
    hooks, cfg.custom_hooks = cfg.custom_hooks, []
    Runner.from_cfg(cfg).train()
    cfg.custom_hooks, cfg.resume = hooks, True
    cfg.load_from = f'{cfg.work_dir}/epoch_2.pth'
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'resumed'), 'resumed' + tmp_path.name
    with pytest.raises(ValueError, match='not of a run with MCFPruningHook'):
        Runner.from_cfg(cfg).train()


def test_the_average_of_ema_shrinks_along(cfg):
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    runner = Runner.from_cfg(cfg)
    runner.train()
    average = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model
    assert {sizes_of(ffn) for ffn in find_ffns(average.module)} == {(9, 24)}


def test_hidden_units_alone_with_compensation(cfg):
    cfg.custom_hooks[0].update(input_ratio=0.0, hidden_ratio=0.5, compensation='least_squares')
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert {sizes_of(ffn) for ffn in find_ffns(runner.model)} == {(16, 20)}
    assert not any(isinstance(module, SlimLinear) for module in runner.model.modules())


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(ratio=1.0), r'^ratio must be a number in \[0, 1\), got 1.0'),
        (dict(ratio='0.4'), r"^ratio must be a number in \[0, 1\), got '0.4'"),
        (dict(ratio=float('nan')), r'^ratio must be a number in \[0, 1\), got nan'),
        (dict(hidden_ratio=-0.5), r'hidden_ratio must be .* got -0.5'),
        (dict(scale=-1.0), r'scale must be positive, got -1.0'),
        (dict(start_epoch=-1), 'start_epoch must be at least 0, got -1'),
        (dict(start_epoch=0.5), 'start_epoch must be a whole number, got 0.5'),
        (dict(num_images=float('nan')), 'num_images must be a whole number, got nan'),
        (dict(multiple=float('nan')), 'multiple must be a whole number, got nan'),
        (dict(seed=-1), 'seed must be a whole number from 0 to .*, got -1'),
        (dict(guide=float('nan')), r'guide must be in \(0, 1\], got nan'),
        (dict(scale=float('nan')), 'scale must be positive, got nan'),
        (dict(teacher=dict(blocks=float('nan'))), 'blocks is a weight .* got nan'),
        (dict(method='best'), "got 'best'"),
        (dict(num_images=0), 'num_images must be at least 1, got 0'),
        (dict(multiple=0), 'multiple must be at least 1, got 0'),
        (dict(last_step='all'), "last_step must be one of .* got 'all'"),
        (dict(last_step='crs', compensation='mean'), "compensation='mean' needs rows"),
        (dict(teacher=dict(logits=0)), 'logits and blocks are both 0'),
        (dict(teacher=dict(blocks=-1)), 'blocks is a weight and must not be negative, got -1'),
        (dict(teacher=dict(temperature=0)), 'temperature must be positive, got 0'),
        (dict(start_epoch=2), r'max_epochs is 5: with 3 FFNs and start_epoch=2 .* at least 6'),
    ],
)
def test_bad_arguments_end_the_run_before_it_starts(cfg, arguments, message):
    cfg.custom_hooks[0].update(arguments)
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()
    assert not list(Path(cfg.work_dir).glob('*.pth'))


def test_a_model_without_ffns_is_refused(cfg):
    cfg.model.backbone = dict(type='ResNet', depth=18)
    cfg.model.neck = dict(type='GlobalAveragePooling')
    cfg.model.head = dict(type='LinearClsHead', num_classes=2, in_channels=512)
    with pytest.raises(ValueError, match='no FFN found in ImageClassifier'):
        Runner.from_cfg(cfg).train()


@pytest.mark.parametrize('last_step', ['fis', 'crs'])
def test_ablation_holds_masks_to_the_end(cfg, last_step, tmp_path):
    cfg.custom_hooks[0].last_step = last_step
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert not (Path(cfg.work_dir) / 'slim.safetensors').exists()
    masked_cfg = Config.fromfile(Path(cfg.work_dir) / 'masked.py')
    masked_cfg.work_dir = str(tmp_path / 'again')
    masked_cfg.experiment_name = 'again' + tmp_path.name
    again = Runner.from_cfg(masked_cfg)
    assert again.test() == runner.val()
    assert_same(weights(again.model), weights(runner.model))
    zeros = {}
    for ffn in find_ffns(again.model):
        assert sizes_of(ffn) == (16, 40)
        assert float((ffn.fc2.weight == 0).float().mean()) == pytest.approx(0.4)
        zeros[ffn.name] = ffn.fc2.weight == 0
    # Trained on, the zeros are held.
    masked_cfg.work_dir = str(tmp_path / 'on')
    masked_cfg.experiment_name = 'on' + tmp_path.name
    trained = Runner.from_cfg(masked_cfg)
    trained.train()
    for ffn in find_ffns(trained.model):
        assert torch.equal(ffn.fc2.weight == 0, zeros[ffn.name])
        before = again.model.get_submodule(f'{ffn.name}.layers.1').weight
        assert not torch.equal(ffn.fc2.weight, before)


def test_holding_zeros_of_a_network_without_any_is_refused(cfg):
    cfg.custom_hooks = [dict(type='mcf_mm.HoldZerosHook')]
    with pytest.raises(ValueError, match='no weight of an FFN is zero'):
        Runner.from_cfg(cfg).train()


def test_it_keeps_the_indices_that_it_kept_before_the_core_was_rebuilt(cfg):
    runner = Runner.from_cfg(cfg)
    runner.train()
    structure = {
        name: {kind: index.tolist() for kind, index in kinds.items()}
        for name, kinds in find_hook(runner, PruningHook).pruning.structure.items()
    }
    digest = hashlib.sha256(json.dumps(structure, sort_keys=True).encode()).hexdigest()
    assert digest == '8101c8a993a80d362bfff60ba5a86d0624e6a5eb5d663c100e0009d618965aca'


def test_resuming_with_other_settings_is_refused_by_name(cfg, tmp_path):
    Runner.from_cfg(cfg).train()
    cfg.custom_hooks[0].update(hidden_ratio=0.5, guide=1.0)
    cfg.resume, cfg.load_from = True, f'{cfg.work_dir}/epoch_2.pth'
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'resumed'), 'resumed' + tmp_path.name
    with pytest.raises(
        ValueError,
        match=r'guide is 1\.0 here and 0\.5 there; hidden_ratio is 0\.5 here and 0\.4 there',
    ):
        Runner.from_cfg(cfg).train()


def test_training_that_ends_before_surgery_writes_no_slim_network(cfg):
    class StopHook(Hook):
        def after_train_epoch(self, runner):
            runner.train_loop.stop_training = runner.epoch == 1

    runner = Runner.from_cfg(cfg)
    runner.register_hook(StopHook())
    runner.train()
    assert not (Path(cfg.work_dir) / 'slim.safetensors').exists()
    log = next(Path(runner.log_dir).glob('*.log')).read_text()
    assert 'training ended in epoch 2, before surgery' in log


def test_two_pruning_hooks_are_refused(cfg):
    cfg.custom_hooks.append(dict(type='mcf_mm.PruningHook', ratios=dict(hidden=0.2)))
    with pytest.raises(
        ValueError, match=r"one pruning hook, got \['MCFPruningHook', 'PruningHook'\]"
    ):
        Runner.from_cfg(cfg).train()


def test_sizes_become_multiples(cfg):
    cfg.custom_hooks[0].multiple = 8
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert {sizes_of(ffn) for ffn in find_ffns(runner.model)} == {(8, 24)}


def test_iteration_based_training_is_refused(cfg):
    cfg.train_cfg = dict(by_epoch=False, max_iters=5)
    cfg.default_hooks.checkpoint = None
    with pytest.raises(ValueError, match='set train_cfg.by_epoch=True, got IterBasedTrainLoop'):
        Runner.from_cfg(cfg).train()


def test_bad_values_in_calibration_name_layer_and_image(cfg, photos):
    # A normalisation by zero makes this one picture, black in one channel, not a number.
    cfg.data_preprocessor.std = [60.0, 60.0, 0.0]
    cfg.data_preprocessor.mean = [127.0, 127.0, 0.0]
    for file in photos.glob('*/*.png'):
        pixels = np.array(Image.open(file))
        pixels[..., 0] = 0
        Image.fromarray(pixels).save(file)
    pattern = r'backbone\.layers\.\d\.ffn\.layers\.0\.0 is not finite for image .*\.png'
    with pytest.raises(CalibrationError, match=pattern):
        Runner.from_cfg(cfg).train()
