"""The digit sets: same seed same files, disjoint splits, readable by both libraries."""

import contextlib
import hashlib
import io
import json
import shutil
from pathlib import Path

import digits
import numpy as np
import pytest
from digits import DigitsSettings, compose_scene, split_digits, write_digits
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from pycocotools.coco import COCO

SMALL = DigitsSettings(copies=dict(train=1, val=1, test=1), scenes=dict(train=30, val=10, test=10))
CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / '_base_'


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data') / 'digits'
    assert write_digits(root, SMALL, progress=False)
    return root


def content(root: Path) -> str:
    """One hash over names and bytes of all files."""
    hashes = hashlib.sha256()
    for path in sorted(root.rglob('*')):
        if path.is_file():
            hashes.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return hashes.hexdigest()


def test_same_seed_same_files(root, tmp_path):
    write_digits(tmp_path / 'again', SMALL, progress=False)
    assert content(root) == content(tmp_path / 'again')
    other = DigitsSettings(seed=1, copies=SMALL.copies, scenes=SMALL.scenes)
    write_digits(tmp_path / 'other', other, progress=False)
    assert content(root) != content(tmp_path / 'other')


def test_splits_share_no_digit():
    parts = split_digits()
    sizes = {split: len(labels) for split, (_, labels) in parts.items()}
    assert sizes == dict(train=1077, val=270, test=450)
    # All but a few of the 1,797 digits differ in their pixels, so equal ones would show.
    seen = [{digit.tobytes() for digit in images} for images, _ in parts.values()]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    for _, labels in parts.values():
        assert set(labels) == set(range(10))


def test_scenes_use_the_digits_of_their_split(root, monkeypatch, tmp_path):
    used: dict[int, set[bytes]] = {}
    original = digits.compose_scene

    def spy(images, labels, rng, settings):
        used.setdefault(len(used_by), set()).update(digit.tobytes() for digit in images)
        return original(images, labels, rng, settings)

    used_by: list[str] = []
    write_detection = digits._write_detection

    def note(folder, split, *args):
        used_by.append(split)
        write_detection(folder, split, *args)

    monkeypatch.setattr(digits, 'compose_scene', spy)
    monkeypatch.setattr(digits, '_write_detection', note)
    monkeypatch.setattr(digits, '_write_classification', lambda *args: None)
    write_digits(tmp_path / 'digits', SMALL, progress=False)
    for number, split in enumerate(used_by, 1):
        own = {digit.tobytes() for digit in split_digits()[split][0]}
        assert used[number] <= own


@pytest.mark.parametrize('split', digits.SPLITS)
def test_annotations_are_valid_coco(root, split):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(root / 'detection' / f'{split}.json')
    assert len(coco.getImgIds()) == SMALL.scenes[split]
    assert [cat['name'] for cat in coco.loadCats(coco.getCatIds())] == list(digits.CLASSES)
    for image in coco.loadImgs(coco.getImgIds()):
        picture = np.asarray(Image.open(root / 'detection' / split / image['file_name']))
        assert picture.shape == (image['height'], image['width']) == (40, 40)
        covered = np.zeros(picture.shape, dtype=bool)
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            x, y, width, height = annotation['bbox']
            assert 0 <= x and 0 <= y and x + width <= 40 and y + height <= 40
            assert annotation['area'] == width * height
            ink = picture[y : y + height, x : x + width] > 0
            # Tight: every side of the box touches the digit.
            assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
            assert not covered[y : y + height, x : x + width].any()
            covered[y : y + height, x : x + width] = True
        assert not picture[~covered].any()


def test_scene_holds_what_was_asked():
    images, labels = split_digits()['train']
    rng = np.random.default_rng(0)
    scene = compose_scene(images[:1], labels[:1], rng, DigitsSettings())
    assert scene.labels.tolist() == labels[:1].tolist() and scene.boxes.shape == (1, 4)
    crowd = compose_scene(images[:40], labels[:40], rng, DigitsSettings())
    assert 1 <= len(crowd.labels) < 40  # no room for the others
    assert scene.image.dtype == np.uint8


def test_complete_set_is_left_alone(root):
    before = content(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert write_digits(root, SMALL, progress=False) is False
    assert times == {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert before == content(root)


def test_incomplete_set_is_written_again(root, tmp_path):
    copy = tmp_path / 'digits'
    shutil.copytree(root, copy)
    next((copy / 'detection' / 'test').glob('*.png')).unlink()
    assert write_digits(copy, SMALL, progress=False)
    assert content(copy) == content(root)
    (copy / 'detection' / 'val.json').unlink()
    assert write_digits(copy, SMALL, progress=False)
    assert content(copy) == content(root)


def test_interrupted_write_leaves_nothing_to_believe(root, tmp_path, monkeypatch):
    calls = 0
    save = digits._save

    def interrupt(image, path):
        nonlocal calls
        calls += 1
        if calls == 100:
            raise KeyboardInterrupt
        save(image, path)

    target = tmp_path / 'digits'
    monkeypatch.setattr(digits, '_save', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_digits(target, SMALL, progress=False)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert write_digits(target, SMALL, progress=False)
    assert content(target) == content(root)


def test_new_settings_replace_the_set(root, tmp_path):
    copy = tmp_path / 'digits'
    shutil.copytree(root, copy)
    more = DigitsSettings(copies=SMALL.copies, scenes=dict(train=31, val=10, test=10))
    assert write_digits(copy, more, progress=False)
    assert len(json.loads((copy / 'detection' / 'train.json').read_text())['images']) == 31


def test_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(FileExistsError, match='is not a digits set'):
        write_digits(tmp_path, SMALL, progress=False)
    assert (tmp_path / 'thesis.txt').read_text() == 'years of work'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(digit_sizes=(30, 20)), r'digit_sizes is \(30, 20\)'),
        (dict(digit_sizes=(20, 50)), 'canvas of 40'),
        (dict(digits_per_scene=(0, 3)), r'digits_per_scene is \(0, 3\)'),
        (dict(scenes=dict(train=10)), 'scenes is'),
    ],
)
def test_impossible_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitsSettings(**arguments)


def test_both_libraries_read_the_sets(root):
    init_default_scope('mmpretrain')
    config = Config.fromfile(CONFIGS / 'digits_classification.py')
    dataset = dict(config.test_dataloader.dataset, data_root=str(root / 'classification'))
    dataset = DATASETS.build(dataset)
    assert len(dataset) == 450 and list(dataset.CLASSES) == list(digits.CLASSES)
    assert dataset[0]['inputs'].shape == (3, 40, 40)
    init_default_scope('mmdet')
    config = Config.fromfile(CONFIGS / 'digits_detection.py')
    dataset = DATASETS.build(
        dict(config.train_dataloader.dataset, data_root=str(root / 'detection') + '/')
    )
    assert isinstance(dataset, CocoDataset) and len(dataset) == 30
    assert len(dataset[0]['data_samples'].gt_instances) >= 1
