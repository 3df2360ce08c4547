"""Counts parameters and MACs of the network of a config, before and after pruning."""

import argparse
import contextlib
import json
import sys

from mmengine.config import DictAction
from rich.console import Console
from rich.table import Table

from mcf_mm.analysis.complexity import Complexity, count_complexity, mean_complexity
from mcf_mm.analysis.complexity_by_kind import complexity_by_kind
from mcf_mm.engine.config import dataset_shapes, input_shape, read_config
from mcf_mm.engine.networks import build_model, pruned_network


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Counts parameters and multiply-accumulate operations (MACs) for one image, '
        'attention products included, by part of the network. Takes classifier configs of '
        'mmpretrain and detector configs of mmdet. For a config with mcf_mm.MCFPruningHook the '
        'network that the hook will leave is counted too. No checkpoint and no data is needed, '
        'unless the config takes its sizes from a checkpoint.',
        epilog='example: python tools/complexity.py configs/mcf/mcf_deit-small_8xb128_in1k.py',
    )
    parser.add_argument('config', metavar='CONFIG', help='config file')
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help="image size in pixels (default: what the config's test pipeline makes)",
    )
    images.add_argument(
        '--dataset-images',
        type=int,
        metavar='N',
        help='count the mean over the first N images that the config evaluates, each at its own '
        'size (100 is the protocol of YOLOS and DETR); the dataset must be there',
    )
    parser.add_argument(
        '--ratio',
        type=float,
        metavar='P',
        help='count also what pruning of the FFNs with this ratio leaves (default: what the '
        "config's pruning hook says)",
    )
    parser.add_argument(
        '--by-kind',
        action='store_true',
        help='split by what pruning takes from: q/k, v, projection, attention products, FFN, other '
        '(default: by part of the network)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings: test_dataloader.dataset.data_root=data/coco_mini/',
    )
    parser.add_argument(
        '--json',
        action='store_true',
        help='print one object {"params": ..., "macs": ..., "parts": {...}} and nothing else, '
        'with the same under "pruned" for a config with a pruning hook',
    )
    return parser.parse_args()


def print_table(counts: dict[str, Complexity]) -> None:
    """One row for each part, two columns for each network."""
    table = Table()
    table.add_column('part')
    for name in counts:
        table.add_column(f'{name}\nparams (M)', justify='right')
        table.add_column('\nMACs (G)', justify='right')
    rows = {part: [c.parts[part] for c in counts.values()] for part in counts['dense'].parts}
    for part, costs in {**rows, 'all': list(counts.values())}.items():
        cells = [f'{number:.3f}' for c in costs for number in (c.params / 1e6, c.macs / 1e9)]
        table.add_row(part, *cells, end_section=part == 'other')
    Console().print(table)


def main() -> None:
    args = parse_args()
    # Whatever the libraries say goes to stderr, so that stdout can be piped.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            config = read_config(args.config, args.cfg_options)
            if args.dataset_images is not None:
                shapes = dataset_shapes(config, args.dataset_images)
            else:
                shapes = [tuple(args.shape) if args.shape else input_shape(config)]
            model = build_model(config)
            count = complexity_by_kind if args.by_kind else count_complexity
            counts = {'dense': mean_complexity(model, shapes, count)}
            if (pruned := pruned_network(config, model, args.ratio)) is not None:
                counts['pruned'] = mean_complexity(pruned, shapes, count)
        except (ValueError, OSError) as error:
            sys.exit(f'error: {error}')
    if args.json:
        pruned = {name: count.to_dict() for name, count in counts.items() if name == 'pruned'}
        print(json.dumps({**counts['dense'].to_dict(), **pruned}, indent=2))
    else:
        height, width = (sum(sides) / len(shapes) for sides in zip(*shapes, strict=True))
        mean = f', mean of {len(shapes)} images' if args.dataset_images else ''
        print(f'{args.config} at {height:.0f} x {width:.0f} pixels{mean}')
        print_table(counts)


if __name__ == '__main__':
    main()
