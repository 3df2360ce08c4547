"""The dense network teaches the pruned one."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from mcf_mm.engine.teacher import Teacher
from mcf_mm.pruning import prune


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
    del cfg.train_dataloader.dataset.pipeline[1]
    whole = Runner.from_cfg(cfg)
    whole.train()
    lines = (Path(whole.log_dir) / 'vis_data' / 'scalars.json').read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    taught = {entry['epoch'] for entry in entries if 'loss_teacher_logits' in entry}
    assert taught == {4, 5}
    for epoch in (2, 4):
        cfg.load_from, cfg.resume = str(tmp_path / f'work/epoch_{epoch}.pth'), True
        cfg.experiment_name = f'resumed{epoch}{tmp_path.name}'
        resumed = Runner.from_cfg(cfg)
        resumed.train()
        for key, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[key]), key


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
