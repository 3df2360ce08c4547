"""Healing of OpenMMLab models: in one shot, by tools/prune.py, and in a run."""

import copy
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from fork_server import run_tool, start_tool
from healing import assert_same, command, with_large_weights, write_dense
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from recording import ROOT, environment
from test_distributed import launch, records
from test_other_networks import detr

from mcf_mm.engine import heal as engine
from mcf_mm.engine.calibration_data import calibration_loader
from mcf_mm.engine.heal import _Batches, _forward, check_heal_model, heal_model
from mcf_mm.engine.networks import build_model
from mcf_mm.pruning import find_ffns, prune
from mcf_mm.pruning.comparison import check_comparable
from mcf_mm.pruning.healing import Healing
from mcf_mm.weights.checkpoint import read_header, read_state_dict


@pytest.fixture
def dense(cfg, tmp_path) -> Path:
    return write_dense(cfg, tmp_path)


def test_the_tool_heals_and_tells(dense, tmp_path):
    plain = run_tool(command(dense, tmp_path / 'plain'))
    assert plain.returncode == 0, plain.stderr
    out = tmp_path / 'healed'
    done = run_tool(command(dense, out, '--heal', 'epochs=4,lr=2e-3', '--seed', '3'))
    assert done.returncode == 0, done.stderr
    names = ['report', 'slim.md', 'slim.py', 'slim.safetensors']
    assert sorted(file.name for file in out.iterdir()) == names
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('healed on ')]
    assert 'healed on 36 images in' in line and line.endswith(' of 4')
    header = read_header(out / 'slim.safetensors')
    told = header['heal']
    assert {key: told[key] for key in ('epochs', 'lr', 'seed', 'images')} == dict(
        epochs=4, lr=2e-3, seed=3, images=36
    )
    assert told['after']['loss'] < told['before']['loss']
    assert f'{told["before"]["loss"]:.4g}' in line
    assert 'heal' not in read_header(tmp_path / 'plain' / 'slim.safetensors')


def test_a_killed_tool_goes_on_to_the_same_network(dense, tmp_path):
    heal = ['--heal', 'epochs=40,lr=1e-3']
    out, whole = tmp_path / 'killed', tmp_path / 'whole'
    state = out / 'heal_state.pt'
    process = start_tool(command(dense, out, *heal), env=environment())
    end = time.monotonic() + 300
    while not state.is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL, process.output()
    assert [file.name for file in out.iterdir() if 'part' not in file.name] == ['heal_state.pt']
    epochs = torch.load(state)['position'][0] / 3
    assert 1 <= epochs < 40

    for options, message in (
        (heal, 'heal_state.pt is the state of a healing that was interrupted: go on with resume'),
        ([], 'heal_state.pt is the state of a healing that was interrupted'),
        (['--resume'], '--resume goes on with --heal: give the same --heal'),
        (['--heal', 'epochs=3,lr=1e-3', '--resume'], 'epochs is 3 here and 40 there'),
    ):
        done = run_tool(command(dense, out, *options), env=environment())
        assert done.returncode == 1 and message in done.stderr, done.stderr
    done = run_tool(command(dense, out, *heal, '--resume'), env=environment())
    assert done.returncode == 0, done.stderr
    assert not state.exists()
    done = run_tool(command(dense, whole, *heal, '--resume'), env=environment())
    assert done.returncode == 0, done.stderr
    assert 'heal_state.pt yet: healing starts at its beginning' in done.stdout
    first, second = (read_state_dict(str(path / 'slim.safetensors')) for path in (out, whole))
    assert_same(first, second)
    assert read_header(out / 'slim.safetensors') == read_header(whole / 'slim.safetensors')


@pytest.mark.parametrize(
    'options, message',
    [
        (['--heal', 'minutes=0'], 'heal: minutes must be a number above 0, got 0'),
        (['--heal', 'minutes=nan'], 'heal: minutes must be a number above 0, got nan'),
        (['--heal', 'epochs=1.5'], 'heal: epochs must be a whole number, got 1.5'),
        (['--heal', 'hours=1'], "heal: no setting 'hours'; there are minutes, epochs, "),
        (['--heal', '15'], '--heal must be minutes=N or epochs=N, with settings'),
        (['--heal', 'epochs=1,bf16=yes'], "got 'bf16=yes' in 'epochs=1,bf16=yes'"),
        (['--heal', 'epochs=1,folder=gone'], "heal: folder='gone' is no folder of images"),
        (['--heal', 'epochs=1,folder=tools'], "heal: folder='tools': Found 0 files"),
        (['--heal', 'epochs=1,folder='], "folder must be that of some images, got ''"),
        (['--heal', 'epochs=1,epochs=2'], '--heal names epochs twice'),
        (['--heal', 'epochs=1,minutes=2'], 'either minutes or epochs'),
        (['--heal', 'epochs=1', '--num-images', '1'], 'heal needs at least 2 images, one of them'),
        (
            ['--heal', 'epochs=1', '--criterion', 'mcf', '--ratios', 'hidden=0.4', '--last-step',
             'crs'],
            'heal is for a network that is cut: set last_step to x_transformation, got crs',
        ),
    ],
)  # fmt: skip
def test_bad_options_are_named_before_any_time_is_spent(dense, tmp_path, options, message):
    done = run_tool(command(dense, tmp_path / 'o', *options))
    assert done.returncode == 1
    assert message in done.stderr
    assert not list(tmp_path.glob('o/*'))


def test_a_detector_heals_by_its_backbone(detection_cfg, tmp_path):
    detection_cfg.model = dict(
        type='mcf_mm.YOLOS',
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3),
        backbone=dict(
            type='mcf_mm.YOLOSVisionTransformer',
            arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
            img_size=(96, 96),
            num_det_tokens=5,
        ),
        bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=2, embed_dims=32),
    )
    torch.manual_seed(0)
    model = with_large_weights(build_model(detection_cfg))
    loader = calibration_loader(detection_cfg, 10)
    check_heal_model(model, detection_cfg, loader, dict(epochs=1))
    with pytest.raises(ValueError, match="folder='.' is for classifiers; a detector heals on the"):
        check_heal_model(model, detection_cfg, loader, dict(epochs=1, folder='.'))
    student, heads = copy.deepcopy(model), []
    prune(student, [], 'magnitude', dict(hidden=0.5))
    handle = student.bbox_head.register_forward_hook(lambda *args: heads.append(args))
    before, state = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    healed = heal_model(student, model, detection_cfg, loader, dict(epochs=3, lr=1e-3), show=False)
    handle.remove()
    assert healed.after.loss < healed.before.loss and healed.before.logits == 0
    assert not heads
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in student.state_dict().items():
        if key.startswith('bbox_head'):
            assert torch.equal(value, before[key]), key
    with pytest.raises(ValueError, match='logits is 1, but YOLOS has no classifier'):
        check_heal_model(model, detection_cfg, loader, dict(epochs=1, logits=1))
    # Images of one batch are of unlike size: what is padding is known, and stays there.
    batches = _Batches(loader, range(10), model, 5)
    batch = next(iter(batches))
    assert len(set(batch['image_sizes'])) > 1
    streams = check_comparable(model, lambda: _forward(model)(model, batch), Healing(epochs=1))
    assert list(streams.values()) == [f'backbone.layers.{i}.ffn' for i in range(2)]
    names = [[sample.img_id for sample in batch['data_samples']] for batch in batches]
    assert len(sum(names, [])) == 10
    shuffled = batches.shuffled(torch.Generator().manual_seed(0))
    mixed = [[sample.img_id for sample in batch['data_samples']] for batch in shuffled]
    assert mixed != names and sorted(sum(mixed, [])) == sorted(sum(names, []))


def test_a_detector_with_ffns_outside_its_backbone_runs_to_the_end(detection_cfg):
    detection_cfg.model = detr()
    torch.manual_seed(0)
    model = with_large_weights(build_model(detection_cfg))
    loader = calibration_loader(detection_cfg, 4)
    student = copy.deepcopy(model)
    prune(student, [], 'magnitude', dict(hidden=0.5))
    healed = heal_model(student, model, detection_cfg, loader, dict(epochs=2, lr=1e-3))
    assert healed.after.loss < healed.before.loss
    assert len(find_ffns(student)) == 3
    assert not any(module._forward_hooks for module in student.modules())


@pytest.fixture
def run_cfg(cfg) -> Config:
    """Cuts at the start of epoch 1 of 3 and heals for two epochs."""
    heal = dict(epochs=2, lr=1e-3)
    cfg.custom_hooks = [
        dict(type='mcf_mm.PruningHook', ratios=dict(hidden=0.5), epoch=1, num_images=10, heal=heal)
    ]
    cfg.train_cfg.max_epochs = 3
    del cfg.train_dataloader.dataset.pipeline[1]  # flips draw from a generator
    return cfg


def test_a_run_heals_right_after_the_cut_and_resumes(run_cfg, tmp_path):
    cfg, seen = run_cfg, {}
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))

    class Look(Hook):
        priority = 'LOWEST'

        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                average = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook')
                seen['average'] = copy.deepcopy(average.ema_model.module.state_dict())
                seen['weights'] = copy.deepcopy(runner.model.state_dict())
                seen['steps'] = {
                    float(state['step']) for state in runner.optim_wrapper.optimizer.state.values()
                }

    whole = Runner.from_cfg(cfg)
    whole.register_hook(Look())
    whole.train()
    assert_same(seen['average'], seen['weights'])
    assert seen['steps'] == {3.0}  # of the epoch before
    header = read_header(f'{cfg.work_dir}/slim.safetensors')
    assert header['heal']['epochs'] == 2 and header['heal']['seed'] == 0
    assert header['heal']['after']['loss'] <= header['heal']['before']['loss']
    log = next(Path(whole.log_dir).glob('*.log')).read_text()
    assert 'pruning: healed on 18 images' in log and 'repeat itself' not in log
    # From before and after surgery.
    for epoch in (1, 2):
        cfg.load_from, cfg.resume = str(tmp_path / f'work/epoch_{epoch}.pth'), True
        cfg.work_dir = str(tmp_path / f'resumed{epoch}')
        cfg.experiment_name = f'resumed{epoch}{tmp_path.name}'
        resumed = Runner.from_cfg(cfg)
        resumed.train()
        assert_same(whole.model.state_dict(), resumed.model.state_dict())
        assert read_header(f'{cfg.work_dir}/slim.safetensors')['heal'] == header['heal']
    cfg.custom_hooks[0].heal = dict(epochs=3, lr=1e-3)
    cfg.experiment_name = 'other' + tmp_path.name
    with pytest.raises(ValueError, match="heal is {'epochs': 3.* here and {'epochs': 2"):
        Runner.from_cfg(cfg).train()


def test_mcf_heals_towards_the_network_before_masking(cfg, tmp_path, monkeypatch):
    cfg.custom_hooks[0].heal = dict(epochs=1)
    del cfg.train_dataloader.dataset.pipeline[1]
    seen, original = {}, engine.heal_model

    def look(student, dense, *args, **kwargs):
        seen['dense'] = copy.deepcopy(dense.state_dict())
        seen['student'] = {ffn.name: ffn.sizes for ffn in find_ffns(student)}
        return original(student, dense, *args, **kwargs)

    class Look(Hook):
        priority = 'VERY_HIGH'

        def before_train_epoch(self, runner):
            seen.setdefault('start', copy.deepcopy(runner.model.state_dict()))

    monkeypatch.setattr(engine, 'heal_model', look)
    whole = Runner.from_cfg(cfg)
    whole.register_hook(Look())
    whole.train()
    assert_same(seen['dense'], seen['start'])
    assert set(map(str, seen['student'].values())) == {"{'inputs': 9, 'hidden': 24}"}
    # From a checkpoint of masking: the dense network is found again.
    cfg.load_from, cfg.resume = str(tmp_path / 'work/epoch_2.pth'), True
    cfg.experiment_name = 'resumed' + tmp_path.name
    resumed = Runner.from_cfg(cfg)
    resumed.train()
    assert_same(whole.model.state_dict(), resumed.model.state_dict())


@pytest.mark.parametrize(
    'heal, message',
    [
        (3, 'heal must be a dict such as .* got 3'),
        (dict(), 'either minutes or epochs'),
        (dict(epochs=-1), 'heal: epochs must be at least 1, got -1'),
        (dict(epochs=1, rate=1), "heal: no setting 'rate'"),
    ],
)
def test_bad_settings_end_a_run_before_it_starts(run_cfg, heal, message):
    run_cfg.custom_hooks[0].heal = heal
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(run_cfg)


def test_one_image_is_too_few_and_ablations_are_not_healed(run_cfg):
    run_cfg.custom_hooks[0].num_images = 1
    with pytest.raises(ValueError, match='heal needs at least 2 images'):
        Runner.from_cfg(run_cfg).train()
    assert not list(Path(run_cfg.work_dir).glob('*.pth'))
    hook = dict(type='mcf_mm.MCFPruningHook', last_step='crs', heal=dict(epochs=1))
    run_cfg.custom_hooks = [hook]
    with pytest.raises(ValueError, match='heal is for a network that is cut: .* got crs'):
        Runner.from_cfg(run_cfg)


def test_minutes_in_a_run_are_told_of(run_cfg):
    run_cfg.custom_hooks[0].heal = dict(minutes=0.02)
    run_cfg.train_cfg.max_epochs = 2
    runner = Runner.from_cfg(run_cfg)
    runner.train()
    log = next(Path(runner.log_dir).glob('*.log')).read_text()
    assert 'healing by minutes depends on the speed of the machine' in log
    assert read_header(f'{run_cfg.work_dir}/slim.safetensors')['heal']['minutes'] == 0.02


def test_two_processes_heal_alike(run_cfg, tmp_path):
    cfg = run_cfg
    cfg.custom_imports = dict(imports=['recording'])
    cfg.custom_hooks = [
        dict(type='mcf_mm.MCFPruningHook', ratio=0.4, num_images=10, heal=dict(epochs=2, lr=1e-3)),
        dict(type='EMAHook', momentum=0.1),
        dict(type='RecordHook'),
    ]
    cfg.train_cfg.max_epochs = 4
    cfg.dump(tmp_path / 'micro.py')
    launch(tmp_path / 'micro.py', '--work-dir', tmp_path / 'two')
    first, second = records(tmp_path / 'two')
    assert first['wrapped'] and second['wrapped']
    for key in ('weights', 'average'):
        assert_same(first[key], second[key])
    header = read_header(tmp_path / 'two' / 'slim.safetensors')
    assert header['heal']['images'] == 18
    log = next((tmp_path / 'two').rglob('*.log')).read_text()
    assert log.count('pruning: healed on 18 images') == 1


def test_a_run_killed_while_healing_heals_again(run_cfg, tmp_path):
    cfg = run_cfg
    cfg.custom_imports = dict(imports=['recording'])
    cfg.custom_hooks.append(dict(type='KillInHealing'))
    cfg.dump(tmp_path / 'micro.py')
    train = [ROOT / 'tools' / 'train.py', tmp_path / 'micro.py', '--work-dir']
    done = run_tool([*train, tmp_path / 'killed'], env=environment(KILL_IN_HEALING='1'))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [file.name for file in (tmp_path / 'killed').glob('*.pth')] == ['epoch_1.pth']
    for folder, more in (('killed', ['--resume']), ('whole', [])):
        done = run_tool([*train, tmp_path / folder, *more], env=environment())
        assert done.returncode == 0, done.stderr
    first, second = (
        read_state_dict(str(tmp_path / folder / 'slim.safetensors'))
        for folder in ('killed', 'whole')
    )
    assert_same(first, second)
