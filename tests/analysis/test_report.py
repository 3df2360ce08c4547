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

from mcf_mm.analysis.complexity import build_model, count_complexity
from mcf_mm.analysis.report import report_checkpoint, write_report
from mcf_mm.pruning import SparseFFN, find_ffns, prune, prune_ffns, x_transformation
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
    before = count_complexity(model, (32, 32))
    sparse = {}
    for ffn in find_ffns(model):
        scores = [torch.rand(size, generator=generator) for size in ((64, 16), (16, 64))]
        sparse[ffn.name] = SparseFFN.from_scores(scores, scores, 0.4, 0.4)
    structure = x_transformation(sparse, 0.4, 0.4)
    prune_ffns(model, structure)
    return dict(
        model=model,
        arguments=dict(
            structure=structure,
            importance={name: (ffn.scores1, ffn.scores2) for name, ffn in sparse.items()},
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


def test_importance_must_cover_the_structure(pruned, tmp_path):
    arguments = dict(pruned['arguments'], importance={})
    with pytest.raises(ValueError, match=r"no scores for 'backbone\.layers\.0\.ffn'"):
        write_report(tmp_path, **arguments)


def test_without_matplotlib_the_log_says_what_to_install(pruned, tmp_path, monkeypatch):
    log = tmp_path / 'run.log'
    MMLogger.get_instance(tmp_path.name, log_file=str(log))
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    monkeypatch.delitem(sys.modules, 'mcf_mm.analysis.plots', raising=False)
    monkeypatch.delattr('mcf_mm.analysis.plots', raising=False)
    assert write_report(tmp_path / 'report', **pruned['arguments']) == []
    assert not (tmp_path / 'report').exists()
    assert log.read_text().count('matplotlib is missing, pip install matplotlib') == 1


def test_rows_with_own_inputs_and_networks_without_slim_class(config, tmp_path, monkeypatch):
    from mcf_mm.analysis import report

    costs = []
    monkeypatch.setattr(report, '_overview', lambda *args: costs.append(args) or {})
    model = build_model(config)
    images = [torch.randn(4, 3, 32, 32)]
    prune(model, images, last_step='crs', forward=lambda x: model(x, mode='tensor'))
    save_state_dict(tmp_path / 'rows.safetensors', model.state_dict(), {})
    rows = Config(config.to_dict())
    rows.model.backbone.update(ffn_inputs=9, ffn_hiddens=38, ffn_selection='row')
    report_checkpoint(rows, tmp_path / 'rows.safetensors', tmp_path)
    model = build_model(config)
    prune(model, images, forward=lambda x: model(x, mode='tensor'))
    save_state_dict(tmp_path / 'slim.safetensors', model.state_dict(), {})
    other = Config(config.to_dict())
    other.model.backbone.update(
        type='mcf_mm.SlimModel',
        base='mmpretrain.VisionTransformer',
        ffn_sizes={f'layers.{layer}.ffn': (9, 38) for layer in range(2)},
    )
    report_checkpoint(other, tmp_path / 'slim.safetensors', tmp_path)
    for (_, full, sizes, inputs, before, after), shown in zip(costs, (0, 2), strict=True):
        assert set(full.values()) == {(16, 64)} and set(sizes.values()) == {(9, 38)}
        assert len(inputs) == shown
        assert after.params < before.params and after.macs < before.macs
    assert costs[0][5].macs > costs[1][5].macs


def test_a_finished_checkpoint(config, pruned, tmp_path):
    checkpoint = tmp_path / 'slim.safetensors'
    save_state_dict(checkpoint, pruned['model'].state_dict(), {})
    dense = report_checkpoint(config, checkpoint, tmp_path / 'dense')
    assert {path.stem for path in dense} == {'kept_sizes', 'kept_inputs', 'parts'}
    # The config of the pruned network tells the same.
    slim = Config(config.to_dict())
    slim.model.backbone.update(ffn_inputs=9, ffn_hiddens=38)
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
        ('other.safetensors', r'error: .*other.safetensors has no .backbone\.layers\.0\.ffn'),
    ):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, [tmp_path / name, *arguments])])
        with pytest.raises(SystemExit, match=message):
            runpy.run_path(str(TOOL), run_name='__main__')
