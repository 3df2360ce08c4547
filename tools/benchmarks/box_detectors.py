"""One detector from the dense and from pruned DeiT-Tinys on a small data set: AP of several seeds.

Makes the pruned backbones with tools/prune.py if they are not there, trains the same detector from
each, equally long, and writes what came out. What is complete is not done again; what was stopped
goes on. Needs tools/prepare_real_data.py; the table in configs/detectors/README.md is written by
``tables.py`` beside this file.

    OMP_NUM_THREADS=1 python tools/benchmarks/box_detectors.py --data raccoon --seeds 0 1 2
    OMP_NUM_THREADS=1 python tools/benchmarks/box_detectors.py --data facemask --only dense all
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from runs import ROOT, complete, last_scores, logged, train_command
from tables import read_results, table, write_results

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.analysis.throughput import compare
from mcf_mm.comparison.processes import forget_peaks, in_own_process, resident_peak
from mcf_mm.engine.config import input_shape, load_config
from mcf_mm.engine.networks import build_model

CONFIGS = {
    'raccoon': 'retinanet_deit-tiny_sfp_2cpu-20e_raccoon.py',
    'facemask': 'retinanet_deit-tiny_sfp_2cpu-12e_facemask.py',
}
#: What prunes within the training itself.
SIDT_CONFIGS = {
    'raccoon': 'retinanet_sidt-deit-tiny_sfp_2cpu-20e_raccoon.py',
    'facemask': 'retinanet_sidt-deit-tiny_sfp_2cpu-12e_facemask.py',
}
RESULTS = ROOT / 'configs/detectors/results/box_detectors.json'
CLASSIFIER = ROOT / 'configs/experiments/deit-tiny_imagenet-samples.py'
DENSE = 'checkpoints/deit_tiny_in1k.safetensors'
MCF = ['--ratio', '0.4', '--method', 'mcf', '--compensation', 'least_squares']
HEAL = ['--heal', 'epochs=18,lr=3e-5,bf16=True,folder=data/tiny_imagenet/train']
#: Title and options of tools/prune.py of each backbone; all that it prunes have 3.869 M parameters.
BACKBONES = {
    'dense': ('dense', None),
    'all': ('all dimensions, closed form', ['--budget', 'params=3869416']),
    'mcf': ('MCF p = 0.4, least squares', MCF),
    'mcf-healed': ('MCF p = 0.4, least squares, healed', [*MCF, *HEAL]),
    'hidden': (
        'hidden units alone, FIS, least squares',
        ['--input-ratio', '0', '--hidden-ratio', '0.52', '--compensation', 'least_squares'],
    ),
    'sidt': ('SiDT, searched on the detector itself', None),
}

#: Images at a time, for speed and memory.
BATCH = 8


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', choices=CONFIGS, default='raccoon')
    parser.add_argument('--only', nargs='+', choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/box_detectors'))
    parser.add_argument('--results', type=Path, default=RESULTS, help='JSON file of results')
    return parser.parse_args()


def backbone_options(name: str, out: Path) -> list[str]:
    """``KEY=VALUE`` of the config for a backbone; prunes it if it is not there."""
    options = BACKBONES[name][1]
    if options is None:
        return []
    folder = out / 'backbones' / name
    weights = folder / 'slim.safetensors'
    if not weights.is_file():
        command = [sys.executable, ROOT / 'tools/prune.py', CLASSIFIER, DENSE, *options]
        if (folder / 'heal_state.pt').is_file():
            command.append('--resume')
        subprocess.run([*command, '--num-images', '500', '--out', folder], check=True)
    return [f'model.backbone.init_cfg.checkpoint={weights}', 'model.backbone.sizes=auto']


def inference_peak(cfg: Config, told: Callable[[str, int, int], None]) -> int:
    """Most bytes in memory while a network alone runs a batch, libraries included."""
    told('measuring memory', 0, 1)
    model = build_model(cfg).eval()
    if not forget_peaks():
        print('this system cannot begin a peak of memory anew: building the network counts too')
    with torch.no_grad():
        model(torch.randn(BATCH, 3, *input_shape(cfg)))
    return resident_peak()


def main() -> None:
    args = parse_args()
    folder = ROOT / 'configs/experiments'
    configs = {
        name: folder / (SIDT_CONFIGS if name == 'sidt' else CONFIGS)[args.data]
        for name in args.only
    }
    results = read_results(args.results)
    options = {name: backbone_options(name, args.out) for name in args.only}
    # Seeds in the outer loop: whenever it is stopped, all backbones are equally far.
    for seed in args.seeds:
        for name in args.only:
            work_dir = args.out / f'{args.data}_{name}_seed{seed}'
            if not complete(configs[name], work_dir):
                command = train_command(configs[name], work_dir, seed, options[name])
                subprocess.run(command, check=True)
            row = last_scores(logged(work_dir))
            if not row:
                sys.exit(f'error: {work_dir} has no evaluation; delete it to train again')
            key = f'{args.data} | {BACKBONES[name][0]} | seed {seed}'
            results[key] = {**results.get(key, {}), **row}
            write_results(args.results, results)
    models, memory = {}, {}
    for name in args.only:
        work_dir = args.out / f'{args.data}_{name}_seed{args.seeds[0]}'
        slim = work_dir / 'slim.py'
        config = slim if slim.is_file() else configs[name]
        cfg = load_config(str(config), None, dict(pair.split('=', 1) for pair in options[name]))
        models[name] = build_model(cfg)
        log = work_dir / 'memory.txt'
        memory[name] = in_own_process(inference_peak, (cfg,), log, lambda *progress: None)
    for name, speed in compare(models, input_shape(cfg), batch_size=BATCH).networks.items():
        for seed in args.seeds:
            results[f'{args.data} | {BACKBONES[name][0]} | seed {seed}'].update(
                params=speed.params,
                macs=speed.macs,
                images_per_second=round(speed.images_per_second, 1),
                memory=memory[name],
            )
    write_results(args.results, results)
    print(table(results))


if __name__ == '__main__':
    main()
