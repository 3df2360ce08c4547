"""Killed runs go on to the same weights; damaged checkpoints are not taken."""

import os
import signal

import pytest
import torch
from fork_server import run_tool
from mmengine.config import Config
from mmengine.runner import Runner
from recording import ROOT, environment

from mcf_mm.engine.resume import is_whole, latest_checkpoint, make_resumable, resume
from mcf_mm.weights.checkpoint import load_from_safetensors


def train(config, *arguments, **more):
    command = [ROOT / 'tools' / 'train.py', config, *arguments]
    return run_tool(command, env=environment(**more), timeout=300)


@pytest.fixture
def random_cfg(cfg):
    """As much chance as there is: in a worker that lives on, in the model, and in the order."""
    cfg.train_dataloader.update(num_workers=1, persistent_workers=True)
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline.insert(1, dict(type='RandomResizedCrop', scale=32))  # draws from NumPy or Python
    pipeline.insert(2, dict(type='torchvision/ColorJitter', brightness=0.4))  # from torch
    pipeline.insert(2, dict(type='NumpyToPIL'))
    pipeline.insert(4, dict(type='PILToNumpy'))
    cfg.model.backbone.update(drop_rate=0.1, drop_path_rate=0.2)
    # In the main process, as mmpretrain does it.
    cfg.model.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8)])
    cfg.model.head.loss = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    return cfg


def test_a_run_killed_again_and_again_ends_with_the_same_weights(random_cfg, tmp_path):
    cfg, killed = random_cfg, tmp_path / 'killed'
    cfg.custom_imports = dict(imports=['recording'])
    cfg.custom_hooks += [dict(type='RecordHook'), dict(type='KillHook')]
    cfg.dump(tmp_path / 'micro.py')
    # In masking, between surgery and the next checkpoint, and while a checkpoint of the small
    # network is written; only one checkpoint is kept, so each kill could be the end of it.
    moments = [('1 train', 1), ('3 start', 3), ('3 save', 3)]
    for moment, last in moments:
        arguments = ['--resume'] if killed.is_dir() else []
        done = train(tmp_path / 'micro.py', '--work-dir', killed, *arguments, KILL=moment)
        wanted = signal.SIGXFSZ if moment.endswith('save') else signal.SIGKILL
        assert done.returncode == -wanted, done.stderr
        assert [file.name for file in killed.glob('*.pth')] == [f'epoch_{last}.pth']
    assert (killed / 'epoch_4.pth.part').stat().st_size == 20_000
    done = train(tmp_path / 'micro.py', '--work-dir', killed, '--resume')
    assert done.returncode == 0, done.stderr
    assert [file.name for file in killed.glob('*.pth*')] == ['epoch_5.pth']

    cfg.work_dir = str(tmp_path / 'whole')
    make_resumable(cfg)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    Runner.from_cfg(cfg).train()
    torch.set_num_threads(threads)
    first, second = (torch.load(path / 'rank0.pt') for path in (killed, tmp_path / 'whole'))
    for key in ('weights', 'average'):
        assert first[key].keys() == second[key].keys()
        for name, value in first[key].items():
            assert torch.equal(value, second[key][name]), name
    first, second = (
        load_from_safetensors(str(path / 'slim.safetensors'))
        for path in (killed, tmp_path / 'whole')
    )
    assert first['meta'] == second['meta']


def test_epochs_differ_and_workers_are_seeded(random_cfg):
    """What the loader gives in an epoch depends on the epoch, not on the epochs before it."""
    make_resumable(random_cfg)
    random_cfg.custom_hooks = [dict(type='mcf_mm.EpochSeedHook')]
    random_cfg.train_dataloader.sampler.shuffle = False
    runner = Runner.from_cfg(random_cfg)
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'EpochSeedHook')
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    loader = runner.train_dataloader
    hook.before_train(runner)

    def images(epoch):
        runner.train_loop._epoch = epoch
        hook.before_train_epoch(runner)
        draw = torch.rand(1)
        return torch.stack([image for batch in loader for image in batch['inputs']]), draw

    epochs = {epoch: images(epoch) for epoch in (2, 0, 1)}
    for epoch, (first, draw) in epochs.items():
        again, redraw = images(epoch)
        assert torch.equal(first, again) and torch.equal(draw, redraw)
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert not torch.equal(epochs[0][1], epochs[1][1])


@pytest.fixture
def folder(tmp_path):
    """A work directory with three checkpoints."""
    for number in (9, 10, 11):
        path = tmp_path / f'epoch_{number}.pth'
        torch.save(dict(weights=torch.randn(1000)), path)
        os.utime(path, (number, number))
    torch.save(dict(), tmp_path / 'best_accuracy_epoch_11.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_11.pth'))
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_checkpoint_that_was_noted_is_taken(folder):
    assert latest_checkpoint(folder) == str(folder / 'epoch_11.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_9.pth'))
    assert latest_checkpoint(folder) == str(folder / 'epoch_9.pth')
    (folder / 'last_checkpoint').write_text('s3://somewhere/epoch_3.pth')
    assert latest_checkpoint(folder) == 's3://somewhere/epoch_3.pth'


def test_a_damaged_one_gives_way_to_the_newest_whole_one(folder, capsys):
    cut(folder / 'epoch_11.pth')
    assert not is_whole(folder / 'epoch_11.pth')
    assert latest_checkpoint(folder) == str(folder / 'epoch_10.pth')
    said = capsys.readouterr().out
    assert 'epoch_11.pth, which is not whole: resuming from' in said and 'epoch_10.pth' in said
    (folder / 'last_checkpoint').write_text('')
    assert latest_checkpoint(folder) == str(folder / 'epoch_10.pth')


def test_flipped_bytes_are_noticed(folder):
    path = folder / 'epoch_11.pth'
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert not is_whole(path)


def test_nothing_whole_is_an_error_and_nothing_at_all_a_start(folder):
    for path in folder.glob('*.pth'):
        cut(path)
    with pytest.raises(ValueError, match=r'no whole checkpoint in .*epoch_11\.pth.* is missing'):
        latest_checkpoint(folder)
    cfg = Config(dict(work_dir=str(folder), load_from='dense.pth'))
    with pytest.raises(ValueError, match=r'epoch_9\.pth is damaged'):
        resume(cfg, str(folder / 'epoch_9.pth'))
    cfg.work_dir = str(folder / 'new')
    resume(cfg)
    assert (cfg.resume, cfg.load_from) == (False, 'dense.pth')


def test_hooks_are_added_once_and_other_checkpoint_hooks_left_alone():
    cfg = Config(dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=7))))
    make_resumable(cfg)
    make_resumable(cfg)
    names = ('EpochSeedHook', 'SameRunHook')
    assert cfg.custom_hooks == [dict(type=f'mcf_mm.{name}') for name in names]
    assert cfg.default_hooks.checkpoint == dict(type='mcf_mm.AtomicCheckpointHook', interval=7)
    for checkpoint in (None, dict(type='OwnCheckpointHook')):
        cfg = Config(dict(default_hooks=dict(checkpoint=checkpoint)))
        make_resumable(cfg)
        assert cfg.default_hooks.checkpoint == checkpoint
