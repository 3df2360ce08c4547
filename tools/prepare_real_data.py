"""Unpacks the real data sets and makes the checkpoints of the runs in configs/experiments.

    python tools/prepare_real_data.py FOLDER

FOLDER holds ``deit_tiny_in1k.safetensors`` (timm names) and the archives
``imagenet_samples_256``, ``tiny_imagenet_25k``, ``facemask_coco``, ``raccoon_voc`` and
``coco_mini`` (``.tar.xz``). Writes below ``data/`` and ``checkpoints/``; what is there already is
left alone. raccoon_voc gets ``train.json`` (150 photos) and ``val.json`` (50, chosen with seed 0)
besides its XML files.
"""

import argparse
import json
import shutil
import tarfile
import tempfile
from pathlib import Path

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.datasets.own_data import read_set, split, write_set
from mcf_mm.weights.checkpoint import read_header, read_state_dict, save_state_dict
from mcf_mm.weights.convert import convert_checkpoint

ARCHIVES = {
    'imagenet_samples_256': 'imagenet_samples',
    'tiny_imagenet_25k': 'tiny_imagenet',
    'facemask_coco': 'facemask_coco',
    'raccoon_voc': 'raccoon_voc',
    'coco_mini': 'coco_mini',
}
#: Photos of raccoon_voc to validate on, of 200, and what chooses them.
RACCOON_SHARE, RACCOON_SEED = 0.25, 0


def unpack(archive: Path, target: Path) -> None:
    """Unpacks ``archive``; ``target`` appears whole or not at all."""
    if target.exists():
        return
    print(f'unpacking {archive.name}', flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter='data')
        shutil.move(Path(partial) / target.name, target)


def split_photos(folder: Path) -> None:
    """Halves the photos by class number: even ones calibrate, odd ones are reported on."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    for name, first in (('calibrate', 0), ('report', 1)):
        lines = [f'{c}/{c}.jpg {number}\n' for number, c in enumerate(classes)][first::2]
        (folder / f'{name}.txt').write_text(''.join(lines))


def convert_raccoons(folder: Path) -> None:
    """Writes the XML files of raccoon_voc as COCO's annotations, split by a seed."""
    if (folder / 'train.json').exists() and (folder / 'val.json').exists():
        return
    content, notes = read_set(folder / 'annotations', folder / 'images', 'voc')
    for note in notes:
        print(f'{folder}: {note}')
    for name, part in zip(
        ('train', 'val'), split(content, RACCOON_SHARE, RACCOON_SEED), strict=True
    ):
        write_set(part, folder / f'{name}.json')
        print(f'{folder / name}.json: {len(part["images"])} photos, seed {RACCOON_SEED}')


def select_classes(source: Path, target: Path, classes: Path) -> None:
    """Keeps the rows of the classifier that belong to the classes of a subset of ImageNet."""
    if target.exists():
        return
    rows = [entry['imagenet_index'] for entry in json.loads(classes.read_text())]
    state_dict = {
        key: value[rows] if key.startswith('head.') else value
        for key, value in read_state_dict(str(source)).items()
    }
    save_state_dict(target, state_dict, read_header(source))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, help='folder with the archives and the weights')
    folder = parser.parse_args().folder
    for archive, target in ARCHIVES.items():
        unpack(folder / f'{archive}.tar.xz', Path('data') / target)
    split_photos(Path('data/imagenet_samples'))
    convert_raccoons(Path('data/raccoon_voc'))
    dense = Path('checkpoints/deit_tiny_in1k.safetensors')
    if not dense.exists():
        convert_checkpoint(folder / dense.name, dense, 'mmpretrain')
    select_classes(
        dense,
        Path('checkpoints/deit_tiny_tiny-imagenet.safetensors'),
        Path('data/tiny_imagenet/classes.json'),
    )


if __name__ == '__main__':
    main()
