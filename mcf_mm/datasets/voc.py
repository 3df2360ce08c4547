"""Reads Pascal VOC's XML files as COCO's annotations.

Own code, for it is less than the alternatives: ``supervision`` 0.31 brings scipy, matplotlib and
PyAV, and the checks would come on top; mmdet's XMLDataset wants the class names and JPEG files
beforehand, and its boxes are a pixel too narrow and low (it takes one from all corners, where VOC's
are pixels counted from 1, the last one included).
"""

import math
from pathlib import Path
from xml.etree import ElementTree

from mcf_mm.datasets.image_files import ImageFiles

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def read_voc(folder: str | Path, images: ImageFiles) -> tuple[dict, list[str]]:
    """Read all XML files of a folder.

    Corners are pixels counted from 1, the last included, as VOC defines them: a box over a whole
    image of 500 pixels is from 1 to 500 and becomes x 0, width 500. Where a corner of the set is 0
    or less, the program that wrote it counted from 0, and corners are taken as they are.
    A *difficult* object becomes ``iscrowd=1``: not trained on, neither right nor wrong in
    evaluation, as in mmdet.

    Args:
        folder: Folder of XML files, with its subfolders.
        images: The images; ``<filename>`` says which, or else the name of the XML file.

    Returns:
        Content of an annotation file of COCO, classes sorted by name, and what was guessed or
        replaced, a line each.

    Raises:
        ValueError: There is no XML file; one is damaged, has an object without name or corners, or
            a box that is empty or outside its image; or there is no such image, or two files for
            it.
    """
    folder = Path(folder)
    paths = sorted(folder.rglob('*.xml'))
    if not paths:
        raise ValueError(f'{folder} has no .xml files')
    roots = {path: _parse(path) for path in paths}
    names, notes = _match(roots, folder, images)
    rows = [
        (path, *_object(path, number, element))
        for path, root in roots.items()
        for number, element in enumerate(root.findall('object'), start=1)
    ]
    classes = sorted({name for _, name, *_ in rows})
    if not classes:
        raise ValueError(f'{folder}: {len(paths)} XML files have not a single <object>')
    from_zero = [(path, corners) for path, _, corners, _ in rows if min(corners[:2]) < 1]
    if from_zero:
        path, corners = from_zero[0]
        notes.append(
            f'corners are taken as counted from 0, for {path} has {list(corners)}; VOC counts '
            'from 1'
        )
    content = dict(
        images=[],
        annotations=[],
        categories=[dict(id=number, name=name) for number, name in enumerate(classes, start=1)],
    )
    sizes, replaced = {}, 0
    for number, (path, root) in enumerate(roots.items(), start=1):
        size = _size(path, root)
        if size is None:
            size, replaced = images.size(names[path]), replaced + 1
        sizes[path] = (number, size)
        image = dict(id=number, file_name=names[path], width=size[0], height=size[1])
        content['images'].append(image)
    for path, name, (left, top, right, bottom), is_difficult in rows:
        number, size = sizes[path]
        if not from_zero:
            left, top = left - 1, top - 1
        if left >= size[0] or top >= size[1] or right <= 0 or bottom <= 0:
            raise ValueError(
                f'{path}: a box of {name!r} from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) is '
                f'outside its image of {size[0]} x {size[1]} pixels. Correct or delete it'
            )
        content['annotations'].append(
            dict(
                id=len(content['annotations']) + 1,
                image_id=number,
                category_id=classes.index(name) + 1,
                bbox=[left, top, right - left, bottom - top],
                area=(right - left) * (bottom - top),
                iscrowd=int(is_difficult),
            )
        )
    if replaced:
        notes.append(f'{replaced} XML files say no size: it is that of the image file')
    if difficult := sum(row[-1] for row in rows):
        notes.append(
            f'{difficult} difficult objects are not trained on and do not count in evaluation '
            '(iscrowd=1, as in mmdet)'
        )
    return content, notes


def _parse(path: Path) -> ElementTree.Element:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f'{path} is damaged or no XML file: {error}') from error
    if root.tag != 'annotation':
        raise ValueError(f'{path} has <{root.tag}> as root, expected <annotation> as VOC has it')
    return root


def _match(
    roots: dict[Path, ElementTree.Element], folder: Path, images: ImageFiles
) -> tuple[dict[Path, str], list[str]]:
    """The image of each file, and what was guessed or left out."""
    names: dict[Path, str] = {}
    owners: dict[str, Path] = {}
    by_stem = []
    for path, root in roots.items():
        place = path.relative_to(folder)
        told = (root.findtext('filename') or '').strip().replace('\\', '/').rpartition('/')[2]
        name = images.find((place.parent / told).as_posix()) if told else None
        if name is None:
            name = images.find_stem(place.as_posix())
            by_stem.append(path)
        if name is None:
            raise ValueError(
                f'{path}: there is no image {told or "(no <filename>)"!r} in {images.folder}, nor '
                f'one that is called {place.stem!r}. Add it, or delete the XML file'
            )
        if name in owners:
            raise ValueError(f'{path} and {owners[name]} are both for {name}: delete one')
        names[path], owners[name] = name, path
    notes = []
    if by_stem:
        notes.append(
            f'{len(by_stem)} images are found by the name of their XML file, for <filename> is no '
            f'file (the first: {by_stem[0]})'
        )
    if alone := [name for name in images.names if name not in owners]:
        notes.append(f'{len(alone)} images without an XML file are left out ({alone[0]}, ...)')
    return names, notes


def _size(path: Path, root: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height; None where the file says none, or 0 as labelImg may."""
    texts = [root.findtext(f'size/{side}') for side in ('width', 'height')]
    try:
        width, height = (int(float(text or 0)) for text in texts)
    except (ValueError, OverflowError):
        raise ValueError(f'{path} has <size> {texts}: expected pixels') from None
    return (width, height) if width > 0 and height > 0 else None


def _object(path: Path, number: int, element: ElementTree.Element) -> tuple[str, tuple, bool]:
    """Name, corners and whether it is difficult."""
    name = (element.findtext('name') or '').strip()
    if not name:
        raise ValueError(f'{path}: object {number} has no <name>')
    texts = [element.findtext(f'bndbox/{corner}') for corner in CORNERS]
    try:
        corners = tuple(float(text) for text in texts)
    except (TypeError, ValueError):
        corners = (math.nan,)
    if not all(map(math.isfinite, corners)) or corners[2] < corners[0] or corners[3] < corners[1]:
        raise ValueError(
            f'{path}: object {number} ({name}) has corners {dict(zip(CORNERS, texts, strict=True))}'
            ': expected four numbers, the larger x and y last'
        )
    return name, corners, (element.findtext('difficult') or '0').strip() == '1'
