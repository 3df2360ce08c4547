"""The dense network teaches the pruned one."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from recording import find_hook

from mcf_mm.engine import MCFPruningHook
from mcf_mm.engine.networks import build_model
from mcf_mm.engine.teacher import Teacher
from mcf_mm.pruning import prune
from mcf_mm.weights.checkpoint import read_state_dict, save_state_dict


@pytest.fixture
def dense(cfg):
    torch.manual_seed(0)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.nn.init.normal_(model.head.layers.head.weight)
    return model


@pytest.fixture
def batch():
    labels = [DataSample().set_gt_label(number % 2) for number in range(4)]
    return torch.randn(4, 3, 32, 32), labels


def test_a_copy_has_nothing_to_learn(dense, batch):
    student = copy.deepcopy(dense).train()
    Teacher(dense, logits=1.0, blocks=1.0).attach(student)
    losses = student(*batch, mode='loss')
    assert set(losses) == {'loss', 'loss_teacher_logits', 'loss_teacher_blocks'}
    assert abs(losses['loss_teacher_logits']) < 1e-6
    assert losses['loss_teacher_blocks'] < 1e-10


def test_losses_of_a_pruned_student(dense, batch):
    student = copy.deepcopy(dense)
    prune(student, [batch[0]], forward=lambda x: student(x, mode='tensor'))
    own = student(*batch, mode='loss')['loss']
    Teacher(dense, logits=2.0, blocks=0.5, temperature=3.0).attach(student)
    losses = student(*batch, mode='loss')
    torch.testing.assert_close(losses['loss'], own)
    wanted, seen = dense(batch[0]), student(batch[0])
    soft = (wanted / 3).softmax(-1)
    cross = -(soft * (seen / 3).log_softmax(-1)).sum(-1).mean()
    entropy = -(soft * soft.log()).sum(-1).mean()
    expected = 2 * 9 * (cross - entropy)
    torch.testing.assert_close(losses['loss_teacher_logits'], expected)
    outputs = []
    for model in (dense, student):
        handles = [
            layer.ffn.register_forward_hook(lambda *args: outputs.append(args[2]))
            for layer in model.backbone.layers
        ]
        model(batch[0])
        for handle in handles:
            handle.remove()
    relative = [
        F.mse_loss(small, full) / full.square().mean()
        for full, small in zip(outputs[:3], outputs[3:], strict=True)
    ]
    torch.testing.assert_close(losses['loss_teacher_blocks'], 0.5 * torch.stack(relative).mean())
    sum(losses.values()).backward()
    assert student.backbone.layers[0].ffn.layers[1].weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in dense.parameters())


def test_logits_need_a_classifier(dense):
    del dense.head
    with pytest.raises(ValueError, match='logits is 1.0, but ImageClassifier has no classifier'):
        Teacher(dense)


def test_it_teaches_in_recovery_only_and_after_resume_too(cfg, tmp_path):
    cfg.custom_hooks[0].teacher = dict(logits=1.0, blocks=1.0)
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    cfg.custom_hooks.append(dict(type='mcf_mm.SameRunHook'))
    del cfg.train_dataloader.dataset.pipeline[1]
    whole = Runner.from_cfg(cfg)
    whole.train()
    lines = (Path(whole.log_dir) / 'vis_data' / 'scalars.json').read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    taught = {entry['epoch'] for entry in entries if 'loss_teacher_logits' in entry}
    assert taught == {4, 5}
    assert whole.cfg.data_preprocessor == cfg.data_preprocessor  # which models change
    for epoch in (2, 4):
        cfg.load_from, cfg.resume = str(tmp_path / f'work/epoch_{epoch}.pth'), True
        cfg.experiment_name = f'resumed{epoch}{tmp_path.name}'
        resumed = Runner.from_cfg(cfg)
        resumed.train()
        for key, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[key]), key


@pytest.mark.parametrize('start_epoch', [0, 1, 2])
def test_the_network_at_the_start_of_masking_teaches(cfg, start_epoch):
    cfg.custom_hooks[0].update(teacher=dict(logits=1.0), start_epoch=start_epoch)
    cfg.train_cfg.max_epochs = start_epoch + 4
    begun = []

    class Look(Hook):
        priority = 'VERY_HIGH'

        def before_train_epoch(self, runner):
            begun.append({k: v.clone() for k, v in runner.model.state_dict().items()})

    runner = Runner.from_cfg(cfg)
    runner.register_hook(Look())
    runner.train()
    teacher = find_hook(runner, MCFPruningHook).pruning.teacher.teacher.model
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, begun[start_epoch][key]), key


@pytest.mark.parametrize('epoch', [2, 4])  # in masking, in recovery
def test_the_teacher_of_another_run_does_not_teach(cfg, tmp_path, epoch):
    cfg.custom_hooks[0].teacher = dict(logits=1.0)
    del cfg.train_dataloader.dataset.pipeline[1]
    whole = Runner.from_cfg(cfg)
    whole.train()
    own, other = tmp_path / 'work', tmp_path / 'other'
    weights = dict(read_state_dict(str(own / 'teacher.safetensors')))
    weights['head.layers.head.bias'] = weights['head.layers.head.bias'] + 5
    save_state_dict(other / 'teacher.safetensors', weights, {})

    def resumed(name: str) -> Runner:
        cfg.load_from, cfg.resume = str(own / f'epoch_{epoch}.pth'), True
        cfg.work_dir, cfg.experiment_name = str(other), name + tmp_path.name
        return Runner.from_cfg(cfg)

    # That beside the checkpoint is the right one, and goes along.
    runner = resumed('first')
    runner.train()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, runner.model.state_dict()[key]), key
    right = (own / 'teacher.safetensors').read_bytes()
    assert (other / 'teacher.safetensors').read_bytes() == right
    for folder in (own, other):
        save_state_dict(folder / 'teacher.safetensors', weights, {})
    with pytest.raises(FileNotFoundError, match='teacher.safetensors is damaged or of another run'):
        resumed('second').train()


def test_a_dense_network_that_does_not_fit_is_named(cfg, tmp_path):
    teacher = dict(type='mcf_mm.TeacherHook', config=str(tmp_path / 'dense.py'))
    cfg.custom_hooks = []
    cfg.dump(teacher['config'])
    weights = build_model(cfg).state_dict()
    path = tmp_path / 'dense.pth'
    cfg.custom_hooks = [dict(teacher, checkpoint=str(path))]
    for name, change, message in (
        ('wide', lambda w: w.update({'head.layers.head.bias': torch.ones(3)}), r'dense.pth has 1'),
        ('less', lambda w: w.pop('backbone.ln1.bias'), r'dense.pth.* lacks 1 of the weights'),
        ('nan', lambda w: w['backbone.ln1.bias'].fill_(float('nan')), r'dense.pth is NaN'),
    ):
        changed = {key: value.clone() for key, value in weights.items()}
        change(changed)
        torch.save(changed, path)
        cfg.experiment_name = name + tmp_path.name
        with pytest.raises(ValueError, match=message):
            Runner.from_cfg(cfg).train()


def test_blocks_that_put_out_other_shapes_are_named(dense, batch):
    student = copy.deepcopy(dense).train()
    Teacher(dense, logits=0, blocks=1.0).attach(student)
    dense.backbone.layers[1].ffn.register_forward_hook(lambda *args: args[2][:, :3])
    with pytest.raises(ValueError, match=r'layers.1.ffn puts out \(4, 17, 16\) in training and'):
        student(*batch, mode='loss')


def test_nothing_is_written_when_the_run_is_refused(cfg):
    cfg.custom_hooks[0].update(teacher=dict(logits=1.0), start_epoch=9)
    with pytest.raises(ValueError, match='max_epochs is 5'):
        Runner.from_cfg(cfg).train()
    assert not (Path(cfg.work_dir) / 'teacher.safetensors').exists()
