"""mmpretrain against timm on the same photos and the same weights.

    python tools/benchmarks/timm_parity.py deit_tiny_in1k.safetensors

WEIGHTS has timm's names; mmpretrain gets them from ``checkpoints/deit_tiny_in1k.safetensors``,
which tools/prepare_real_data.py makes through the converter.
"""

import argparse

import timm
import torch
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner, load_checkpoint
from rich.progress import track

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.engine.config import load_config
from mcf_mm.engine.networks import build_model
from mcf_mm.weights.checkpoint import read_state_dict

CONFIG = 'configs/experiments/deit-tiny_imagenet-samples.py'


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('weights', help='safetensors file with the names of timm')
    args = parser.parse_args()
    cfg = load_config(CONFIG)
    ours = build_model(cfg)
    load_checkpoint(ours, 'checkpoints/deit_tiny_in1k.safetensors')
    theirs = timm.create_model('deit_tiny_patch16_224')
    theirs.load_state_dict(read_state_dict(args.weights))
    ours.train(False), theirs.train(False)

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        loader = Runner.build_dataloader(
            dict(cfg.test_dataloader, dataset=DATASETS.build(cfg.test_dataloader.dataset))
        )
    right, difference, images = [0, 0], 0.0, 0
    for batch in track(loader, 'photos'):
        batch = ours.data_preprocessor(batch, False)
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
        logits = [ours(batch['inputs'], mode='tensor'), theirs(batch['inputs'])]
        difference = max(difference, float((logits[0] - logits[1]).abs().max()))
        right = [
            count + int((scores.argmax(1) == labels).sum())
            for count, scores in zip(right, logits, strict=True)
        ]
        images += len(labels)
    for name, count in zip(('mmpretrain', 'timm'), right, strict=True):
        print(f'{name:12} top-1 {100 * count / images:.1f} % of {images} photos')
    print(f'largest difference of a logit {difference:.1e}')


if __name__ == '__main__':
    main()
