import numpy as np
import pytest
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes

from mcf_mm.datasets import PatchResize


def resize(height: int, width: int, scale: tuple[int, int]) -> dict:
    transform = TRANSFORMS.build(dict(type='mcf_mm.PatchResize', scale=scale))
    image = np.zeros((height, width, 3), dtype=np.uint8)
    boxes = HorizontalBoxes(np.array([[0, 0, width, height]], dtype=np.float32))
    return transform(dict(img=image, img_shape=(height, width), gt_bboxes=boxes))


@pytest.mark.parametrize(
    'height, width, scale, expected',
    [
        (480, 640, (1333, 800), (800, 1056)),  # 1066.67, floored
        (640, 427, (1333, 800), (1184, 800)),  # 1199
        (300, 900, (1333, 800), (432, 1328)),  # 444 x 1333, the longer side decides
        (400, 301, (288, 288), (288, 208)),
        (5, 500, (288, 288), (16, 288)),
        (480, 633, (1333, 800), (800, 1040)),  # 1055, and not 1056
        (480, 633, (1333, 480), (480, 624)),
        (427, 427, (176, 176), (176, 176)),
        (333, 321, (176, 176), (176, 160)),
    ],
)
def test_sides_are_whole_patches(height, width, scale, expected):
    results = resize(height, width, scale)
    assert results['img'].shape[:2] == results['img_shape'] == expected
    assert results['scale_factor'] == pytest.approx((expected[1] / width, expected[0] / height))
    box = results['gt_bboxes'].tensor[0].tolist()
    assert box == pytest.approx([0, 0, expected[1], expected[0]])


def test_sizes_are_those_of_the_public_code():
    # Hugging Face have taken them over from it.
    yolos = pytest.importorskip('transformers.models.yolos.image_processing_yolos')
    public = getattr(yolos, 'get_size_with_aspect_ratio_yolos', None)
    if public is None:
        pytest.skip('this version of transformers has it in another place')
    rng = np.random.default_rng(0)
    for height, width in rng.integers(50, 1400, (3000, 2)).tolist():
        for longest, shortest in ((1333, 800), (1333, 496), (1013, 608), (853, 512)):
            found = PatchResize._whole_patches((height, width), (longest, shortest))
            short, long = sorted((height, width))
            # Theirs leaves an image alone when its shorter side happens to be right by then.
            if short not in (shortest, round(longest * short / long)):
                expected = public((height, width), shortest, longest)[::-1]
                assert found == tuple(max(side, 16) for side in expected)


def test_random_choice_of_sizes():
    transform = TRANSFORMS.build(
        dict(
            type='RandomChoiceResize',
            resize_type='mcf_mm.PatchResize',
            scales=[(100, 70), (150, 90)],
        )
    )
    shapes = set()
    for _ in range(30):
        image = np.zeros((50, 80, 3), dtype=np.uint8)
        shapes.add(transform(dict(img=image, img_shape=(50, 80)))['img_shape'])
    assert shapes == {(48, 96), (80, 144)}
