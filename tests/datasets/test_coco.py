"""Annotation files that a person has made mistakes in."""

import pytest
from mmdet.datasets import CocoDataset as MMDetCocoDataset

from mcf_mm.datasets import CocoDataset


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(category_id=99), r'category_id 99, which is not among .* of the file: \[3, 7\]'),
        (dict(bbox=[10, 10, float('nan'), 24]), r'bbox \[10, 10, nan, 24\] and area 576: expected'),
        (dict(bbox=[float('inf'), 10, 5, 24]), r'bbox \[inf, 10, 5, 24\]'),
        (dict(bbox=[10, 10, 24]), r'bbox \[10, 10, 24\] and area 576: expected \[x, y, width, h'),
        (dict(area=float('nan')), r'area nan'),
        (dict(area=None), r'area None: expected'),
        (dict(bbox=None), r'bbox None and area 576: expected'),
        (dict(bbox=['1', '2', '3', '4']), r"bbox \['1', '2', '3', '4'\] and area 576: expected"),
        (lambda content: content['annotations'][1].pop('bbox'), "has no 'bbox'"),
        (lambda content: content['annotations'][1].pop('area'), "has no 'area': write width"),
        (dict(bbox='10 10 24 24'), 'bbox 10 10 24 24 and area 576: expected'),
        (dict(bbox=[[10, 10], [24, 24]]), r'bbox \[\[10, 10\], \[24, 24\]\]'),
        (dict(area='576'), 'area 576: expected'),
        (dict(area=10**400), 'area 10+: expected'),
        (dict(category_id=None), 'category_id None, which is not among'),
        (dict(category_id=[7]), r'category_id \[7\]: expected one id'),
        (dict(iscrowd=2), 'iscrowd 2: write 0 for an object, 1 for a crowd'),
        (dict(iscrowd='no'), "iscrowd 'no': write"),
        (dict(iscrowd=[]), r'iscrowd \[\]: write'),
        (dict(iscrowd=float('nan')), 'iscrowd nan: write'),
    ],
)
@pytest.mark.parametrize('test_mode', [False, True])
def test_mistakes_are_refused_by_name(make, change, message, test_mode):
    where = r'boxes\.json: annotation 32 of second\.jpg \(image id 6\) '
    with pytest.raises(ValueError, match=where + '.*' + message):
        make(change, test_mode=test_mode)


@pytest.mark.parametrize(
    'kind, key, entry',
    [
        ('annotations', 'category_id', "{'id': 32,"),
        ('annotations', 'image_id', "{'id': 32,"),
        ('images', 'width', "{'id': 6, 'file_name': 'second.jpg'"),
        ('images', 'file_name', "{'id': 6, 'height': 70"),
        ('images', 'id', "{'file_name': 'second.jpg'"),
        ('categories', 'id', "{'name': 'green'}"),
        ('categories', 'name', "{'id': 7}"),
    ],
)
def test_incomplete_entries(make, kind, key, entry):
    with pytest.raises(ValueError, match=rf"boxes\.json: entry of {kind} without '{key}': {entry}"):
        make(lambda content: content[kind][1].pop(key))


@pytest.mark.parametrize('size', [0, None, '90', float('nan')])
def test_an_image_without_size(make, size):
    message = rf'boxes\.json: second\.jpg \(image id 6\) has width {size!r} and height 70: exp'
    with pytest.raises(ValueError, match=message):
        make(lambda content: content['images'][1].update(width=size))


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda content: content.pop('categories'), "has no 'categories': it is no file of COCO"),
        (lambda content: content.pop('images'), 'lists no images'),
        (lambda content: content.pop('annotations'), "has no 'annotations' to train on"),
        (
            lambda content: content['images'][1].update(id=5),
            r"image id 5 is that of \['first\.jpg', 'second\.jpg'\]",
        ),
        (
            lambda content: content.update(annotations=[]),
            r'nothing is left to train on of 2 images with 0 annotations: '
            r"filter_cfg={'filter_empty_gt': True} leaves 2 images out: has the .*'red'",
        ),
    ],
    ids=['categories', 'images', 'annotations', 'two images of one id', 'all filtered'],
)
def test_files_that_cannot_be_trained_on(make, change, message):
    with pytest.raises(ValueError, match=rf'boxes\.json.* {message}'):
        make(change, filter_cfg=dict(filter_empty_gt=True))


@pytest.mark.parametrize('text', ['{"images": [', '[]'])
def test_files_of_another_kind(tmp_path, text):
    (tmp_path / 'boxes.json').write_text(text)
    with pytest.raises(ValueError, match=r"boxes\.json (is no JSON file: |has no 'categories')"):
        CocoDataset(data_root=str(tmp_path), ann_file='boxes.json')


def test_a_test_set_without_annotations(make):
    dataset = make(lambda content: content.pop('annotations'), test_mode=True)
    assert [dataset[n]['instances'] for n in range(2)] == [[], []]


def test_masks_are_asked_for_where_they_are_loaded(make):
    masks = dict(pipeline=[dict(type='mmdet.LoadAnnotations', with_mask=True)])
    polygon = dict(segmentation=[[10, 10, 30, 10, 30, 30]])

    def first(content):
        content['annotations'][0].update(polygon)

    def both(content):
        for annotation in content['annotations']:
            annotation.update(polygon)

    with pytest.raises(ValueError, match=r"32 of second\.jpg .* has no 'segmentation', and masks"):
        make(first, **masks)
    assert 'mask' in make(both, **masks).get_data_info(1)['instances'][0]


SMALL = 'with a box smaller than a pixel (bbox is in pixels, not shares of the image)'


@pytest.mark.parametrize(
    'change, reason',
    [
        (dict(bbox=[10, 10, 0, 24], area=0), SMALL),
        (dict(bbox=[50, 50, -20, 20]), SMALL),
        (dict(bbox=[0.1, 0.1, 0.3, 0.3]), SMALL),
        (dict(bbox=[90, 10, 20, 20]), 'with a box outside the image'),
        (dict(bbox=[10, -30, 20, 20]), 'with a box outside the image'),
        (dict(area=0), 'with area 0 or less and a good box (write width * height)'),
        (dict(area=-576), 'with area 0 or less and a good box (write width * height)'),
        (dict(ignore=1), 'with ignore set (evaluation counts them)'),
    ],
)
def test_boxes_that_cannot_be_seen_are_left_out_and_counted(make, change, reason, log):
    dataset = make(change)
    assert [len(dataset[n]['instances']) for n in range(2)] == [1, 0]
    expected = f'left out: 1 {reason} (the first: annotation 32 of second.jpg, bbox ['
    assert log().count(expected) == 1
    # Evaluation is on the file, and leaves nothing out.
    make(change, test_mode=True)
    assert log().count(expected) == 1


def test_a_box_across_the_border_is_kept(make, log):
    instances = make(dict(bbox=[80, 60, 50, 50], area=2500))[1]['instances']
    assert instances[0]['bbox'] == [80, 60, 130, 110]  # as in mmdet, whose Resize clips it
    assert 'left out' not in log()


def test_a_crowd_is_not_an_object(make):
    (instance,) = make(dict(iscrowd=1))[1]['instances']
    assert instance['ignore_flag'] == 1


def test_a_choice_of_classes(make, log):
    dataset = make(classes=('green',))
    assert [len(dataset[n]['instances']) for n in range(2)] == [0, 1]
    assert dataset[1]['instances'][0]['bbox_label'] == 0
    expected = '1 of categories that are not in classes (the first: annotation 31 of first.jpg,'
    assert expected in log()


@pytest.mark.parametrize('classes', [('red', 'blue'), ('blue',), ('red', 'green', 'blue')])
def test_a_class_that_the_file_does_not_have(make, classes):
    message = r"boxes\.json does not list each class .* once: \['blue'\] of .*\['red', 'green'\]"
    with pytest.raises(ValueError, match=message):
        make(classes=classes)


@pytest.mark.parametrize('test_mode', [False, True])
def test_classes_in_another_order(make, test_mode):
    message = (
        r"boxes\.json lists the categories in another order than classes=\['green', 'red'\]: .*"
        r"metainfo=dict\(classes=\('red', 'green'\)\)"
    )
    with pytest.raises(ValueError, match=message):
        make(classes=('green', 'red'), test_mode=test_mode)


@pytest.mark.parametrize('image_id', [77, '7', None])
def test_annotations_of_no_image_are_counted(make, log, image_id):
    dataset = make(dict(image_id=image_id))
    assert [len(dataset[n]['instances']) for n in range(2)] == [1, 0]
    expected = f'(the first: annotation 32 of image id {image_id!r},'
    assert f'left out: 1 of images that the file does not list {expected}' in log()


def test_a_category_listed_twice(make):
    def twice(content):
        content['categories'].append(dict(id=9, name='green'))

    with pytest.raises(ValueError, match=r"exactly once: \['green'\] of classes"):
        make(twice)


def test_the_original_annotations_of_coco(coco_mini):
    kwargs = dict(
        data_root=str(coco_mini),
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        pipeline=[dict(type='mmdet.LoadAnnotations', with_mask=True)],  # crowds have masks too
    )
    ours, theirs = CocoDataset(**kwargs), MMDetCocoDataset(**kwargs)
    assert len(ours) == len(theirs) == 79
    assert all(ours.get_data_info(n) == theirs.get_data_info(n) for n in range(79))
