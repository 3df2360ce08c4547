"""The public YOLOS, Hugging Face's and ours: the same weights give the same logits and boxes.

The networks are small, with random weights in every parameter. The public one is built of timm's
blocks, whose names its release has.
"""

import runpy
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from safetensors.torch import load_file
from torch import Tensor, nn

from mcf_mm.models import YOLOS
from mcf_mm.pruning import Structure, cut, find_ffns
from mcf_mm.registry import MODELS
from mcf_mm.weights.checkpoint import read_header, read_state_dict, save_state_dict
from mcf_mm.weights.convert import convert_checkpoint, convert_state_dict
from mcf_mm.weights.files import save_pth
from mcf_mm.weights.timm import to_timm

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'
WIDTH, DEPTH, HEADS, DET_TOKENS, CLASSES = 48, 3, 3, 7, 5
# The published size: 54 x 32 patches are as many as 32 x 54, and not the same positions.
PUBLISHED = (512, 864)
SMALL = (64, 96)
# Upright, smaller, larger, and sides that are no multiples of a patch.
SIZES = [PUBLISHED, (864, 512), (256, 432), (544, 880), (250, 333)]
TYPES = pytest.mark.parametrize('type_one', [True, False], ids=['type I', 'type II'])


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        # Norms near one, so that attention is sharp and each part of the image is felt.
        centre = float(parameter.ndim == 1 and name.endswith('weight'))
        parameter.data = centre + torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval()


def ours(type_one: bool, img_size=PUBLISHED, **kwargs) -> YOLOS:
    arch = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=96)
    backbone = dict(
        type='mcf_mm.YOLOSVisionTransformer',
        arch=arch,
        img_size=img_size,
        num_det_tokens=DET_TOKENS,
        with_mid_pos_embed=type_one,
        **kwargs,
    )
    preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
    model = dict(
        type='mcf_mm.YOLOS',
        data_preprocessor=dict(type='mmdet.DetDataPreprocessor', bgr_to_rgb=True, **preprocessor),
        backbone=backbone,
        bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=CLASSES, embed_dims=WIDTH),
    )
    return randomised(MODELS.build(model))


def small(type_one: bool, **kwargs) -> YOLOS:
    return ours(type_one, img_size=SMALL, **kwargs)


def huggingface(type_one: bool, img_size=PUBLISHED) -> nn.Module:
    transformers = pytest.importorskip('transformers')
    config = transformers.YolosConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=96,
        layer_norm_eps=1e-6,
        image_size=img_size,
        num_detection_tokens=DET_TOKENS,
        use_mid_position_embeddings=type_one,
        num_labels=CLASSES,
    )
    return randomised(transformers.YolosForObjectDetection(config))


class Perceptron(nn.Module):
    def __init__(self, out_channels: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, n) for n in (WIDTH, WIDTH, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.layers
        return third(second(first(x).relu()).relu())


class PublicYOLOS(nn.Module):
    """For images of the size that its positions were learnt for."""

    def __init__(self, type_one: bool, img_size: tuple[int, int]):
        super().__init__()
        vit = timm.models.VisionTransformer(
            img_size, 16, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=2, num_classes=0
        )
        tokens = 1 + vit.patch_embed.num_patches + DET_TOKENS
        vit.pos_embed = nn.Parameter(torch.empty(1, tokens, WIDTH))
        vit.det_token = nn.Parameter(torch.empty(1, DET_TOKENS, WIDTH))
        if type_one:
            vit.mid_pos_embed = nn.Parameter(torch.empty(DEPTH - 1, 1, tokens, WIDTH))
        self.backbone = vit
        self.class_embed = Perceptron(CLASSES + 1)
        self.bbox_embed = Perceptron(4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        vit = self.backbone
        x = torch.cat((vit.cls_token, vit.patch_embed(image), vit.det_token), dim=1)
        x = x + vit.pos_embed
        for i, block in enumerate(vit.blocks):
            x = block(x)
            if hasattr(vit, 'mid_pos_embed') and i < DEPTH - 1:
                x = x + vit.mid_pos_embed[i]
        x = vit.norm(x)[:, -DET_TOKENS:]
        return self.class_embed(x), self.bbox_embed(x).sigmoid()


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def assert_equal_results(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert ours.std() > 0.05  # results that are alike whatever the input prove nothing
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


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


@TYPES
def test_both_names_of_the_mid_position_embeddings(type_one, tmp_path):
    """transformers 5 renames them when it has read its files; older versions do not."""
    theirs = huggingface(type_one)
    theirs.save_pretrained(tmp_path)
    in_memory, in_file = theirs.state_dict(), load_file(tmp_path / 'model.safetensors')
    assert sum('mid_position' in key for key in in_memory) == type_one
    converted = convert_state_dict(in_memory, 'mmdet')
    assert_same(convert_state_dict(in_file, 'mmdet'), converted)
    assert_same(convert_state_dict(converted, 'huggingface'), in_file)


def test_files_of_a_slim_detector(tmp_path):
    model = small(True)
    ffn = find_ffns(model)[1]
    kept = dict(inputs=torch.arange(20), hidden=torch.arange(30))
    cut(model, Structure({ffn.name: kept}))
    header = {'sizes': {ffn.name: [20, 30]}, 'ratio': 0.5}
    save_state_dict(tmp_path / 'slim.safetensors', model.state_dict(), header)
    names = {'original': 'backbone.blocks.1.mlp', 'huggingface': 'vit.encoder.layer.1.mlp'}
    for library, name in names.items():
        there, back = tmp_path / f'{library}.safetensors', tmp_path / 'back.safetensors'
        convert_checkpoint(tmp_path / 'slim.safetensors', there, library)
        assert read_header(there)['sizes'] == {name: [20, 30]}
        convert_checkpoint(there, back, 'mmdet')
        header = read_header(back)
        assert (header['sizes'], header['ratio']) == ({ffn.name: [20, 30]}, 0.5)
    again = small(True, sizes='auto')
    again.load_state_dict(read_state_dict(str(back)))
    assert find_ffns(again)[1].sizes == dict(inputs=20, hidden=30)
    image = torch.randn(1, 3, 96, 64)
    assert torch.equal(again(image)[1], model(image)[1])


def test_keys_that_are_unknown_or_missing():
    weights = small(True).state_dict()
    scale = {'backbone.blocks.0.ls1.gamma': torch.ones(WIDTH)}
    public = convert_state_dict(weights, 'original')
    with pytest.raises(ValueError, match="1 of .* not of a YOLOS in .* of original: '.*ls1.gamma'"):
        convert_state_dict(public | scale, 'mmdet')

    def without(names: dict, *ends: str) -> dict:
        return {key: names[key] for key in names if not key.endswith(ends)}

    with pytest.raises(
        ValueError,
        match="2 weights of a YOLOS in the names of original are missing: 'backbone.det_token', "
        "'class_embed.layers.1.bias'",
    ):
        convert_state_dict(without(public, 'det_token', 'class_embed.layers.1.bias'), 'mmdet')
    theirs = convert_state_dict(weights, 'huggingface')
    gone = tuple(f'layer.1.attention.attention.{third}.bias' for third in ('query', 'key', 'value'))
    with pytest.raises(ValueError, match=f"3 weights .*'vit.encoder.{gone[0]}', .*'.*{gone[2]}'$"):
        convert_state_dict(without(theirs, *gone), 'original')
    with pytest.raises(ValueError, match=rf"\['vit.*{gone[1]}'\] are missing beside 'vit.encoder"):
        convert_state_dict(without(theirs, gone[1]), 'original')
    # A detector without its blocks in between is of another depth, and said so.
    block = [key for key in weights if key.startswith('backbone.layers.1.')]
    with pytest.raises(ValueError, match="12 weights .* of mmdet .*'backbone.layers.1.ln1.w"):
        convert_state_dict(without(weights, *block), 'original')
    # Without the embeddings between its blocks it is one of type II.
    assert_same(
        convert_state_dict(without(public, 'mid_pos_embed'), 'mmdet'),
        without(weights, 'mid_pos_embed'),
    )


def test_names_that_a_family_lacks():
    weights = small(False).state_dict()
    libraries = r"\['mmdet', 'original', 'huggingface'\]"
    for library in ('mmpretrain', 'timm'):
        message = f'the weights are of a YOLOS: to must be one of {libraries}, got .{library}.'
        with pytest.raises(ValueError, match=message):
            convert_state_dict(weights, library)
    with pytest.raises(ValueError, match='of a YOLOS: to must be one of .*, got .timm.'):
        to_timm(weights, 'deit_tiny_patch16_224')
    with pytest.raises(ValueError, match='names of mmdet already, nothing is to be converted'):
        convert_state_dict(weights, 'mmdet')
    classifier = timm.models.VisionTransformer(32, 16, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="of a ViT: to must be .*'mmpretrain', .*got 'mmdet'"):
        convert_state_dict(classifier.state_dict(), 'mmdet')


def test_tool(tmp_path, monkeypatch, capsys):
    torch.save({'model': randomised(PublicYOLOS(True, SMALL)).state_dict()}, tmp_path / 'yolos.pth')

    def run(*args):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
        runpy.run_path(str(TOOL), run_name='__main__')

    run(tmp_path / 'yolos.pth', tmp_path / 'ours.safetensors', '--to', 'mmdet')
    number = sum(parameter.numel() for parameter in small(True).parameters())
    assert f'{number / 1e6:.3f} M parameters' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='yolos.pth: the weights are of a YOLOS: to must be one'):
        run(tmp_path / 'yolos.pth', tmp_path / 'ours.safetensors', '--to', 'mmpretrain')


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
