"""Data sets in the three formats, with real JPEG files and real annotation files."""

import json
import re
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from mcf_mm.datasets.image_files import ImageFiles
from mcf_mm.datasets.object_sizes import choose_size, size_row, size_table
from mcf_mm.datasets.own_data import (
    Boxes,
    check_overlap,
    check_set,
    class_lines,
    class_names,
    guess_format,
    read_set,
    split,
    unify_classes,
    write_set,
)

XML = """<annotation><filename>{file}</filename>{size}
<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>
<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object></annotation>"""
SIZE = '<size><width>100</width><height>80</height><depth>3</depth></size>'


@pytest.fixture
def photos(tmp_path):
    """Folder with four JPEG files of 100 x 80 pixels, one of them in a subfolder."""
    rng = np.random.default_rng(0)
    for name in ('a', 'b', 'c', 'more/d'):
        path = tmp_path / 'photos' / f'{name}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (80, 100, 3), dtype=np.uint8)).save(path)
    return tmp_path / 'photos'


@pytest.fixture
def voc(tmp_path):
    """Writes an XML file; every argument is what a labelled image usually has."""

    def write(name, file=None, box=(11, 21, 60, 70), label='cat', difficult=0, size=SIZE):
        path = tmp_path / 'xml' / f'{name}.xml'
        path.parent.mkdir(parents=True, exist_ok=True)
        file = f'{name}.jpg' if file is None else file
        path.write_text(XML.format(file=file, box=box, name=label, difficult=difficult, size=size))
        return tmp_path / 'xml'

    return write


@pytest.fixture
def yolo(tmp_path):
    """Writes a text file of labels; there are two classes."""

    def write(name, text, classes='cat\ndog\n'):
        path = tmp_path / 'labels' / f'{name}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if classes is not None:
            (tmp_path / 'labels' / 'classes.txt').write_text(classes)
        return tmp_path / 'labels'

    return write


def test_voc_corners_count_from_1_and_are_in_the_box(voc, photos, tmp_path):
    voc('a', box=(1, 1, 100, 80))
    folder = voc('b', label='dog', difficult=1)
    content, notes = read_set(folder, photos, 'voc')
    assert [row['bbox'] for row in content['annotations']] == [[0, 0, 100, 80], [10, 20, 50, 50]]
    assert class_names(content) == ['cat', 'dog']
    assert [row['iscrowd'] for row in content['annotations']] == [0, 1]
    assert any('1 difficult objects are not trained on' in note for note in notes)
    assert any('2 images without an XML file are left out (c.jpg' in note for note in notes)
    write_set(content, tmp_path / 'boxes.json')
    boxes = check_set(tmp_path / 'boxes.json', photos, ['cat', 'dog'], 'training')
    assert boxes.sides.tolist() == [[100, 80]] and boxes.images.tolist() == [[100, 80]] * 2


def test_voc_corners_from_0_are_taken_as_they_are(voc, photos):
    content, notes = read_set(voc('a', box=(0, 5, 100, 80)), photos, 'voc')
    assert content['annotations'][0]['bbox'] == [0, 5, 100, 75]
    assert any('counted from 0' in note and 'a.xml' in note for note in notes)


def test_voc_without_file_name_or_size(voc, photos):
    content, notes = read_set(voc('a', file='C:\\old\\IMG_1.JPG', size=''), photos, 'voc')
    image = content['images'][0]
    assert image == dict(id=1, file_name='a.jpg', width=100, height=80)
    assert any('found by the name of their XML file' in note for note in notes)
    assert any('1 XML files say no size' in note for note in notes)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(box=(200, 5, 240, 30)), r"a\.xml: a box of 'cat' .* is outside its image of 100 x"),
        (dict(box=(60, 5, 20, 30)), r'a\.xml: object 1 \(cat\) has corners .*larger x and y last'),
        (dict(box=('x', 5, 20, 30)), r'expected four numbers'),
        (dict(label=' '), r'a\.xml: object 1 has no <name>'),
        (dict(name='z'), r"z\.xml: there is no image 'z\.jpg' in"),
        (dict(size='<size><width>wide</width></size>'), r"a\.xml has <size> \['wide', None\]"),
    ],
)
def test_voc_that_is_refused(voc, photos, settings, message):
    with pytest.raises(ValueError, match=message):
        read_set(voc(**{'name': 'a', **settings}), photos, 'voc')


@pytest.mark.parametrize(
    'text, message',
    [
        ('<annotation><object>', r'a\.xml is damaged or no XML file'),
        ('<svg/>', r'a\.xml has <svg> as root'),
        ('<annotation/>', r'1 XML files have not a single <object>'),
    ],
)
def test_damaged_xml(voc, photos, text, message):
    folder = voc('a')
    (folder / 'a.xml').write_text(text)
    with pytest.raises(ValueError, match=message):
        read_set(folder, photos, 'voc')


def test_a_size_that_is_not_that_of_the_image_stops_by_name(voc, photos, tmp_path):
    content, _ = read_set(voc('a', size=SIZE.replace('100', '400')), photos, 'voc')
    write_set(content, tmp_path / 'boxes.json')
    with pytest.raises(ValueError, match=r'a\.jpg: the image is 100 x 80 .* are for 400 x 80'):
        check_set(tmp_path / 'boxes.json', photos, ['cat'], 'training')


def test_yolo_shares_become_pixels(yolo, photos):
    yolo('a', '1 0.5 0.5 0.2 0.5\n')
    folder = yolo('more/d', '0 0.1 0.25 0.3 0.25 0.2 0.75\n')  # a triangle
    content, notes = read_set(folder, photos, 'yolo')
    boxes = {row['image_id']: row for row in content['annotations']}
    names = {image['id']: image['file_name'] for image in content['images']}
    assert list(names.values()) == ['a.jpg', 'b.jpg', 'c.jpg', 'more/d.jpg']
    found = {names[number]: row for number, row in boxes.items()}
    assert found['a.jpg']['bbox'] == pytest.approx([40, 20, 20, 40])
    assert found['a.jpg']['category_id'] == 2
    assert found['more/d.jpg']['bbox'] == pytest.approx([10, 20, 20, 40])
    assert any('classes.txt' in note for note in notes)
    assert any('2 images without a text file count as images without objects' in n for n in notes)
    assert any('1 polygons are read as the boxes around them' in note for note in notes)


def test_yolo_names_of_data_yaml_and_of_the_command(yolo, photos, tmp_path):
    folder = yolo('a', '1 0.5 0.5 0.2 0.5', classes=None)
    with pytest.raises(ValueError, match='data.yaml or classes.txt there, or name them with'):
        read_set(folder, photos, 'yolo')
    assert class_names(read_set(folder, photos, 'yolo', ['x', 'y'])[0]) == ['x', 'y']
    (tmp_path / 'data.yaml').write_text('names: {0: cat, 1: dog}\nnc: 2\n')
    assert class_names(read_set(folder, photos, 'yolo')[0]) == ['cat', 'dog']
    (tmp_path / 'data.yaml').write_text('names: {1: cat, 2: dog}\n')
    with pytest.raises(ValueError, match=r'names are numbered \[1, 2\], expected 0, 1, 2'):
        read_set(folder, photos, 'yolo')


@pytest.mark.parametrize(
    'text, message',
    [
        ('\n2 0.5 0.5 0.2 0.5', r'a\.txt, line 2: .* class 2 is not one of 0 to 1 \(cat, dog\)'),
        ('0.5 0.5 0.5 0.2 0.5', r'class 0\.5 is not one of'),
        ('-1 0.5 0.5 0.2 0.5', r'class -1 is not one of'),
        ('0 50 40 20 40', r'expected shares of the image from 0 to 1, not pixels'),
        ('0 0.5 0.5 0.2', r'expected five numbers'),
        ('0 0.5 0.5 0.2 nan', r'expected five numbers'),
        ('cat 0.5 0.5 0.2 0.5', r'expected numbers, class x y width height'),
    ],
)
def test_yolo_that_is_refused(yolo, photos, text, message):
    with pytest.raises(ValueError, match=message):
        read_set(yolo('a', text), photos, 'yolo')


def test_missing_images(yolo, photos):
    with pytest.raises(ValueError, match=r'z\.txt: there is no image z\.\* in'):
        read_set(yolo('z', '0 0.5 0.5 0.2 0.5'), photos, 'yolo')
    shutil.copy(photos / 'a.jpg', photos / 'a.png')
    with pytest.raises(ValueError, match=r"may belong to any of \['a\.jpg', 'a\.png'\]"):
        ImageFiles(photos).find_stem('a.txt')


def test_empty_and_missing_folders(tmp_path, photos):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'has 0 \.json, 0 \.xml, 0 \.txt files'):
        guess_format(tmp_path / 'empty')
    with pytest.raises(FileNotFoundError, match='no file or folder of annotations'):
        guess_format(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='has no images'):
        ImageFiles(tmp_path / 'empty')
    for kind, message in (('voc', r'has no \.xml'), ('yolo', r'has no \.txt')):
        with pytest.raises(ValueError, match=message):
            read_set(tmp_path / 'empty', photos, kind, ['cat'] if kind == 'yolo' else None)


def test_formats_are_told_apart(voc, yolo, tmp_path):
    assert guess_format(voc('a')) == 'voc'
    assert guess_format(yolo('a', '')) == 'yolo'
    (tmp_path / 'boxes.json').write_text('{}')
    assert guess_format(tmp_path / 'boxes.json') == 'coco'
    shutil.copy(tmp_path / 'xml' / 'a.xml', tmp_path / 'labels')
    with pytest.raises(ValueError, match=r'0 \.json, 1 \.xml, 1 \.txt files: expected one kind'):
        guess_format(tmp_path / 'labels')


def test_coco_is_checked_as_in_training(photos, tmp_path):
    content = dict(
        images=[dict(id=1, file_name='a.jpg', width=100, height=80)],
        annotations=[dict(id=1, image_id=1, category_id=9, bbox=[1, 1, 9, 9], area=81, iscrowd=0)],
        categories=[dict(id=1, name='cat')],
    )
    path = tmp_path / 'boxes.json'
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='has category_id 9, which is not among'):
        read_set(path, photos, 'coco')
    content['annotations'][0]['category_id'] = 1
    path.write_text(json.dumps(content))
    assert read_set(path, photos, 'coco') == (content, [])
    content['images'][0]['file_name'] = 'train/a.jpg'
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has file_name 'train/a\.jpg': there is no such file"):
        read_set(path, photos, 'coco')


def test_a_split_is_seeded_and_whole(voc, photos):
    for name in ('a', 'b', 'c'):
        folder = voc(name)
    content, _ = read_set(folder, photos, 'voc')
    training, validation = split(content, 0.34, 0)
    assert (training, validation) == split(content, 0.34, 0)
    assert len(training['images']) == 2 and len(validation['images']) == 1
    for part in (training, validation):
        ids = [image['id'] for image in part['images']]
        assert [row['image_id'] for row in part['annotations']] == ids
    assert {tuple(split(content, 0.34, s)[1]['images'][0].items()) for s in range(9)} > {
        tuple(validation['images'][0].items())
    }
    check_overlap(training, validation, photos, photos)
    with pytest.raises(ValueError, match=r'1 images are in training and in validation, \w\.jpg'):
        check_overlap(content, validation, photos, photos)
    with pytest.raises(ValueError, match='a share of 0.01 of 3 images is 0 to validate on'):
        split(content, 0.01, 0)


def test_classes_of_two_sets_are_numbered_alike(voc, photos, tmp_path):
    training, _ = read_set(voc('a', label='cat'), photos, 'voc')
    (tmp_path / 'xml' / 'a.xml').unlink()
    validation, _ = read_set(voc('b', label='ant'), photos, 'voc')
    unify_classes(training, validation)
    assert class_names(training) == class_names(validation) == ['ant', 'cat']
    assert training['annotations'][0]['category_id'] == 2


def test_a_misspelt_class_is_told_with_its_image(voc, photos):
    for name in ('a', 'b', 'c'):
        voc(name, label='without_mask' if name != 'b' else 'witout_mask')
    content = read_set(voc('a', label='without_mask'), photos, 'voc')[0]
    content['annotations'] += [dict(row) for row in content['annotations'] * 9]
    for row in content['annotations'][3:]:
        row['category_id'] = content['annotations'][0]['category_id']
    lines = class_lines({'train': content, 'val': dict(content, annotations=[])})
    assert 'class without_mask: boxes in train 29, val 0' in lines
    assert 'class witout_mask: boxes in train 1, val 0' in lines
    (slip,) = [line for line in lines if 'spelt' in line]
    assert slip.startswith(
        "class 'witout_mask' is spelt almost like 'without_mask' and has 1 boxes"
    )
    assert 'the first in b.jpg' in slip


def test_a_set_without_boxes_is_refused(yolo, photos, tmp_path):
    write_set(read_set(yolo('a', ''), photos, 'yolo')[0], tmp_path / 'boxes.json')
    with pytest.raises(ValueError, match='training has not a single box, in 4 images'):
        check_set(tmp_path / 'boxes.json', photos, ['cat', 'dog'], 'training')


def test_a_truncated_image_stops_by_name(yolo, photos, tmp_path):
    write_set(read_set(yolo('a', '0 .5 .5 .5 .5'), photos, 'yolo')[0], tmp_path / 'boxes.json')
    path = photos / 'a.jpg'
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r'a\.jpg: the JPEG file of \d+ bytes is truncated'):
        check_set(tmp_path / 'boxes.json', photos, ['cat', 'dog'], 'training')


@pytest.fixture
def boxes():
    """Eight boxes of 40 and two of 20 pixels in images of 1280 x 640."""
    sides = np.array([[40.0, 40.0]] * 8 + [[20.0, 20.0]] * 2)
    return Boxes(sides, np.arange(10), np.array([[1280.0, 640.0]] * 10))


def test_sizes_follow_the_boxes(boxes):
    row = size_row(boxes, 640)
    assert (row.tokens, row.small, row.below) == (40 * 20, 10, 0.2)
    assert size_row(boxes, 480).below == 1  # 40 pixels become 15
    assert choose_size(boxes, 2000)[0] == 1024  # 20 pixels become 16
    size, reason = choose_size(boxes, 640)
    assert size == 640 and 'set by --max-size' in reason
    assert choose_size(boxes, 640, 96) == (96, 'as --size says')
    table = size_table(boxes, 640)
    assert '20% of your boxes are smaller than a patch (16 px) at 640 px' in table
    assert 'take a larger --size' in table
    assert len(re.findall(r'^> +640 px +800 ', table, re.MULTILINE)) == 1


def test_no_size_beyond_that_of_the_images(boxes):
    small = boxes._replace(sides=boxes.sides / 4, images=boxes.images / 4)
    assert choose_size(small, 2000) == (
        320,
        'the largest, what the images have: small boxes stay below a patch',
    )
    with pytest.raises(ValueError, match='--max-size must be at least 64 pixels, got 32'):
        choose_size(boxes, 32)


def test_raccoons(shared_data, tmp_path):
    with tarfile.open(shared_data / 'raccoon_voc.tar.xz') as tar:
        tar.extractall(tmp_path, filter='data')
    folder = tmp_path / 'raccoon_voc'
    content, notes = read_set(folder / 'annotations', folder / 'images', 'voc')
    assert len(content['images']) == 200 and len(content['annotations']) == 217 and not notes
    # A box from 1 to the last pixel is the whole image: mmdet's would be a pixel narrower.
    whole = [row['bbox'][:2] for row in content['annotations'] if min(row['bbox'][:2]) == 0]
    assert len(whole) == 36
    training, validation = split(content, 0.25, 0)
    write_set(validation, tmp_path / 'val.json')
    boxes = check_set(tmp_path / 'val.json', folder / 'images', ['raccoon'], 'validation')
    assert len(boxes.images) == 50 and len(training['images']) == 150
    assert choose_size(boxes, 640)[0] == 320
