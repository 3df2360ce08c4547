"""Digit scenes: a small real data set for both libraries, made from scikit-learn's digits.

scikit-learn ships 1,797 handwritten digits of 8 x 8 pixels (the test part of UCI's "Optical
Recognition of Handwritten Digits"). :func:`write_digits` places them at a random position and size
on a black canvas and writes two sets, whose splits ``train``, ``val`` and ``test`` share no digit::

    data/digits/
        classification/{train,val,test}/{0..9}/*.png   for mmpretrain's CustomDataset
        detection/{train,val,test}/*.png               for mmdet's CocoDataset
        detection/{train,val,test}.json                COCO annotations
        complete.json                                  what was written
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CLASSES = tuple(str(digit) for digit in range(10))
SPLITS = ('train', 'val', 'test')
MANIFEST = 'complete.json'
# To be raised when the same settings would give other pictures, so that old sets are written again.
VERSION = 1


@dataclass(frozen=True)
class DigitsSettings:
    """What decides the content of the sets.

    Args:
        seed: Of the split into digits for training, validation and test, and of all pictures.
            Defaults to 0.
        canvas: Side of a picture in pixels. Defaults to 40.
        digit_sizes: Smallest and largest height of a digit in pixels. Defaults to (18, 24).
        digits_per_scene: Fewest and most digits in a detection scene. Defaults to (1, 3).
        copies: Pictures of each digit in the classification set, by split.
        scenes: Pictures in the detection set, by split.

    Raises:
        ValueError: A range is empty, or the largest digit does not fit into the canvas.
    """

    seed: int = 0
    canvas: int = 40
    digit_sizes: tuple[int, int] = (18, 24)
    digits_per_scene: tuple[int, int] = (1, 3)
    copies: dict[str, int] = field(default_factory=lambda: dict(train=8, val=4, test=4))
    scenes: dict[str, int] = field(default_factory=lambda: dict(train=12000, val=500, test=500))

    def __post_init__(self) -> None:
        smallest, largest = self.digit_sizes
        if not 8 <= smallest <= largest <= self.canvas:
            raise ValueError(
                f'digit_sizes is {self.digit_sizes}, it must rise from at least 8 to at most the '
                f'canvas of {self.canvas} pixels'
            )
        fewest, most = self.digits_per_scene
        if not 1 <= fewest <= most:
            raise ValueError(
                f'digits_per_scene is {self.digits_per_scene}, it must rise from at least 1'
            )
        for name, counts in (('copies', self.copies), ('scenes', self.scenes)):
            if set(counts) != set(SPLITS) or min(counts.values()) < 1:
                raise ValueError(
                    f'{name} is {counts}, it must give at least 1 for each of {SPLITS}'
                )


@dataclass(frozen=True)
class Scene:
    """A picture and where its digits are.

    Args:
        image: Grey values, ``(canvas, canvas)``, uint8.
        boxes: Tight boxes around the visible ink, ``(n, 4)`` as x1, y1, x2, y2 in pixels, int.
        labels: The digits, ``(n,)``, int.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def split_digits(seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Divides scikit-learn's digits into 60 % train, 15 % val and 25 % test, by class.

    Args:
        seed: Of the division. Defaults to 0.

    Returns:
        For each split the digits ``(n, 8, 8)``, uint8 from 0 to 255, and their labels ``(n,)``.
    """
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    indices = np.arange(len(images))
    rest, test = train_test_split(
        indices, test_size=0.25, stratify=data.target, random_state=seed, shuffle=True
    )
    train, val = train_test_split(
        rest, test_size=0.2, stratify=data.target[rest], random_state=seed, shuffle=True
    )
    parts = dict(train=train, val=val, test=test)
    return {split: (images[part], data.target[part]) for split, part in parts.items()}


def _render(digit: np.ndarray, rng: np.random.Generator, settings: DigitsSettings) -> np.ndarray:
    """One digit at a random size, slant and brightness, cut to its ink."""
    height = int(rng.integers(settings.digit_sizes[0], settings.digit_sizes[1] + 1))
    # Handwriting varies in slant and width; few digits go further with such copies.
    picture = Image.fromarray(digit).resize((height, height), Image.Resampling.BICUBIC)
    slant = float(rng.uniform(-0.15, 0.15))
    width = float(rng.uniform(0.9, 1.1))
    middle = height / 2
    picture = picture.transform(
        (height, height),
        Image.Transform.AFFINE,
        (1 / width, slant, middle - middle / width - slant * middle, 0, 1, 0),
        Image.Resampling.BILINEAR,
    )
    ink = np.asarray(picture, dtype=np.float32) * float(rng.uniform(0.7, 1.0))
    ink = np.where(ink < 32, 0, ink).astype(np.uint8)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def compose_scene(
    digits: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    settings: DigitsSettings,
) -> Scene:
    """Places digits on one canvas so that their boxes do not overlap.

    A digit for which no free place is found is left out; the first one always has a place.

    Args:
        digits: Digits to place, ``(n, 8, 8)``, uint8.
        labels: Their labels, ``(n,)``.
        rng: Source of all chance.
        settings: Canvas and sizes.

    Returns:
        The scene, with at least one digit.
    """
    canvas = settings.canvas
    image = np.zeros((canvas, canvas), dtype=np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    placed: list[int] = []
    for digit, label in zip(digits, labels, strict=True):
        ink = _render(digit, rng, settings)
        height, width = ink.shape
        for _ in range(20):
            x1 = int(rng.integers(0, canvas - width + 1))
            y1 = int(rng.integers(0, canvas - height + 1))
            x2, y2 = x1 + width, y1 + height
            if all(x2 <= left or right <= x1 or y2 <= top or bottom <= y1
                   for left, top, right, bottom in boxes):  # fmt: skip
                image[y1:y2, x1:x2] = ink
                boxes.append((x1, y1, x2, y2))
                placed.append(int(label))
                break
    return Scene(image, np.array(boxes), np.array(placed))


def is_complete(root: str | Path, settings: DigitsSettings) -> bool:
    """Whether ``root`` holds the whole sets for these settings.

    Args:
        root: Folder of :func:`write_digits`.
        settings: What should be there.
    """
    root = Path(root)
    try:
        manifest = json.loads((root / MANIFEST).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return manifest == _manifest(root, settings)


def _manifest(root: Path, settings: DigitsSettings) -> dict:
    """Settings and the number of files that are there, in JSON's types."""
    files = {
        f'{task}/{split}': sum(1 for _ in (root / task / split).rglob('*.png'))
        for task in ('classification', 'detection')
        for split in SPLITS
    }
    annotations = [split for split in SPLITS if (root / 'detection' / f'{split}.json').is_file()]
    content = dict(version=VERSION, settings=asdict(settings), files=files, annotations=annotations)
    return json.loads(json.dumps(content))


def write_digits(
    root: str | Path = 'data/digits', settings: DigitsSettings | None = None, progress: bool = True
) -> bool:
    """Writes the classification and the detection set, unless they are there already.

    Everything is written beside ``root`` and renamed at the end, so ``root`` is whole or absent.

    Args:
        root: Folder of the sets. Defaults to ``data/digits``.
        settings: What to write. Defaults to ``DigitsSettings()``.
        progress: Show a progress bar. Defaults to True.

    Returns:
        True when the sets were written, False when they were complete already.

    Raises:
        FileExistsError: ``root`` exists and was not written by this function.
    """
    root = Path(root)
    settings = settings or DigitsSettings()
    if is_complete(root, settings):
        return False
    if root.exists() and not (root / MANIFEST).is_file():
        raise FileExistsError(
            f'{root} exists but is not a digits set (it has no {MANIFEST}): move it or give '
            'another folder'
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'{root.name}.part-', dir=root.parent))
    try:
        partial.chmod(0o755)
        for number, (split, (digits, labels)) in enumerate(split_digits(settings.seed).items()):
            # One stream for each set: more pictures in one of them leave the others as they are.
            streams = [np.random.default_rng((settings.seed, number, task)) for task in range(2)]
            _write_classification(partial, split, digits, labels, streams[0], settings, progress)
            _write_detection(partial, split, digits, labels, streams[1], settings, progress)
        (partial / MANIFEST).write_text(json.dumps(_manifest(partial, settings), indent=1))
        if root.exists():
            shutil.rmtree(root)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _write_classification(
    root: Path,
    split: str,
    digits: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    settings: DigitsSettings,
    progress: bool,
) -> None:
    folder = root / 'classification' / split
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for index in _bar(range(len(digits)), f'{split} digits', progress):
        for copy in range(settings.copies[split]):
            one = slice(index, index + 1)
            scene = compose_scene(digits[one], labels[one], rng, settings)
            _save(scene.image, folder / CLASSES[labels[index]] / f'{index:04d}_{copy:02d}.png')


def _write_detection(
    root: Path,
    split: str,
    digits: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    settings: DigitsSettings,
    progress: bool,
) -> None:
    folder = root / 'detection' / split
    folder.mkdir(parents=True)
    fewest, most = settings.digits_per_scene
    images, annotations = [], []
    for image_id in _bar(range(1, settings.scenes[split] + 1), f'{split} scenes', progress):
        chosen = rng.integers(len(digits), size=int(rng.integers(fewest, most + 1)))
        scene = compose_scene(digits[chosen], labels[chosen], rng, settings)
        name = f'{image_id:06d}.png'
        _save(scene.image, folder / name)
        images.append(
            dict(id=image_id, file_name=name, width=settings.canvas, height=settings.canvas)
        )
        for (x1, y1, x2, y2), label in zip(
            scene.boxes.tolist(), scene.labels.tolist(), strict=True
        ):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=label + 1,
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=(x2 - x1) * (y2 - y1),
                    iscrowd=0,
                )
            )
    categories = [dict(id=label + 1, name=name) for label, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder.parent / f'{split}.json').write_text(json.dumps(content))


def _save(image: np.ndarray, path: Path) -> None:
    # Level 1 writes twice as fast and costs little space on so small a picture.
    Image.fromarray(image).save(path, compress_level=1)


def _bar(items: Sequence[int], description: str, progress: bool) -> Iterable[int]:
    # In a log a bar would only leave blank lines.
    shown = progress and sys.stdout.isatty()
    return track(items, description=description, disable=not shown)
