"""The report of a pruned network: pictures of the real sizes, as files and in TensorBoard."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fork_server import run_tool
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.visualization import Visualizer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcf_mm.analysis import report
from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.analysis.report import write_report
from mcf_mm.engine.networks import build_model
from mcf_mm.engine.report import report_checkpoint
from mcf_mm.pruning import Structure, cut, find_ffns, find_units, prune, uniform
from mcf_mm.pruning.criteria.regular import SparseFFN, x_transformation
from mcf_mm.weights.checkpoint import save_state_dict

TOOL = Path(__file__).parents[2] / 'tools' / 'report.py'


@pytest.fixture
def config() -> Config:
    backbone = dict(
        type='mcf_mm.SlimVisionTransformer',
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=64),
        img_size=32,
        patch_size=8,
    )
    head = dict(type='VisionTransformerClsHead', num_classes=2, in_channels=16)
    model = dict(type='ImageClassifier', backbone=backbone, head=head)
    return Config(dict(default_scope='mmpretrain', model=model))


@pytest.fixture
def pruned(config) -> dict:
    """A network pruned by known scores, with what the report takes of it."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(config)
    before, full = count_complexity(model, (32, 32)), find_units(model).sizes
    sparse = {}
    for ffn in find_ffns(model):
        scores = [torch.rand(size, generator=generator) for size in ((64, 16), (16, 64))]
        sparse[ffn.name] = SparseFFN.from_scores(scores, scores, (9, 38))
    structure = x_transformation(sparse, uniform(find_units(model), 0.4))
    cut(model, structure)
    return dict(
        model=model,
        arguments=dict(
            structure=structure,
            full=full,
            importance={
                name: dict(inputs=ffn.scores1.sum(0), hidden=ffn.scores2.sum(0))
                for name, ffn in sparse.items()
            },
            before=before,
            after=count_complexity(model, (32, 32)),
        ),
    )


NAMES = {
    'kept_sizes',
    'kept_inputs',
    'parts',
    'importance_backbone.layers.0.ffn',
    'importance_backbone.layers.1.ffn',
}


def test_pictures_as_files_and_in_tensorboard(pruned, tmp_path):
    visualizer = Visualizer(
        vis_backends=[dict(type='TensorboardVisBackend'), dict(type='LocalVisBackend')],
        save_dir=str(tmp_path / 'vis'),
    )
    paths = write_report(tmp_path / 'new' / 'report', **pruned['arguments'], visualizer=visualizer)
    visualizer.close()
    assert {path.stem for path in paths} == NAMES
    assert sorted(paths) == sorted((tmp_path / 'new' / 'report').iterdir())
    for path in paths:
        picture = np.asarray(Image.open(path))
        assert min(picture.shape[:2]) > 100 and picture.std() > 10
    events = next((tmp_path / 'vis').rglob('events.out.tfevents.*'))
    shown = EventAccumulator(str(events), size_guidance=dict(images=0)).Reload()
    assert set(shown.Tags()['images']) == {f'mcf_{name}' for name in NAMES}
    # An event of TensorBoard holds a whole PNG file: that of the figure, in colour.
    event = shown.Images('mcf_parts')[0]
    (tmp_path / 'event.png').write_bytes(event.encoded_image_string)
    picture = np.asarray(Image.open(tmp_path / 'event.png').convert('RGB')).astype(int)
    assert picture.shape[:2] == (event.height, event.width)
    assert (picture.max(axis=2) - picture.min(axis=2)).max() > 100
    local = {path.name for path in (tmp_path / 'vis').rglob('*.png')}
    assert local == {f'mcf_{name}_0.png' for name in NAMES}


def test_units_without_scores_have_no_picture_of_them(pruned, tmp_path):
    importance = dict(pruned['arguments']['importance'])
    del importance['backbone.layers.0.ffn']
    paths = write_report(tmp_path, **dict(pruned['arguments'], importance=importance))
    assert {path.stem for path in paths} == NAMES - {'importance_backbone.layers.0.ffn'}


def test_without_matplotlib_the_log_says_what_to_install(pruned, tmp_path, monkeypatch):
    log = tmp_path / 'run.log'
    MMLogger.get_instance(tmp_path.name, log_file=str(log))
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    monkeypatch.delitem(sys.modules, 'mcf_mm.analysis.plots', raising=False)
    monkeypatch.delattr('mcf_mm.analysis.plots', raising=False)
    assert write_report(tmp_path / 'report', **pruned['arguments']) == []
    assert not (tmp_path / 'report').exists()
    assert log.read_text().count('matplotlib is missing, pip install matplotlib') == 1


@pytest.fixture
def drawn(monkeypatch) -> list[dict]:
    """What pictures of the whole network show: kept and dense sizes, and inputs by channel."""
    from mcf_mm.analysis import plots

    figures = []
    monkeypatch.setattr(report, 'write_figures', lambda _, new, *args: figures.append(new) or [])
    monkeypatch.setattr(plots, 'kept_sizes_figure', lambda *args: args)
    monkeypatch.setattr(plots, 'kept_inputs_figure', lambda *args: args)
    monkeypatch.setattr(plots, 'parts_figure', lambda *args: args)
    monkeypatch.setattr(plots, 'importance_figure', lambda *args: args)
    return figures


def test_pictures_show_all_units_and_the_kinds_that_were_pruned(config, drawn, tmp_path):
    """So that the numbers below the bars are those of the layers."""
    model = build_model(config)
    full, cost = find_units(model).sizes, count_complexity(model, (32, 32))
    ffns, attentions = (
        [f'backbone.layers.{i}.{kind}' for i in range(2)] for kind in ('ffn', 'attn')
    )

    def kept(structure: dict) -> dict:
        write_report(tmp_path, Structure(structure), full, {}, cost, cost)
        return drawn[-1]

    figures = kept({ffns[1]: dict(hidden=torch.arange(38))})
    assert figures['kept_sizes'][0] == {ffns[0]: dict(hidden=64), ffns[1]: dict(hidden=38)}
    assert set(figures) == {'kept_sizes', 'parts'}
    figures = kept({ffns[1]: dict(inputs=torch.tensor([1, 4]), hidden=torch.arange(64))})
    assert figures['kept_sizes'][0] == {ffns[0]: dict(inputs=16), ffns[1]: dict(inputs=2)}
    inputs, width = figures['kept_inputs']
    assert width == 16 and {name: index.tolist() for name, index in inputs.items()} == {
        ffns[0]: list(range(16)),
        ffns[1]: [1, 4],
    }
    heads = {name: torch.tensor([1]) for name in attentions}
    figures = kept(
        {name: dict(heads=index, v=torch.arange(8, 11)) for name, index in heads.items()}
    )
    assert figures['kept_sizes'][0] == dict.fromkeys(attentions, dict(heads=1, v=3))


def test_networks_without_slim_class(config, drawn, tmp_path):
    model = build_model(config)
    images = [torch.randn(4, 3, 32, 32)]
    prune(model, images, forward=lambda x: model(x, mode='tensor'))
    save_state_dict(tmp_path / 'slim.safetensors', model.state_dict(), {})
    ffns = [f'layers.{layer}.ffn' for layer in range(2)]
    for arguments in (
        dict(sizes={ffn: dict(inputs=9, hidden=38) for ffn in ffns}),
        dict(ffn_sizes=dict.fromkeys(ffns, (9, 38))),  # of mcf_mm 0.1
    ):
        other = Config(config.to_dict())
        other.model.backbone.update(
            type='mcf_mm.SlimModel', base='mmpretrain.VisionTransformer', **arguments
        )
        report_checkpoint(other, tmp_path / 'slim.safetensors', tmp_path)
        sizes, full = drawn[-1]['kept_sizes']
        assert set(sizes) == {f'backbone.{ffn}' for ffn in ffns}
        assert all(full[name] == dict(inputs=16, hidden=64) for name in sizes)
        assert all(own == dict(inputs=9, hidden=38) for own in sizes.values())
        inputs, _ = drawn[-1]['kept_inputs']
        for ffn in find_ffns(model):
            assert torch.equal(inputs[ffn.name], ffn.fc1.inputs)
        before, after = drawn[-1]['parts']
        assert after == count_complexity(model, (32, 32))
        assert after.params < before.params and after.macs < before.macs


def test_a_checkpoint_with_pruned_attention(config, drawn, tmp_path):
    model = build_model(config)
    ratios = dict(heads=0.5, qk=0.5, v=0.25, hidden=0.4)
    prune(model, criterion='magnitude', ratios=ratios)
    save_state_dict(tmp_path / 'slim.safetensors', model.state_dict(), {})
    report_checkpoint(config, tmp_path / 'slim.safetensors', tmp_path)
    sizes, full = drawn[-1]['kept_sizes']
    assert sizes == {
        f'backbone.layers.{layer}.{unit}': own
        for layer in range(2)
        for unit, own in (('attn', dict(heads=1, qk=4, v=6)), ('ffn', dict(hidden=38)))
    }
    assert full['backbone.layers.1.attn'] == dict(heads=2, qk=8, v=8)
    assert drawn[-1]['parts'][1] == count_complexity(model, (32, 32))
    assert 'kept_inputs' not in drawn[-1]


def test_rows_with_inputs_of_their_own_are_refused(config, pruned, tmp_path):
    """mcf_mm 0.1 could select them."""
    weights = pruned['model'].state_dict()
    name = 'backbone.layers.0.ffn.layers.0.0'
    weights[f'{name}.inputs'] = torch.arange(9).repeat(38, 1)
    save_state_dict(tmp_path / 'rows.safetensors', weights, {})
    config.model.backbone.update(ffn_inputs=9, ffn_hiddens=38, ffn_selection='row')
    with pytest.raises(ValueError, match="ffn_selection='row'.*prune the dense network again"):
        report_checkpoint(config, tmp_path / 'rows.safetensors', tmp_path)


def test_a_finished_checkpoint(config, pruned, tmp_path):
    checkpoint = tmp_path / 'slim.safetensors'
    save_state_dict(checkpoint, pruned['model'].state_dict(), {})
    dense = report_checkpoint(config, checkpoint, tmp_path / 'dense')
    assert {path.stem for path in dense} == {'kept_sizes', 'kept_inputs', 'parts'}
    # The config of the pruned network tells the same.
    slim = Config(config.to_dict())
    slim.model.backbone.update(sizes=dict(inputs=[9, 9], hidden=38))
    slim = report_checkpoint(slim, checkpoint, tmp_path / 'slim')
    # And so does the report of the run.
    run = write_report(tmp_path / 'run', **pruned['arguments'])
    for paths in (slim, run):
        for path in dense:
            same = next(other for other in paths if other.name == path.name)
            assert np.array_equal(Image.open(path), Image.open(same)), same


def test_tool(config, pruned, tmp_path, monkeypatch):
    config.dump(tmp_path / 'dense.py')
    save_state_dict(tmp_path / 'slim.safetensors', pruned['model'].state_dict(), {})
    arguments = ['--config', tmp_path / 'dense.py', '--out', tmp_path / 'out']
    done = run_tool([TOOL, tmp_path / 'slim.safetensors', *arguments])
    assert done.returncode == 0, done.stderr
    assert 'parts.png' in done.stdout and (tmp_path / 'out' / 'parts.png').is_file()

    save_state_dict(tmp_path / 'other.safetensors', {'x': torch.zeros(1)}, {})
    for name, message in (
        ('absent.safetensors', 'error: no checkpoint .*absent.safetensors'),
        ('other.safetensors', r'error: .*other.safetensors has no .backbone\.layers\.0\.attn\.qkv'),
    ):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, [tmp_path / name, *arguments])])
        with pytest.raises(SystemExit, match=message):
            runpy.run_path(str(TOOL), run_name='__main__')
