"""What the labels of datasets mean: class names, class folders, labels in annotation files."""

from collections.abc import Iterator
from typing import Any

import numpy as np


def parts(dataset: Any) -> Iterator[Any]:
    """The datasets inside wrappers such as ConcatDataset and RepeatDataset."""
    inner = getattr(dataset, 'datasets', None) or getattr(dataset, 'dataset', None)
    if inner is None:
        yield dataset
        return
    for part in inner if isinstance(inner, list | tuple) else [inner]:
        yield from parts(part)


def class_names(dataset: Any) -> list[str]:
    """Names of the labels 0, 1, 2 ... that the metainfo has."""
    return list((getattr(dataset, 'metainfo', None) or {}).get('classes') or ())


def folder_names(dataset: Any) -> list[str]:
    """Class folders in the order of their labels; empty for datasets that have none.

    Raises:
        ValueError: The metainfo has the same names in another order.
    """
    for part in parts(dataset):
        if numbers := getattr(part, 'folder_to_idx', None):
            folders = sorted(numbers, key=numbers.get)
            classes = class_names(part)
            if classes != folders and sorted(map(str, classes)) == folders:
                raise ValueError(
                    f'classes={classes} is another order than that of the folders, which number '
                    f'the labels: {folders}. Set classes={folders}'
                )
            return folders
    return []


def compare_classes(training: Any, validation: Any) -> None:
    """Refuses a validation set whose labels mean something else than those of the training set.

    Raises:
        ValueError: The class names differ; the message has the difference.
    """
    # Detectors that read class names as text may well be evaluated on others.
    if any(getattr(part, 'return_classes', False) for part in parts(validation)):
        return
    # Folders of names such as n01440764 have other names in the metainfo, and lists have none.
    ours, theirs = folder_names(training), folder_names(validation)
    if not ours or not theirs:
        ours, theirs = class_names(training), class_names(validation)
    if not ours or not theirs or ours == theirs:
        return
    sides = []
    for name, own, other in (('training', ours, theirs), ('validation', theirs, ours)):
        only = [item for item in own if item not in other]
        sides.append(f'only in the {name} set: {few(only) if only else "none"}')
    for number, (own, other) in enumerate(zip(ours, theirs, strict=False)):
        if own != other:
            sides.append(f'label {number} is {own!r} in training and {other!r} in validation')
            break
    raise ValueError(
        f'the classes of training ({len(ours)}) and validation ({len(theirs)}) differ; '
        f'{"; ".join(sides)}. Give both sets the same class folders (an empty one counts), or the '
        'same metainfo=dict(classes=...)'
    )


def compare_order(trained_on: list[str], dataset: Any) -> None:
    """Refuses evaluation where a class of the checkpoint has another label; names may be new.

    Raises:
        ValueError: A name stands for another label here than in training.
    """
    if any(getattr(part, 'return_classes', False) for part in parts(dataset)):
        return
    labels = {name: label for label, name in enumerate(trained_on)}
    for label, name in enumerate(class_names(dataset)):
        if labels.get(name, label) != label and trained_on.count(name) == 1:
            raise ValueError(
                f'the checkpoint was trained with {name!r} as label {labels[name]} of '
                f'{few(trained_on)}; here it is label {label} of {few(class_names(dataset))}. '
                'Give both sets the same class folders, or the same metainfo=dict(classes=...)'
            )


def check_labels(dataset: Any, head: str, number: int, title: str) -> None:
    """Check the labels that an annotation file has; folders have been counted.

    Args:
        dataset: A dataset without wrappers.
        head: What to call the head in an error.
        number: Its number of classes.
        title: What to call the dataset in an error.

    Raises:
        ValueError: A label is out of range.
    """
    if not getattr(dataset, 'ann_file', None) or not hasattr(dataset, 'get_data_info'):
        return
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        if 'gt_label' not in info:
            return  # boxes, which have been checked by category
        for label in np.atleast_1d(info['gt_label']).tolist():
            if isinstance(label, int) and not 0 <= label < number:
                raise ValueError(
                    f'{dataset.ann_file}: {info.get("img_path")} has label {label} and {head} is '
                    f'for {number} classes, 0 to {number - 1}: labels of the {title} count from 0. '
                    'Correct the file, or set num_classes of the head'
                )


def few(names: list) -> str:
    """The first five names, for an error."""
    return ', '.join(map(str, names[:5])) + ('...' if len(names) > 5 else '')
