"""Annotation files as other programs write them."""

import json

import pytest
import torch
from mmengine.registry import METRICS

from mcf_mm.datasets import CocoDataset, CocoMetric
from mcf_mm.engine.runner import check_input


@pytest.fixture
def perfect(make, tmp_path):
    """AP of a detector that finds what the changed file lists, crowds apart."""

    def perfect(change=None) -> float:
        dataset = make(change, test_mode=True)
        config = dict(type='CocoMetric', ann_file=str(tmp_path / 'boxes.json'))
        check_input(config)
        metric = METRICS.build(config)
        assert type(metric) is CocoMetric
        metric.dataset_meta = dataset.metainfo
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            objects = [one for one in info['instances'] if not one['ignore_flag']]
            sample = dict(
                img_id=info['img_id'],
                ori_shape=(70, 90),
                pred_instances=dict(
                    bboxes=torch.tensor([one['bbox'] for one in objects]).view(-1, 4).float(),
                    scores=torch.ones(len(objects)),
                    labels=torch.tensor([one['bbox_label'] for one in objects]),
                ),
            )
            metric.process({}, [sample])
        return metric.evaluate(len(dataset))['coco/bbox_mAP']

    return perfect


def set_ids(*ids):
    def change(content):
        for annotation, value in zip(content['annotations'], ids, strict=True):
            annotation['id'] = value

    return change


def drop(key, numbers=(0, 1)):
    def change(content):
        for number in numbers:
            content['annotations'][number].pop(key)

    return change


def several_faults(content):
    set_ids(0, 0)(content)
    drop('iscrowd')(content)
    for annotation in content['annotations']:
        annotation['image_id'] = str(annotation['image_id'])


@pytest.mark.parametrize(
    'change, told',
    [
        (set_ids(0, 1), 'numbered anew in memory, for pycocotools: id 0 is no whole number from 1'),
        (set_ids(8, 8), 'id 8 is that of several'),
        (set_ids(-3, -2), 'id -3 is no whole number'),
        (set_ids('a', 'b'), "id 'a' is no whole number"),
        (set_ids(1, None), 'id None is no whole number'),
        (set_ids(1.5, 2.5), 'id 1.5 is no whole number'),
        (set_ids(True, 2), 'id True is no whole number'),
        (set_ids([1], [2]), r'id [1] is no whole number'),
        (drop('id'), 'id None is no whole number'),
        (drop('id', [1]), 'id None is no whole number'),
        (several_faults, 'id 0 is no whole number'),
    ],
)
def test_annotation_ids_do_not_matter(perfect, log, tmp_path, change, told):
    assert perfect(change) == 1
    assert told in log()
    assert '"id": 32' not in (tmp_path / 'boxes.json').read_text()  # the file stays as it was


def test_good_ids_are_kept(perfect, log):
    assert perfect() == perfect(set_ids(2**40, 7)) == 1
    assert 'numbered' not in log()


def test_errors_have_the_id_of_the_file(make):
    def change(content):
        set_ids(0, 'b-17')(content)
        content['annotations'][1]['bbox'] = None

    with pytest.raises(
        ValueError, match=r'boxes\.json: annotation b-17 of second\.jpg .*bbox None'
    ):
        make(change)


@pytest.mark.parametrize(
    'change, told',
    [
        (drop('iscrowd'), "2 annotations without 'iscrowd' are no crowds"),
        (drop('iscrowd', [1]), "1 annotations without 'iscrowd'"),
        (dict(iscrowd=None), "1 annotations without 'iscrowd'"),
        (dict(iscrowd='0'), 'iscrowd of 1 annotations is text and read as 0 or 1'),
        (dict(iscrowd=False), None),
        (dict(iscrowd=0.0), None),
    ],
)
def test_no_crowds(perfect, make, log, change, told):
    assert perfect(change) == 1
    assert told in log() if told else 'iscrowd' not in log()
    assert make(change)[1]['instances'][0]['ignore_flag'] == 0


@pytest.mark.parametrize('value', [1, True, '1', 1.0])
def test_crowds(perfect, make, value):
    assert make(dict(iscrowd=value))[1]['instances'][0]['ignore_flag'] == 1
    assert perfect(dict(iscrowd=value)) == 1  # of the other class


def change_ids(kind, to, annotations=None):
    key = {'images': 'image_id', 'categories': 'category_id'}[kind]

    def change(content):
        for annotation in content['annotations']:
            annotation[key] = (annotations or to)(annotation[key])
        for entry in content[kind]:
            entry['id'] = to(entry['id'])

    return change


@pytest.mark.parametrize('kind', ['images', 'categories'])
@pytest.mark.parametrize(
    'to, annotations',
    [
        (int, str),
        (str, int),
        (str, str),
        (int, lambda value: f'{value:06}'),
        (lambda value: f'{value:03}', str),
        (int, lambda value: f' {value} '),
        (lambda value: str(value) if value in (5, 3) else value, int),
        (lambda value: f'name {value}', None),
        (int, float),
    ],
)
def test_ids_as_text(perfect, kind, to, annotations):
    assert perfect(change_ids(kind, to, annotations)) == 1


@pytest.mark.parametrize(
    'ids, value, message',
    [
        (['07', '7'], 7, r"image_id 7, which may be any of \['0?7', '0?7'\] among the images"),
        (['a', 6], 6, r"some ids of images are numbers and some text, such as \['a'\]: write all"),
        (['6', 6], 6, r"numbers and some text, such as \['6'\]: write all as different"),
        ([[1], 6], 6, r'id of images is \[1\], expected a number: {'),
    ],
)
def test_ambiguous_ids(make, ids, value, message):
    def change(content):
        for image, number in zip(content['images'], ids, strict=True):
            image['id'] = number
        content['annotations'][1]['image_id'] = value

    with pytest.raises(ValueError, match=message):
        make(change)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32'])
def test_encodings(make, tmp_path, encoding):
    make(lambda content: content['images'][0].update(file_name='Äpfel.jpg'))
    content = json.loads((tmp_path / 'boxes.json').read_text())
    text = json.dumps(content, ensure_ascii=False)
    (tmp_path / 'other.json').write_bytes(text.encode(encoding))
    dataset = CocoDataset(
        data_root=str(tmp_path),
        ann_file='other.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=('red', 'green')),
    )
    assert dataset.get_data_info(0)['img_path'] == f'{tmp_path}/Äpfel.jpg'


@pytest.mark.parametrize(
    'content, message',
    [
        ('"Ä"'.encode('latin-1'), r'is no JSON file in UTF-8, .* Save it as UTF-8'),
        (b'', 'is no JSON file: Expecting value'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'is no JSON file: '),
        (b'{"images": 3, "categories": [{}]}', 'images is a int, expected a list'),
        (b'{"images": [3], "categories": [{}]}', 'entry of images is no object: 3'),
        (b'{"images": [{"id": 1}], "categories": null}', "has no 'categories'"),
        (b'{"images": [{"id": 1}], "categories": [4]}', 'entry of categories is no object: 4'),
        (b'{"images": null, "categories": [{}]}', 'lists no images'),
    ],
)
@pytest.mark.parametrize('kind', [CocoDataset, CocoMetric])
def test_no_such_files(tmp_path, content, message, kind):
    (tmp_path / 'boxes.json').write_bytes(content)
    with pytest.raises(ValueError, match=rf'boxes\.json:? {message}'):
        kind(ann_file=str(tmp_path / 'boxes.json'))


@pytest.mark.parametrize(
    'name, message',
    [
        (None, 'None: expected the name of a file'),
        ('', "'': expected the name"),
        (17, '17: expected the name'),
        (['a.jpg'], r"\['a\.jpg'\]: expected the name"),
        ('a\0.jpg', r"'a\\x00\.jpg': expected the name"),
        ('https://a.org/b.jpg', r"'https://a\.org/b\.jpg': files are looked for in '.*Download it"),
        ('s3://bucket/b.jpg', r'files are looked for in'),
        ('train\\b.jpg', r"'train\\\\b\.jpg': there is no such file\. Write folders with \"/\""),
    ],
)
@pytest.mark.parametrize('test_mode', [False, True])
def test_file_names(make, name, message, test_mode):
    with pytest.raises(
        ValueError, match=rf'boxes\.json: image id 6 has file_name {message}|{message}'
    ):
        make(lambda content: content['images'][1].update(file_name=name), test_mode=test_mode)


def test_backslashes_of_a_file_that_is_there(make, tmp_path):
    (tmp_path / 'a\\b.jpg').touch()
    make(lambda content: content['images'][1].update(file_name='a\\b.jpg'))


@pytest.mark.parametrize(
    'change, share',
    [
        (dict(bbox=[40, 40, 64, 64]), '1 of 2 boxes (50.0%)'),  # as x1 y1 x2 y2
        (dict(bbox=[-9, 10, 24, 24]), '1 of 2 boxes (50.0%)'),
        (dict(bbox=[10, 10, 24, 2000]), '1 of 2 boxes (50.0%)'),
    ],
)
@pytest.mark.parametrize('test_mode', [False, True])
def test_boxes_beyond_their_image(make, log, change, share, test_mode):
    make(change, test_mode=test_mode)
    expected = f'{share} reach beyond their image (the first: annotation 32 of second.jpg, bbox ['
    assert expected in log() and 'in 90 x 70 pixels): bbox is [x, y, width, height]' in log()


@pytest.mark.parametrize('box', [[66, 46, 25, 25], [-1, 10, 20, 20], [66, 46, 24, 24]])
def test_boxes_to_the_border_are_good(make, log, box):
    make(dict(bbox=box))
    assert 'beyond' not in log()


def test_categories_can_be_sorted(make, tmp_path):
    make(lambda content: content['categories'].reverse(), classes=('green', 'red'))
    metric = CocoMetric(str(tmp_path / 'boxes.json'), sort_categories=True)
    assert list(metric._coco_api.cats) == [3, 7]


@pytest.mark.parametrize(
    'change, reason',
    [
        (dict(area=0), '2 with area 0 or less and a good box (write width * height) (the first'),
        (dict(bbox=[500, 500, 20, 20]), '2 with a box outside the image (the first: annotation 31'),
        (dict(bbox=[0.1, 0.1, 0.5, 0.5]), '2 with a box smaller than a pixel (bbox is in pixels'),
        (dict(iscrowd=1), '2 that are crowds (iscrowd=1)'),
        (dict(image_id=99), '2 of images that the file does not list'),
        (dict(ignore=1), '2 with ignore set'),
    ],
)
@pytest.mark.parametrize('filter_cfg', [None, dict(filter_empty_gt=True)])
def test_nothing_is_left(make, change, reason, filter_cfg):
    def both(content):
        for annotation in content['annotations']:
            annotation.update(change)

    with pytest.raises(ValueError) as error:
        make(both, filter_cfg=filter_cfg)
    expected = 'boxes.json: nothing is left to train on of 2 images with 2 annotations: '
    assert expected in str(error.value) and reason in str(error.value)
    make(both, test_mode=True)


def test_nothing_is_left_for_several_reasons(make):
    def change(content):
        content['annotations'][0].update(area=0)
        content['annotations'][1].update(iscrowd=1)

    with pytest.raises(ValueError, match=r'1 with area 0 .*; 1 that are crowds'):
        make(change)


def test_all_images_are_too_small(make):
    message = r"with 2 annotations: filter_cfg={'min_size': 99} leaves 2 images out"
    with pytest.raises(ValueError, match=message):
        make(filter_cfg=dict(min_size=99))


def test_negatives_alone_are_left_to_the_whole_training_set(make):
    for none in ([], None):
        dataset = make(lambda content, none=none: content.update(annotations=none))
        assert len(dataset) == 2 and not dataset.has_boxes
