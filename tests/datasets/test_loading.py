"""Real image files of every unhappy kind."""

import numpy as np
import pytest
from mmdet.registry import TRANSFORMS
from mmengine.logging import MMLogger
from PIL import Image


@pytest.fixture
def photo(tmp_path) -> np.ndarray:
    """A smooth picture (64, 96, 3), RGB, that JPEG keeps almost as it is."""
    rows, columns = np.mgrid[0:64, 0:96]
    return np.stack([rows * 3, columns * 2, 255 - rows - columns], axis=-1).astype(np.uint8)


def load(path, **kwargs) -> dict | None:
    transform = TRANSFORMS.build(dict(type='mcf_mm.LoadImageFromFile', **kwargs))
    return transform(dict(img_path=str(path)))


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
@pytest.mark.parametrize('ending', ['jpg', 'tif'])
def test_colours(photo, tmp_path, mode, ending):
    path = tmp_path / f'photo.{ending}'
    Image.fromarray(photo).convert(mode).save(path)
    results = load(path)
    assert results['img'].dtype == np.uint8 and results['img'].shape == (64, 96, 3)
    assert results['img_shape'] == results['ori_shape'] == (64, 96)
    expected = np.asarray(Image.open(path).convert('RGB')).astype(int)
    assert np.abs(results['img'][..., ::-1] - expected).max() <= 3
    if mode != 'L':
        assert np.abs(expected - photo).mean() < 3  # the colours themselves, not their negative


def test_a_palette_and_transparency(photo, tmp_path):
    Image.fromarray(photo).convert('P').save(tmp_path / 'palette.png')
    Image.fromarray(photo).convert('RGBA').save(tmp_path / 'alpha.png')
    assert load(tmp_path / 'palette.png')['img'].shape == (64, 96, 3)
    assert np.array_equal(load(tmp_path / 'alpha.png')['img'][..., ::-1], photo)


def test_float32(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / 'photo.png')
    image = load(tmp_path / 'photo.png', to_float32=True)['img']
    assert image.dtype == np.float32 and np.array_equal(image[..., ::-1], photo)


@pytest.fixture
def jpeg(photo, tmp_path):
    path = tmp_path / 'photo.jpg'
    Image.fromarray(photo).save(path, quality=95)
    return path


@pytest.mark.parametrize('part', [0.1, 0.5, 0.98])
@pytest.mark.parametrize('progressive', [False, True])
def test_a_truncated_jpeg(photo, tmp_path, part, progressive):
    path = tmp_path / 'photo.jpg'
    Image.fromarray(photo).save(path, quality=95, progressive=progressive)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    size = path.stat().st_size
    with pytest.raises(ValueError, match=rf'photo\.jpg: the JPEG file of {size} bytes is trunc'):
        load(path)


def test_data_behind_the_end_of_a_jpeg_does_no_harm(jpeg):
    expected = load(jpeg)['img']
    for more in (b'\0' * 100, b'what a camera has added'):
        content = jpeg.read_bytes()
        other = jpeg.with_name('more.jpg')
        other.write_bytes(content + more)
        assert np.array_equal(load(other)['img'], expected)


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', r'bad\.jpg: the image file is empty \(0 bytes\)'),
        (b'<html>no such page</html>', r'bad\.jpg: the 25 bytes are damaged or no image that cv2'),
    ],
)
def test_no_image(tmp_path, content, message):
    (tmp_path / 'bad.jpg').write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / 'bad.jpg')


def test_what_pillow_refuses_is_named_too(tmp_path):
    (tmp_path / 'bad.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'bad\.png: the image cannot be decoded: cannot identify'):
        load(tmp_path / 'bad.png', imdecode_backend='pillow')


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.jpg'):
        load(tmp_path / 'nowhere.jpg')


def test_leaving_bad_files_out(tmp_path):
    log = tmp_path / 'log.txt'
    MMLogger.get_instance(f'log of {tmp_path}', log_file=str(log))  # the current one from now on
    (tmp_path / 'bad.jpg').write_bytes(b'')
    assert load(tmp_path / 'bad.jpg', ignore_empty=True) is None
    assert f'left out: {tmp_path}/bad.jpg: the image file is empty' in log.read_text()


@pytest.mark.parametrize(
    'size, message',
    [
        (
            (64, 96),
            r'photo\.jpg: the image is 64 x 96 pixels .* are for 96 x 64\. The file was tur',
        ),
        ((48, 32), r'photo\.jpg: the image is 48 x 32 pixels .* are for 96 x 64\. .* was resized'),
        ((96, 65), r'photo\.jpg: the image is 96 x 65 pixels .* are for 96 x 64\. .* was resized'),
    ],
)
@pytest.mark.parametrize('ignore_empty', [False, True])
def test_an_image_of_another_size_than_labelled(jpeg, size, message, ignore_empty):
    Image.open(jpeg).resize(size).save(jpeg)
    transform = TRANSFORMS.build(dict(type='mcf_mm.LoadImageFromFile', ignore_empty=ignore_empty))
    with pytest.raises(ValueError, match=message):
        transform(dict(img_path=str(jpeg), width=96, height=64))
    transform(dict(img_path=str(jpeg), width=size[0], height=size[1]))


@pytest.mark.parametrize('orientation', [5, 6, 7, 8])
def test_an_image_turned_by_exif(jpeg, orientation):
    image = Image.open(jpeg)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(jpeg, exif=exif)
    load = TRANSFORMS.build(dict(type='mcf_mm.LoadImageFromFile'))
    as_stored = dict(img_path=str(jpeg), width=96, height=64)
    with pytest.raises(ValueError, match=r'64 x 96 pixels .* 96 x 64\. .*EXIF .*exif_transpose'):
        load(as_stored)
    assert load(dict(as_stored, width=64, height=96))['img'].shape == (96, 64, 3)
    keeps = dict(type='mcf_mm.LoadImageFromFile', color_type='color_ignore_orientation')
    assert TRANSFORMS.build(keeps)(as_stored)['img'].shape == (64, 96, 3)
