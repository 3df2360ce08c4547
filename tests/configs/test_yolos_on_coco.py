"""Each COCO config of YOLOS trains and evaluates on real COCO photos, and as pycocotools does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mcf_mm.engine.runner import build_runner
from mcf_mm.pruning import find_ffns, find_units
from mcf_mm.registry import MODELS
from mcf_mm.weights.checkpoint import save_state_dict

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'yolos'
# Those of the public weights are evaluated in test_yolos_configs.py.
NAMES = sorted(
    path.stem for path in CONFIGS.glob('*_coco.py') if not path.stem.endswith('_public_coco')
)
ANNOTATIONS = 'annotations/instances_val2017.json'
# Two CPU cores cannot train at the published sizes in a test: all sides are divided by this.
SHRINK = 16
NUMBERS = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l', 'AR@100', 'AR@300', 'AR@1000']
NUMBERS += ['AR_s@1000', 'AR_m@1000', 'AR_l@1000']


def shrink(part) -> None:
    """Makes the sides of all resizes and crops small, in place; nothing else changes."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == 'scales':
                part[key] = [tuple(max(side // SHRINK, 16) for side in pair) for pair in value]
            elif key in ('scale', 'crop_size'):
                part[key] = tuple(max(side // SHRINK, 16) for side in value)
            else:
                shrink(value)
    elif isinstance(part, list):
        for value in part:
            shrink(value)


def load(name: str, coco_mini: Path, work_dir: Path) -> Config:
    """The config, on the photos of coco_mini, at small sizes and in this process."""
    config = Config.fromfile(CONFIGS / f'{name}.py')
    # What MMEngine writes of it would be formatted for seconds, four times.
    config = Config(config.to_dict(), filename=config.filename, format_python_code=False)
    config.merge_from_dict(dict(work_dir=str(work_dir), experiment_name=name, log_level='WARNING'))
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root=str(coco_mini), ann_file=ANNOTATIONS, data_prefix=dict(img='val2017/')
        )
        shrink(loader.dataset.pipeline)
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.ann_file = str(coco_mini / ANNOTATIONS)
    return config


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Classifiers to start from: DeiT-S and DeiT-Ti with random weights, dense and at p = 0.4."""
    folder, paths = tmp_path_factory.mktemp('checkpoints'), {}
    for arch, (inputs, hidden) in {'deit-small': (230, 921), 'deit-tiny': (115, 460)}.items():
        for name, sizes in (('', None), ('mcf-', dict(inputs=inputs, hidden=hidden))):
            kind = dict(type='mcf_mm.SlimVisionTransformer', arch=arch, sizes=sizes)
            model = torch.nn.ModuleDict(dict(backbone=MODELS.build(kind)))
            header = dict(sizes=find_units(model).sizes)
            paths[name + arch] = folder / f'{name}{arch}.safetensors'
            save_state_dict(paths[name + arch], model.state_dict(), header)
    return paths


def test_there_are_six_configs():
    assert len(NAMES) == 6 and sum('mcf-' in name for name in NAMES) == 3


@pytest.mark.parametrize('name', NAMES)
def test_two_iterations_and_an_evaluation(name, coco_mini, checkpoints, tmp_path):
    config = load(name, coco_mini, tmp_path)
    arch = config.model.backbone.arch
    classifier = checkpoints[('mcf-' if 'mcf-' in name else '') + arch]
    config.model.backbone.init_cfg.checkpoint = str(classifier)
    batch_size = config.train_dataloader.batch_size
    config.train_dataloader.dataset.indices = 2 * batch_size
    config.val_dataloader.batch_size = 8
    config.train_cfg.max_epochs = 1
    config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=-1, save_last=False)
    runner = build_runner(config)
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()

    assert runner.iter == 2
    assert runner.train_dataloader.batch_sampler.batch_size == batch_size
    assert len(runner.val_dataloader.dataset) == 79
    scalars = runner.message_hub.log_scalars
    losses = [scalars[f'train/{key}'].data[0] for key in ('loss', 'loss_cls', 'loss_bbox')]
    assert all(len(loss) == 2 and np.isfinite(loss).all() and (loss > 0).all() for loss in losses)
    after = runner.model.state_dict()
    starts = ('backbone.layers.0.attn', 'backbone.pos_embed', 'bbox_head.fc_cls')
    for key in filter(lambda key: key.startswith(starts), after):
        assert not torch.equal(after[key], before[key]), key
    sizes = {tuple(ffn.sizes.values()) for ffn in find_ffns(runner.model)}
    width = config.model.bbox_head.embed_dims
    kept = (int(0.6 * width), int(0.6 * 4 * width))
    assert sizes == {kept if 'mcf-' in name else (width, 4 * width)}
    # Random weights find nothing, but were asked: -1 would mean that there was nothing to find.
    assert 0 <= scalars['val/coco/bbox_mAP'].current() < 0.05


@MODELS.register_module()
class NoisyAnnotator(BaseModel):
    """Finds what is annotated, at slightly wrong places and sometimes as something else."""

    def forward(self, inputs, data_samples, mode):
        generator = torch.Generator().manual_seed(sum(sample.img_id for sample in data_samples))
        for sample in data_samples:
            # Crowd regions too: what is found there must not count, for or against.
            parts = [sample.gt_instances, sample.ignored_instances]
            boxes = torch.cat([get_box_tensor(part.bboxes) for part in parts])
            labels = torch.cat([part.labels for part in parts])
            noise = torch.randn(boxes.shape, generator=generator)
            wrong = torch.rand(len(labels), generator=generator) < 0.2
            sample.pred_instances = InstanceData(
                bboxes=boxes + 0.05 * noise * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2),
                labels=torch.where(wrong, (labels + 1) % 80, labels),
                scores=torch.rand(len(labels), generator=generator),
            )
        return data_samples


def by_hand(annotations: COCO, results: str) -> list[float]:
    """The 12 numbers of pycocotools."""
    evaluation = COCOeval(annotations, annotations.loadRes(results), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(number) for number in evaluation.stats]


def test_evaluation_is_that_of_pycocotools(coco_mini, tmp_path):
    config = load(NAMES[0], coco_mini, tmp_path)
    config.model = dict(type='mcf_mm.NoisyAnnotator')
    config.default_hooks.pop('visualization')
    results = str(tmp_path / 'results.bbox.json')
    config.test_evaluator.outfile_prefix = str(tmp_path / 'results')
    as_configured = Runner.from_cfg(config).test()
    # The names of mmdet say 100, 300 and 1,000 boxes, whatever proposal_nums is.
    config.test_evaluator.update(metric_items=NUMBERS, proposal_nums=(1, 10, 100))
    config.experiment_name = 'all numbers'
    metrics = Runner.from_cfg(config).test()

    annotations = COCO(str(coco_mini / ANNOTATIONS))
    expected = by_hand(annotations, results)
    assert all(0.1 < number < 0.95 for number in expected)
    for number, name in zip(expected, NUMBERS, strict=True):
        assert metrics[f'coco/bbox_{name}'] == pytest.approx(number, abs=5.01e-4), name
    for name in NUMBERS[:6]:
        assert as_configured[f'coco/bbox_{name}'] == metrics[f'coco/bbox_{name}']

    found = json.loads(Path(results).read_text())
    ids = {result['category_id'] for result in found}
    assert ids <= set(annotations.cats) and max(ids) == 90 and not ids & {12, 26, 29, 30, 45, 66}
    assert {result['image_id'] for result in found} <= set(annotations.imgs)
    # The crowds matter: as plain objects they would give other numbers.
    crowds = [annotation for annotation in annotations.anns.values() if annotation['iscrowd']]
    assert len(crowds) == 5
    for crowd in crowds:
        crowd['iscrowd'] = 0
    assert by_hand(annotations, results)[0] != expected[0]
