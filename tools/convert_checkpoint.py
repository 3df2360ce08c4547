"""Converts checkpoints between OpenMMLab, timm, the original releases and Hugging Face."""

import argparse
import sys

from mcf_mm.weights.convert import convert_checkpoint
from mcf_mm.weights.names import LIBRARIES


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Converts a ViT, DeiT or Swin classifier between the names of mmpretrain, '
        'timm, the original DeiT and Swin releases, and Hugging Face; the input says itself whose '
        'names it has. A YOLOS goes between mmdet (mcf_mm.YOLOS), its release (original) and '
        'Hugging Face. There and back gives the same bits. Distilled DeiTs and networks that '
        'mcf_mm made slim are converted too. What follows from the sizes of a Swin '
        '(relative_position_index, attn_mask) is left out or made anew. Nothing is unpickled.',
        epilog='example: python tools/convert_checkpoint.py deit_small_patch16_224-cd65a155.pth '
        'checkpoints/deit_small_in1k.safetensors --to mmpretrain',
    )
    parser.add_argument('input', metavar='IN', help='.safetensors, .pth, .pt or .bin file')
    parser.add_argument(
        'output',
        metavar='OUT',
        help='.safetensors file, whose header names the input, or .pth file; MMEngine reads both '
        '(load_from, init_cfg) once mcf_mm is imported',
    )
    parser.add_argument('--to', required=True, choices=LIBRARIES, help='whose names OUT gets')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        state_dict = convert_checkpoint(args.input, args.output, args.to)
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    parameters = sum(value.numel() for value in state_dict.values() if value.is_floating_point())
    print(f'{args.output}: {len(state_dict)} tensors, {parameters / 1e6:.3f} M parameters')


if __name__ == '__main__':
    main()
