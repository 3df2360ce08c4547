"""The DetInferencer example of configs/detectors/README.md on a real photo, dense and slim."""

import re
from importlib.metadata import distributions

import mmcv
import pytest
import torch
from fork_server import run_tool
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from test_box_detectors import small_config
from test_detector_configs import CONFIGS

from mcf_mm.engine.networks import build_model
from mcf_mm.pruning import prune
from mcf_mm.registry import DATASETS
from mcf_mm.weights.slim_config import write_slim

INSTALLED = {package.name for package in distributions()}


@pytest.mark.parametrize('pruned', [False, True], ids=['dense', 'slim'])
def test_the_example_of_the_readme(pruned, coco_mini, tmp_path, no_looks):
    cfg = small_config('retinanet_deit-tiny_sfp_2cpu-12e_facemask.py', coco_mini, tmp_path / 'w')
    cfg.model.backbone.init_cfg = None
    cfg.model.bbox_head.num_classes = 3
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    dataset = DATASETS.build(
        dict(cfg.test_dataloader.dataset, type='mmdet.CocoDataset', lazy_init=True, pipeline=[])
    )
    if pruned:
        prune(model, [torch.randn(2, 3, 96, 96)], ratios=0.4)
        write_slim(model, cfg, tmp_path, {}, dataset)
    else:
        cfg.dump(tmp_path / 'slim.py')
        meta = dict(dataset_meta=dataset.metainfo)
        torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'slim.pth')
    photo = sorted((coco_mini / 'val2017').iterdir())[0]
    (tmp_path / 'photo.jpg').write_bytes(photo.read_bytes())

    readme = (CONFIGS / 'detectors' / 'README.md').read_text()
    (script,) = re.findall(r'```python\n(.*?)```', readme, flags=re.DOTALL)
    if not pruned:
        script = script.replace('slim.safetensors', 'slim.pth')
    # The original mmdet cannot even be imported beside an mmcv without operators.
    if 'onedl-mmdetection' not in INSTALLED:
        script = f'import mcf_mm\n{script}'
    script += "\nimport torch\ntorch.save((boxes, picture), 'found.pt')\n"
    done = run_tool(['-c', script], cwd=tmp_path, bare=True)
    assert done.returncode == 0, done.stderr
    # A tuple or a list, as the checkpoint has it.
    assert "'person', 'car', 'chair'" in done.stdout.splitlines()[-1]

    boxes, picture = torch.load(tmp_path / 'found.pt', weights_only=False)
    pipeline = cfg.test_dataloader.dataset.pipeline
    model.train(False)
    with DefaultScope.overwrite_default_scope('mmdet'), torch.inference_mode():
        data = Compose(pipeline)(dict(img_path=str(photo), img_id=0, instances=[]))
        expected = model.test_step(pseudo_collate([data]))[0].pred_instances
    assert len(expected) > 5
    torch.testing.assert_close(torch.tensor(boxes['bboxes']), expected.bboxes)
    torch.testing.assert_close(torch.tensor(boxes['scores']), expected.scores)
    assert boxes['labels'] == expected.labels.tolist()
    original = mmcv.imread(str(photo), channel_order='rgb')
    assert picture.shape == original.shape and (picture != original).any()
