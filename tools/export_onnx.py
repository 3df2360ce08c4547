"""Exports a classifier or a detector, dense or pruned, to ONNX."""

import argparse
import contextlib
import sys
from pathlib import Path

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.engine.config import load_config
from mcf_mm.engine.export import export_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Exports a classifier (mmpretrain), YOLOS, RetinaNet, ATSS or FCOS, dense or '
        'pruned, to one ONNX file. Input "images": float32 (batch, 3, H, W), RGB, 0 to 255, any '
        'number of images resized to the size of the export; normalisation is in the graph. Output '
        'of a classifier: "logits" (batch, classes). Outputs of YOLOS, for each detection token: '
        '"scores" and "labels" (batch, N), "boxes" (batch, N, 4) as x1 y1 x2 y2 from 0 to 1, so '
        'times width and height of the photo. RetinaNet, ATSS and FCOS take one image and put out '
        'the same, batch 1, for the boxes that NMS leaves, best first, as test_cfg of the model '
        'says. Class names are in the metadata. The file is written only if ONNX Runtime gives the '
        'results of torch (of mmdet, where there is NMS), to 1e-3.',
        epilog='example: python tools/export_onnx.py work_dirs/pruned/slim.py '
        'work_dirs/pruned/slim.safetensors slim.onnx',
    )
    parser.add_argument('config', metavar='CONFIG', help='config of the network')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='weights, .pth or .safetensors')
    parser.add_argument('output', metavar='OUT.onnx', help='file to write')
    parser.add_argument(
        '--input-shape',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help="image size in pixels (default: what the config's test pipeline makes, for YOLOS the "
        'largest landscape image)',
    )
    parser.add_argument(
        '--opset', type=int, help="version of ONNX's operators (default: what torch recommends)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        shape = tuple(args.input_shape) if args.input_shape else None
        # Whatever the libraries say goes to stderr, so that stdout can be piped.
        with contextlib.redirect_stdout(sys.stderr):
            cfg = load_config(args.config)
            difference = export_checkpoint(cfg, args.checkpoint, args.output, shape, args.opset)
    # AssertionError: mmpretrain's way to say that weights do not fit.
    except (ValueError, OSError, RuntimeError, ImportError, AssertionError) as error:
        sys.exit(f'error: {error}')
    megabytes = Path(args.output).stat().st_size / 1e6
    print(
        f'{args.output}: {megabytes:.1f} MB, largest difference of ONNX Runtime and torch '
        f'{difference:.1e}'
    )


if __name__ == '__main__':
    main()
