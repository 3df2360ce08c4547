"""Parameters and MACs, against the figures of the design and against formulas."""

import json
import math
import runpy
import sys
from pathlib import Path

import mmcv
import pytest
import timm
import torch
from fork_server import run_tool
from mmengine.config import Config
from PIL import Image
from torch import nn

from mcf_mm.analysis.complexity import PARTS, count_complexity, masked, mean_complexity, resized
from mcf_mm.datasets.transforms import PatchResize
from mcf_mm.engine.config import dataset_shapes, input_shape
from mcf_mm.engine.hooks import MCFPruningHook
from mcf_mm.engine.networks import build_model, pruned_network
from mcf_mm.pruning import find_ffns, find_units, measure_costs, uniform

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'complexity.py'


def shrunk(model: nn.Module, inputs: float, hidden: float) -> nn.Module:
    return resized(model, uniform(find_units(model), dict(inputs=inputs, hidden=hidden)))


def mcf_config(size: str) -> Config:
    return Config.fromfile(ROOT / f'configs/mcf/mcf_deit-{size}_8xb128_in1k.py')


def millions_and_billions(count) -> tuple[str, str]:
    return f'{count.params / 1e6:.3f}', f'{count.macs / 1e9:.3f}'


@pytest.mark.parametrize(
    'size, dense, pruned',
    [
        ('tiny', ('5.717', '1.254'), ('3.869', '0.890')),
        ('small', ('22.051', '4.599'), ('14.673', '3.147')),
        ('base', ('86.568', '17.564'), ('57.088', '11.759')),
    ],
)
def test_deit_before_and_after_pruning(size, dense, pruned):
    config = mcf_config(size)
    model = build_model(config)
    assert input_shape(config) == (224, 224)
    assert millions_and_billions(count_complexity(model, (224, 224))) == dense
    slim = pruned_network(config, model)
    assert find_units(slim).sizes == find_units(shrunk(model, 0.4, 0.4)).sizes
    assert millions_and_billions(count_complexity(slim, (224, 224))) == pruned
    assert millions_and_billions(count_complexity(model, (224, 224))) == dense


@pytest.mark.parametrize(
    'name, expected',
    [
        ('mcf_swin-base_16xb64', ('65.113', '11.429')),
        ('mcf-fis_deit-small_8xb128', ('22.051', '4.599')),
        ('mcf-crs_deit-small_8xb128', ('16.378', '3.481')),
        ('direct_deit-small_8xb128', ('14.673', '3.147')),
    ],
)
def test_swin_and_the_rows_of_table_3(name, expected):
    config = Config.fromfile(ROOT / f'configs/mcf/{name}_in1k.py')
    count = count_complexity(pruned_network(config, build_model(config)), (224, 224))
    assert millions_and_billions(count) == expected
    assert count.macs == sum(cost.macs for cost in count.parts.values())


def test_parts_follow_the_formulas():
    model = timm.create_model('deit_tiny_patch16_224', depth=2)
    count = count_complexity(model, (224, 224))
    tokens, width, hidden = 197, 192, 768
    macs = {name: cost.macs for name, cost in count.parts.items()}
    assert tuple(macs) == PARTS
    assert macs == {
        'attention': 2 * (4 * tokens * width**2 + 2 * tokens**2 * width),
        'ffn': 2 * (2 * tokens * width * hidden),
        'patch embedding': 196 * width * 3 * 16 * 16,
        'head': width * 1000,
        'other': 0,
    }
    assert count.macs == sum(macs.values())
    assert count.params == sum(cost.params for cost in count.parts.values())
    assert count.params == sum(p.numel() for p in model.parameters())
    assert count.parts['ffn'].params == 2 * (2 * width * hidden + width + hidden)
    assert count.parts['other'].params == (1 + tokens) * width + 5 * 2 * width
    assert count.to_dict()['parts']['head'] == {'params': 193000, 'macs': 192000}


class Encoder(nn.Module):
    """torch's own attention, which has an operator without formula for inference."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images):
        tokens = images.flatten(2).transpose(1, 2).repeat(1, 1, 3)[..., :8]
        return self.attn(tokens, tokens, tokens, need_weights=False)[0]


class LooksAtValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, images):
        pixels = images.flatten(2).transpose(1, 2)[0]
        return self.head(pixels[: 2 + int(images.sum().item())])


def test_other_networks():
    assert count_complexity(Encoder(), (2, 2)).parts['attention'].macs == 4 * 4 * 64 + 2 * 16 * 8
    assert count_complexity(LooksAtValues(), (2, 2)).parts['head'].macs == 2 * 3 * 5


@torch.no_grad()
def test_the_model_stays_as_it_is():
    model = timm.create_model('deit_tiny_patch16_224', depth=1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sizes = find_units(model).sizes
    count_complexity(shrunk(model, 0.5, 0.25), (224, 224))
    count_complexity(masked(model, uniform(find_units(model), 0.5)), (224, 224))
    assert find_units(model).sizes == sizes
    assert count_complexity(model, (224, 224)).params == sum(p.numel() for p in model.parameters())
    assert model.training and model.blocks[0].mlp.training
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_yolos_counts_as_published():
    """91 classes, position embeddings for 512 x 864: the count of the public code."""
    backbone = dict(
        type='mcf_mm.YOLOSVisionTransformer',
        arch='deit-small',
        img_size=(512, 864),
        with_mid_pos_embed=True,
    )
    head = dict(type='mcf_mm.YOLOSHead', num_classes=91, embed_dims=384)
    normalise = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    config = Config(
        dict(
            default_scope='mmdet',
            model=dict(
                type='mcf_mm.YOLOS',
                data_preprocessor=dict(
                    type='DetDataPreprocessor', pad_size_divisor=32, **normalise
                ),
                backbone=backbone,
                bbox_head=head,
            ),
            test_dataloader=dict(
                dataset=dict(pipeline=[dict(type='Resize', scale=(1333, 800), keep_ratio=True)])
            ),
        )
    )
    assert input_shape(config) == (800, 1344)
    model = build_model(config)
    assert pruned_network(config, model) is None
    count = count_complexity(model, (512, 864))
    assert count.params == 30_684_768
    tokens, width = 32 * 54 + 101, 384
    assert count.parts['attention'].macs == 12 * (4 * tokens * width**2 + 2 * tokens**2 * width)
    pruned = count_complexity(pruned_network(config, model, 0.4), (512, 864))
    assert f'{pruned.params / 1e6:.1f}' == '23.3'


def test_input_shape():
    def shape(*steps, **backbone):
        pipeline = [dict(type='LoadImageFromFile'), *steps]
        return input_shape(
            Config(
                dict(
                    model=dict(backbone=backbone),
                    test_dataloader=dict(dataset=dict(dataset=dict(pipeline=pipeline))),
                )
            )
        )

    crop = dict(type='CenterCrop', crop_size=160)
    assert shape(dict(type='ResizeEdge', scale=256), crop, img_size=224) == (160, 160)
    assert shape(dict(type='mmpretrain.Resize', scale=64)) == (64, 64)
    assert shape(dict(type='Resize', scale=(64, 96))) == (96, 64)
    assert shape(dict(type='mcf_mm.PatchResize', scale=(853, 512)), img_size=224) == (512, 853)
    assert shape(img_size=224) == (224, 224)
    # In new-style configs types are classes.
    assert shape(dict(type=PatchResize, scale=(853, 512)), img_size=224) == (512, 853)
    with pytest.raises(ValueError, match='the config says no image size.*--shape HEIGHT WIDTH'):
        shape()


def test_row_masks_count_what_is_not_zero():
    """Each row of fc1 keeps C' weights and each row of fc2 H': nothing else becomes less."""
    model = timm.create_model('deit_tiny_patch16_224', depth=2)
    dense = count_complexity(model, (224, 224))
    sparse = count_complexity(
        masked(model, {'blocks.0.mlp': dict(inputs=100, hidden=500)}), (224, 224)
    )
    zeros = 768 * (192 - 100) + 192 * (768 - 500)
    assert dense.params - sparse.params == zeros
    assert dense.macs - sparse.macs == 197 * zeros
    assert dense.parts['ffn'].params - sparse.parts['ffn'].params == zeros
    assert dense.parts['ffn'].macs - sparse.parts['ffn'].macs == 197 * zeros
    assert {name: dense.parts[name] for name in PARTS if name != 'ffn'} == {
        name: sparse.parts[name] for name in PARTS if name != 'ffn'
    }


def hooked(*hooks: dict) -> Config:
    return Config(dict(custom_hooks=list(hooks)))


def test_sizes_of_the_hook():
    model = timm.create_model('deit_tiny_patch16_224', depth=2)

    def sizes(*hooks: dict, **arguments) -> list[dict]:
        return [ffn.sizes for ffn in find_ffns(pruned_network(hooked(*hooks), model, **arguments))]

    hook = dict(type='mcf_mm.MCFPruningHook', ratio=0.3)
    ema = dict(type='EMAHook')
    assert sizes(ema, dict(hook, hidden_ratio=0.5)) == [dict(inputs=134, hidden=384)] * 2
    # In new-style configs types are classes.
    assert sizes(dict(hook, type=MCFPruningHook)) == [dict(inputs=134, hidden=537)] * 2
    assert sizes(dict(hook, multiple=32)) == [dict(inputs=128, hidden=544)] * 2
    assert sizes(hook, ratio=0.5) == sizes(ratio=0.5) == [dict(inputs=96, hidden=384)] * 2
    assert sizes(dict(hook, last_step='fis')) == [dict(inputs=192, hidden=768)] * 2
    with pytest.raises(ValueError, match='1.5'):
        pruned_network(hooked(dict(hook, input_ratio=1.5)), model)
    with pytest.raises(ValueError, match='no FFN found in Linear'):
        pruned_network(hooked(), nn.Linear(2, 2), 0.4)
    # A network without units can be counted, if nobody asks for it to be pruned.
    assert pruned_network(hooked(ema), nn.Linear(2, 2)) is None


def test_every_kind_of_the_hook_is_counted():
    """As the closed formulas of the policies say."""
    model = timm.create_model('deit_tiny_patch16_224', depth=2)
    ratios = dict(heads=0.34, qk=0.5, v=0.25, inputs=0.4, hidden=0.3)
    hook = dict(type='mcf_mm.PruningHook', criterion='magnitude', ratios=ratios, epoch=0)
    slim = pruned_network(hooked(hook), model)
    assert find_units(slim).sizes == {
        f'blocks.{layer}.{unit}': sizes
        for layer in range(2)
        for unit, sizes in (
            ('attn', dict(heads=1, qk=32, v=48)),
            ('mlp', dict(inputs=115, hidden=537)),
        )
    }
    count = count_complexity(slim, (224, 224))
    costs = measure_costs(model, lambda model: model(torch.zeros(1, 3, 224, 224)))
    assert dict(params=count.params, macs=count.macs) == costs.of(find_units(slim).sizes)
    assert count.parts['attention'].params == 2 * (193 * (32 + 32 + 48) + 49 * 192)


def test_images_have_the_channels_of_the_first_convolution():
    backbone = dict(
        type='mcf_mm.SlimVisionTransformer',
        arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=40),
        img_size=32,
        patch_size=8,
        in_channels=1,
    )
    head = dict(type='VisionTransformerClsHead', num_classes=2, in_channels=16)
    model = dict(type='ImageClassifier', backbone=backbone, head=head)
    model = build_model(Config(dict(default_scope='mmpretrain', model=model)))
    count = count_complexity(model, (32, 32))
    assert count.parts['patch embedding'].macs == 16 * 16 * 1 * 8 * 8
    assert count.params == sum(p.numel() for p in model.parameters())
    # However many groups they are convolved in.
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    assert count_complexity(grouped, (8, 8)).macs == 64 * 4 * 9


def test_tool_prints_one_object():
    config = ROOT / 'configs/mcf/mcf_deit-tiny_8xb128_in1k.py'
    done = run_tool([TOOL, config, '--json'], check=True)
    printed = json.loads(done.stdout)
    assert list(printed) == ['params', 'macs', 'parts', 'pruned']
    assert (printed['params'], printed['macs']) == (5717416, 1253683200)
    assert list(printed['pruned']) == ['params', 'macs', 'parts']
    assert list(printed['pruned']['parts']) == list(PARTS)
    assert printed['pruned']['params'] == 3869416


def test_tool_prints_a_table(monkeypatch, capsys):
    config = ROOT / 'configs/mcf/mcf_deit-tiny_8xb128_in1k.py'
    arguments = [str(TOOL), str(config), '--shape', '112', '224']
    monkeypatch.setattr(sys, 'argv', arguments)
    runpy.run_path(str(TOOL), run_name='__main__')
    printed = capsys.readouterr().out
    assert 'at 112 x 224' in printed
    for text in ('dense', 'pruned', 'patch embedding', '5.717', '3.869'):
        assert text in printed
    monkeypatch.setattr(sys, 'argv', [*arguments, '--ratio', '0.3'])
    runpy.run_path(str(TOOL), run_name='__main__')
    assert '4.276' in capsys.readouterr().out
    monkeypatch.setattr(sys, 'argv', [str(TOOL), 'absent.py'])
    with pytest.raises(SystemExit, match='^error: .*absent.py'):
        runpy.run_path(str(TOOL), run_name='__main__')


def test_mean_over_images_of_the_dataset(detection_cfg, monkeypatch, capsys, tmp_path):
    """By image id, each at its size after the test pipeline; equal to counting each by itself."""
    annotations = tmp_path / 'scenes.json'
    scenes = json.loads(annotations.read_text())
    scenes['images'].reverse()
    annotations.write_text(json.dumps(scenes))
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    detection_cfg.model = dict(
        type='mcf_mm.YOLOS',
        data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
        backbone=dict(type='mcf_mm.YOLOSVisionTransformer', arch=arch, img_size=96),
        bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=2, embed_dims=32),
    )
    detection_cfg.custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=0.5)]
    shapes = dataset_shapes(detection_cfg, 3)
    expected = []
    for i in range(3):
        size = Image.open(tmp_path / f'{i}.png').size
        width, height = mmcv.rescale_size(size, (96, 96))
        expected.append((math.ceil(height // 16 / 2) * 32, math.ceil(width // 16 / 2) * 32))
    assert shapes == expected and len(set(shapes)) > 1

    model = build_model(detection_cfg)
    mean = mean_complexity(model, shapes)
    alone = [count_complexity(model, shape) for shape in shapes]
    assert mean.params == alone[0].params
    assert mean.macs == round(sum(count.macs for count in alone) / 3)
    ffn = round(sum(count.parts['ffn'].macs for count in alone) / 3)
    assert mean.parts['ffn'].macs == ffn

    detection_cfg.dump(tmp_path / 'config.py')
    arguments = [str(TOOL), str(tmp_path / 'config.py'), '--json', '--dataset-images', '3']
    monkeypatch.setattr(sys, 'argv', arguments)
    capsys.readouterr()
    runpy.run_path(str(TOOL), run_name='__main__')
    printed = json.loads(capsys.readouterr().out)
    assert printed['macs'] == mean.macs > printed['pruned']['macs']
    monkeypatch.setattr(sys, 'argv', [*arguments[:-1], '11'])
    with pytest.raises(SystemExit, match='error: 11 images are asked for.* has 10'):
        runpy.run_path(str(TOOL), run_name='__main__')
