"""The configs of SiDT: what they search, and small ones of them trained."""

from pathlib import Path

import numpy as np
import pytest
import test_detector_configs
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from mmpretrain.datasets import CIFAR100

from mcf_mm.engine.config import load_config
from mcf_mm.engine.networks import build_model, pruned_network
from mcf_mm.pruning import find_units
from mcf_mm.weights.checkpoint import read_header

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
PATHS = {
    path.stem: path
    for pattern in ('sidt/*.py', 'experiments/*sidt*.py')
    for path in sorted(CONFIGS.glob(pattern))
}
#: The small network of another config, with the same parts.
LIKE = {
    'sidt/mask-rcnn_sidt-swin-t_fpn_1x_coco.py': 'detectors/mask-rcnn_mcf-swin-t_fpn_1x_coco.py',
    'sidt/retinanet_sidt-swin-t_fpn_1x_coco.py': 'detectors/retinanet_mcf-swin-t_fpn_1x_coco.py',
    'sidt/retinanet_sidt-deit-tiny_sfp_1x_coco.py': (
        'detectors/retinanet_mcf-deit-tiny_sfp_1x_coco.py'
    ),
    'sidt/yolos_sidt-deit-tiny_8xb2-300e_coco.py': 'yolos/yolos_mcf-deit-tiny_8xb2-300e_coco.py',
}


@pytest.mark.parametrize('name', PATHS)
def test_the_readme_has_the_config_and_the_search_is_shorter_than_the_run(name):
    config = Config.fromfile(PATHS[name])
    (hook,) = config.custom_hooks
    # At 0.35 a detector has as many parameters as with the others' backbones.
    ratio = 0.35 if 'raccoon' in name else 0.2
    assert hook.type == 'mcf_mm.ScoreSearchHook' and hook.ratio == ratio
    epochs = config.train_cfg.max_epochs
    assert 0 < hook.search_epochs < epochs
    readme = (CONFIGS / 'sidt/README.md').read_text()
    (row,) = [line for line in readme.splitlines() if f'{name}.py)' in line]
    assert f'| {hook.search_epochs} + {epochs - hook.search_epochs} |' in row


@pytest.mark.parametrize('name', [name for name in PATHS if 'in1k' not in name])
def test_the_parameters_of_the_readme(name):
    """Those of ImageNet are in the metafile, which has a test of its own."""
    config = Config.fromfile(PATHS[name])
    config.model.backbone.pop('init_cfg', None)
    dense = build_model(config)
    small = pruned_network(config, dense)
    counts = [sum(p.numel() for p in network.parameters()) for network in (dense, small)]
    readme = (CONFIGS / 'sidt/README.md').read_text()
    (row,) = [line for line in readme.splitlines() if f'{name}.py)' in line]
    assert '{:.3f} M -> {:.3f} M'.format(*(count / 1e6 for count in counts)) in row


@pytest.mark.parametrize('name', LIKE)
def test_a_small_detector_is_searched_cut_and_recovers_on_coco(
    name, coco_mini, tmp_path, monkeypatch
):
    small = test_detector_configs.SMALL
    monkeypatch.setitem(small, name, small[LIKE[name]])
    cfg = test_detector_configs.small_config(name, coco_mini, tmp_path / 'work')
    cfg.custom_hooks[0].update(search_epochs=1, ratio=0.4, num_images=4)
    cfg.train_cfg.max_epochs = 2
    runner = Runner.from_cfg(cfg)
    runner.train()
    slim = load_config(str(tmp_path / 'work' / 'slim.py'), str(tmp_path / 'again'))
    sizes = find_units(build_model(slim)).sizes
    assert sizes == find_units(runner.model).sizes
    header = read_header(tmp_path / 'work' / 'slim.safetensors')
    assert header['sizes'] == sizes and header['search_epochs'] == 1
    hidden = [own['hidden'] for own in sizes.values() if 'hidden' in own]
    full = [own['hidden'] for own in find_units(build_model(cfg)).sizes.values() if 'hidden' in own]
    assert sum(hidden) == pytest.approx(0.6 * sum(full), abs=2)


@pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader'])
def test_cifar_is_enlarged(loader, monkeypatch):
    config = Config.fromfile(CONFIGS / 'sidt/sidt_deit-tiny_8xb128_cifar100.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        image = np.zeros((32, 32, 3), np.uint8)
        monkeypatch.setattr(CIFAR100, 'load_data_list', lambda self: [dict(img=image, gt_label=99)])
        dataset = DATASETS.build(config[loader].dataset)
        sample = dataset[0]
    assert sample['inputs'].shape == (3, 224, 224)
    assert sample['data_samples'].gt_label.item() == 99 < config.model.head.num_classes
    assert len(dataset.metainfo['classes']) == config.model.head.num_classes == 100
    assert config.data_preprocessor.num_classes == 100 and not config.data_preprocessor.to_rgb
