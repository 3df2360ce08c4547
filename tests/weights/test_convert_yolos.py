"""The public YOLOS, Hugging Face's and ours: the same weights give the same logits and boxes."""

from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from safetensors.torch import load_file
from torch import Tensor
from yolos_networks import (
    PUBLISHED,
    SMALL,
    TYPES,
    WIDTH,
    PublicYOLOS,
    assert_same,
    huggingface,
    ours,
    randomised,
    small,
)

from mcf_mm.models import YOLOS
from mcf_mm.pruning import Structure, cut, find_ffns
from mcf_mm.weights.checkpoint import read_header, read_state_dict
from mcf_mm.weights.convert import convert_checkpoint, convert_state_dict
from mcf_mm.weights.files import save_pth

# Upright, smaller, larger, and sides that are no multiples of a patch.
SIZES = [PUBLISHED, (864, 512), (256, 432), (544, 880), (250, 333)]


def assert_equal_results(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    for own, theirs in zip(one, other, strict=True):
        assert own.std() > 0.05  # results that are alike whatever the input prove nothing
        torch.testing.assert_close(own, theirs, atol=1e-4, rtol=0)


@TYPES
@torch.inference_mode()
def test_logits_and_boxes_are_those_of_transformers(type_one):
    theirs, model = huggingface(type_one), ours(type_one)
    model.load_state_dict(convert_state_dict(theirs.state_dict(), 'mmdet'))
    generator = torch.Generator().manual_seed(1)
    results = {}
    for size in SIZES:
        image = torch.randn(1, 3, *size, generator=generator)
        logits, boxes = (output[0] for output in model(image))
        expected = theirs(image)
        results[size] = boxes
        assert_equal_results((logits, boxes), (expected.logits, expected.pred_boxes))
    # Positions matter: for a transposed grid, those of the published one would not do.
    upright = torch.randn(1, 3, 864, 512, generator=generator)
    right = model(upright)[1]
    model.backbone._cached_positions[54, 32] = model.backbone._positions((32, 54))
    assert (model(upright)[1] - right).abs().max() > 1e-2


@TYPES
@torch.inference_mode()
def test_the_public_layout(type_one, tmp_path):
    public = randomised(PublicYOLOS(type_one, SMALL))
    # As its training script saves it.
    checkpoint = dict(model=public.state_dict(), epoch=149, args=Namespace(lr=2.5e-5))
    if not hasattr(torch.serialization, 'safe_globals'):
        checkpoint.pop('args')  # torch before 2.5 reads no objects at all
    torch.save(checkpoint, tmp_path / 'yolos.pth')
    convert_checkpoint(tmp_path / 'yolos.pth', tmp_path / 'yolos.safetensors', 'mmdet')
    assert read_header(tmp_path / 'yolos.safetensors')['origin'] == 'yolos.pth'
    model = small(type_one)
    model.load_state_dict(read_state_dict(str(tmp_path / 'yolos.safetensors')))
    image = torch.randn(1, 3, *SMALL, generator=torch.Generator().manual_seed(1))
    assert_equal_results([output[0] for output in model(image)], public(image))


@TYPES
@torch.inference_mode()
def test_the_public_layout_in_transformers(type_one, tmp_path):
    theirs = huggingface(type_one, SMALL)
    theirs.config.save_pretrained(tmp_path)
    public = randomised(PublicYOLOS(type_one, SMALL))
    save_pth(tmp_path / 'yolos.pth', {'model': public.state_dict()})
    convert_checkpoint(tmp_path / 'yolos.pth', tmp_path / 'model.safetensors', 'huggingface')
    theirs, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not report['missing_keys'] and not report['unexpected_keys']
    image = torch.randn(1, 3, *SMALL, generator=torch.Generator().manual_seed(1))
    results = theirs.eval()(image)
    assert_equal_results((results.logits, results.pred_boxes), public(image))
    model = small(type_one)
    model.load_state_dict(convert_state_dict(load_file(tmp_path / 'model.safetensors'), 'mmdet'))
    assert_same(convert_state_dict(public.state_dict(), 'mmdet'), model.state_dict())
    assert_equal_results([output[0] for output in model(image)], public(image))


@TYPES
@pytest.mark.parametrize('slim', [False, True], ids=['dense', 'slim'])
def test_there_and_back_gives_the_same_bits(type_one, slim):
    model = small(type_one)
    if slim:
        kept = dict(inputs=torch.arange(0, WIDTH, 2), hidden=torch.arange(0, 96, 3))
        cut(model, Structure({find_ffns(model)[-1].name: kept}))
    weights = model.state_dict()
    for there in ('original', 'huggingface'):
        converted = convert_state_dict(weights, there)
        assert sum(map(Tensor.numel, converted.values())) == sum(
            map(Tensor.numel, weights.values())
        )
        assert_same(convert_state_dict(converted, 'mmdet'), weights)
        other = {'original': 'huggingface', 'huggingface': 'original'}[there]
        assert_same(convert_state_dict(converted, other), convert_state_dict(weights, other))
        if slim:
            (inputs,) = [key for key in converted if key.endswith('.inputs')]
            assert torch.equal(converted[inputs], kept['inputs'])
            assert converted[inputs.replace('inputs', 'weight')].shape == (32, 24)


def public_results(logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Scores, labels and boxes (x1, y1, x2, y2) of an image as the public evaluation has them.

    Its boxes are relative to the original image, of height and width ``size``, whatever the
    padding. mmdet clips them to it besides.
    """
    scores, labels = logits.softmax(-1)[:, :-1].max(-1)
    order = scores.argsort(descending=True)
    height, width = size
    cx, cy, w, h = (boxes[order] * torch.tensor([width, height] * 2)).T
    x1, x2 = ((cx + sign * w / 2).clamp(0, width) for sign in (-1, 1))
    y1, y2 = ((cy + sign * h / 2).clamp(0, height) for sign in (-1, 1))
    return scores[order], labels[order], torch.stack((x1, y1, x2, y2), dim=1)


@TYPES
@torch.inference_mode()
def test_a_batch_with_padding_as_image_is_the_public_one(type_one):
    theirs, model = huggingface(type_one, SMALL), small(type_one, mask_padding=False)
    weights = convert_state_dict(theirs.state_dict(), 'mmdet')
    model.load_state_dict(weights)
    masked = small(type_one)
    masked.load_state_dict(weights)
    shapes = [(64, 96), (130, 70), (77, 150), (64, 96)]
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator)
        for shape in shapes
    ]

    def predict(detector: YOLOS, chosen: list[int]) -> list[DetDataSample]:
        samples = []
        for height, width in (shapes[i] for i in chosen):
            # The image was enlarged to twice its size.
            meta = dict(ori_shape=(height / 2, width / 2), scale_factor=(2.0, 2.0))
            samples.append(DetDataSample(metainfo=dict(meta, img_shape=(height, width))))
        return detector.test_step(dict(inputs=[images[i] for i in chosen], data_samples=samples))

    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    )
    padded = torch.stack(
        [
            F.pad((image.flip(0) - mean) / std, (0, 150 - image.shape[2], 0, 130 - image.shape[1]))
            for image in images
        ]
    )
    expected = theirs(padded)
    for i, sample in enumerate(predict(model, [0, 1, 2, 3])):
        ours = sample.pred_instances
        size = [side / 2 for side in shapes[i]]
        scores, labels, boxes = public_results(expected.logits[i], expected.pred_boxes[i], size)
        torch.testing.assert_close(ours.scores, scores, atol=1e-4, rtol=0)
        assert torch.equal(ours.labels, labels)
        torch.testing.assert_close(ours.bboxes, boxes, atol=1e-2, rtol=0)  # pixels
        # Padding as image is what costs accuracy; one image alone has none in both.
        (alone,) = predict(model, [i])
        (with_mask,) = predict(masked, [i])
        torch.testing.assert_close(alone.pred_instances.bboxes, with_mask.pred_instances.bboxes)
        assert (alone.pred_instances.scores - ours.scores).abs().max() > 1e-2
