"""Classes of training, validation and head that do not fit each other."""

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from mcf_mm.engine.runner import build_runner


def checkpoints(cfg: Config) -> list[str]:
    return sorted(path.name for path in Path(cfg.work_dir).glob('*.pth'))


@pytest.fixture
def plain(cfg) -> Config:
    """The micro DeiT on photos, for an epoch without pruning."""
    cfg.custom_hooks = []
    cfg.train_cfg.max_epochs = 1
    return cfg


def rename_folder(root: Path, name: str, new: str | None = None) -> None:
    if new is None:
        shutil.rmtree(root / name)
    else:
        (root / name).rename(root / new)


def more_folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir()
        shutil.copy(root / 'cat' / '0.png', root / name)


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda root: rename_folder(root, 'dog', 'hund'),
            r'training set: dog; .*validation set: hund; label 1 is .dog. in training and .hund.',
        ),
        (
            lambda root: rename_folder(root, 'dog'),
            r'training \(2\) and validation \(1\) differ; .*dog',
        ),
        (lambda root: rename_folder(root, 'cat'), r"label 0 is 'cat' in training and 'dog' in val"),
        (
            lambda root: rename_folder(root, 'dog', 'Cat'),
            r"label 0 is 'cat' .* 'Cat' in validation",
        ),
        (lambda root: more_folders(root, 'zebra'), 'is for 2 classes and the validation set has 3'),
    ],
)
def test_class_folders_that_differ(plain, photos, tmp_path, change, message):
    shutil.copytree(photos, tmp_path / 'val')
    change(tmp_path / 'val')
    plain.val_dataloader.dataset.data_root = str(tmp_path / 'val')
    with pytest.raises(ValueError, match=message):
        build_runner(plain).train()
    assert checkpoints(plain) == []


def test_class_folders_that_differ_under_given_names(plain, photos, tmp_path):
    """mmpretrain compares their number alone."""
    shutil.copytree(photos, tmp_path / 'val')
    rename_folder(tmp_path / 'val', 'dog', 'ant')
    for loader in (plain.train_dataloader, plain.val_dataloader):
        loader.dataset.metainfo = dict(classes=('Cat', 'Dog'))
    build_runner(plain).train()
    plain.val_dataloader.dataset.data_root = str(tmp_path / 'val')
    plain.experiment_name += 'again'
    with pytest.raises(ValueError, match="label 0 is 'cat' in training and 'ant' in validation"):
        build_runner(plain).train()


def test_class_names_in_another_order_than_the_folders(plain):
    plain.train_dataloader.dataset.metainfo = dict(classes=('dog', 'cat'))
    with pytest.raises(
        ValueError, match=r"another order .* of the folders.*Set classes=\['cat', 'd"
    ):
        build_runner(plain).train()


def label_file(photos: Path, *labels: object) -> None:
    names = ['cat/0.png', 'cat/2.png', 'cat/4.png', 'dog/1.png', 'dog/3.png']
    lines = [f'{name} {label}' for name, label in zip(names, labels, strict=True)]
    (photos / 'labels.txt').write_text('\n'.join(lines))


@pytest.mark.parametrize(
    'labels, message',
    [
        ((1, 1, 1, 2, 2), r'labels\.txt: \S+dog/1\.png has label 2 and head .* 2 classes, 0 to 1'),
        ((0, 0, 0, 1, 255), r'dog/3\.png has label 255'),
        ((0, -1, 0, 1, 1), r'cat/2\.png has label -1'),
    ],
)
@pytest.mark.parametrize('kind', ['train', 'val', 'test'])
def test_labels_that_the_head_has_not(plain, photos, labels, message, kind):
    label_file(photos, *labels)
    plain[f'{kind}_dataloader'].dataset.ann_file = 'labels.txt'
    runner = build_runner(plain)
    with pytest.raises(ValueError, match=message):
        runner.test() if kind == 'test' else runner.train()
    assert checkpoints(plain) == []


def test_labels_of_a_file(plain, photos):
    label_file(photos, 0, 0, 0, 1, 1)
    plain.train_dataloader.dataset.ann_file = 'labels.txt'
    build_runner(plain).train()
    assert checkpoints(plain) == ['epoch_1.pth']


def test_folders_for_training_and_a_list_for_validation(plain, photos):
    """As ImageNet is used: names of folders are not those of the classes."""
    label_file(photos, 0, 0, 0, 1, 1)
    for loader in (plain.train_dataloader, plain.val_dataloader):
        loader.dataset.metainfo = dict(classes=('the cat', 'the dog'))
    plain.val_dataloader.dataset.ann_file = 'labels.txt'
    build_runner(plain).train()
    assert checkpoints(plain) == ['epoch_1.pth']


def test_evaluation_of_more_classes_than_the_head_has(plain, photos):
    more_folders(photos, 'zebra')
    with pytest.raises(ValueError, match='2 classes and the test set has 3: cat, dog, zebra'):
        build_runner(plain).test()
    plain.experiment_name += 'again'
    with pytest.raises(ValueError, match='2 classes and the validation set has 3'):
        build_runner(plain).val()


def test_evaluation_with_other_folders_than_in_training(plain, photos, tmp_path):
    build_runner(plain).train()
    plain.load_from = str(Path(plain.work_dir) / 'epoch_1.pth')
    plain.experiment_name += 'again'
    assert 'accuracy/top1' in build_runner(plain).test()
    shutil.copytree(photos, tmp_path / 'test')
    rename_folder(tmp_path / 'test', 'dog', 'bear')  # before 'cat'
    plain.test_dataloader.dataset.data_root = str(tmp_path / 'test')
    plain.experiment_name += 'and again'
    message = r"trained with 'cat' as label 0 of cat, dog; here it is label 1 of bear, cat"
    with pytest.raises(ValueError, match=message):
        build_runner(plain).test()
