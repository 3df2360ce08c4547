import copy

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.utils import MultiheadAttention
from torch.utils._python_dispatch import TorchDispatchMode

from mcf_mm.models import SlimVisionTransformer, YOLOSVisionTransformer
from mcf_mm.pruning import ActivationObserver, calibrate, find_units
from mcf_mm.weights.checkpoint import save_state_dict

ARCH = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
NUM_PATCHES = 4 * 6


def build(**kwargs) -> YOLOSVisionTransformer:
    backbone = YOLOSVisionTransformer(
        **{'arch': ARCH, 'img_size': (64, 96), 'num_det_tokens': 5, **kwargs}
    )
    for parameter in backbone.parameters():  # large enough for every part to be felt
        torch.nn.init.normal_(parameter, std=0.2)
    return backbone


class CountResizes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.upsample_bicubic2d.default
        return func(*args, **(kwargs or {}))


def plain_forward(backbone: YOLOSVisionTransformer, image: torch.Tensor) -> torch.Tensor:
    """The published forward pass, one image of the size that positions were learnt for."""
    projection = backbone.patch_embed.projection
    patches = F.conv2d(image, projection.weight, projection.bias, stride=16)
    patches = patches.flatten(2).transpose(1, 2)
    x = torch.cat((backbone.cls_token, patches, backbone.det_token), dim=1) + backbone.pos_embed
    for i, layer in enumerate(backbone.layers):
        batch, tokens, width = x.shape
        qkv = layer.attn.qkv(layer.ln1(x)).reshape(batch, tokens, 3, 2, width // 2)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (width // 2) ** 0.5).softmax(-1)
        x = x + layer.attn.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        fc1, fc2 = layer.ffn.layers[0][0], layer.ffn.layers[1]
        x = x + fc2(F.gelu(fc1(layer.ln2(x))))
        if backbone.mid_pos_embed is not None and i < len(backbone.layers) - 1:
            x = x + backbone.mid_pos_embed[i]
    return backbone.ln1(x)[:, -5:]


def test_attention_is_that_of_all_slim_networks():
    """One class for dense and slim, with parameters and keys of mmpretrain."""
    dense, slim = build(), build(sizes=dict(heads=1))
    assert type(dense.layers[0].attn) is type(slim.layers[0].attn)
    assert isinstance(dense.layers[0].attn, MultiheadAttention)
    classifier = SlimVisionTransformer(arch=ARCH).state_dict().keys()
    assert dense.state_dict().keys() - classifier == {'det_token'}


def test_tokens_that_count(tmp_path):
    backbone = build()
    assert backbone.counted_tokens is None
    backbone(torch.randn(2, 3, 64, 96))
    expected = torch.ones(2, 1 + NUM_PATCHES + 5, dtype=torch.bool)
    expected[:, 0] = False
    assert torch.equal(backbone.counted_tokens, expected)
    backbone(torch.randn(2, 3, 96, 96), [(64, 96), (32, 96)])
    expected[1, 1 + NUM_PATCHES // 2 : -5] = False
    assert torch.equal(backbone.counted_tokens, expected)
    # Neither a state dict nor a copy nor a file has it.
    assert 'counted_tokens' not in backbone.state_dict()
    torch.save(backbone, tmp_path / 'backbone.pth')
    again = torch.load(tmp_path / 'backbone.pth', weights_only=False)
    assert copy.deepcopy(backbone).counted_tokens is None and again.counted_tokens is None
    again(torch.randn(1, 3, 64, 96))
    assert again.counted_tokens.sum() == NUM_PATCHES + 5


def test_calibration_sees_the_tokens_that_count():
    backbone = build()
    shapes = [(64, 96), (32, 96)]
    batch = torch.randn(2, 3, 64, 96)
    units = find_units(backbone)
    observers = [ActivationObserver(unit, 'hidden') for unit in units.ffns]
    seen = calibrate(backbone, [batch], observers, forward=lambda x: backbone(x, shapes))
    unit = units.ffns[0]
    hidden = []
    hook = unit.fc2.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    with torch.no_grad():
        backbone(batch, shapes)
    hook.remove()
    rows = torch.cat([hidden[0][0, 1:], hidden[0][1, 1:13], hidden[0][1, -5:]])
    torch.testing.assert_close(seen[unit, 'hidden'].mean.float(), rows.mean(0))


@pytest.mark.parametrize('type_one', [False, True])
def test_forward_is_the_published_one(type_one):
    backbone = build(with_mid_pos_embed=type_one)
    image = torch.randn(1, 3, 64, 96)
    (tokens,) = backbone(image)
    assert tokens.shape == (1, 5, 32)
    torch.testing.assert_close(tokens, plain_forward(backbone, image), rtol=1e-4, atol=1e-5)


def test_mid_position_embeddings_follow_all_blocks_but_the_last():
    assert build(with_mid_pos_embed=True).mid_pos_embed.shape == (2, 1, 1 + NUM_PATCHES + 5, 32)
    assert build().mid_pos_embed is None


def test_new_parts_start_with_std_002():
    # As many values as YOLOS-S has: torch 2.1 draws the limit once in some ten million.
    backbone = YOLOSVisionTransformer(arch='deit-small', with_mid_pos_embed=True)
    backbone.init_weights()
    for embed in (backbone.det_token, backbone.pos_embed, backbone.mid_pos_embed):
        assert embed.std().item() == pytest.approx(0.02, rel=0.03)
        assert embed.abs().max() <= 0.1


@pytest.mark.parametrize('mask_padding', [True, False])
def test_partial_patches_are_left_out(mask_padding):
    backbone = build(mask_padding=mask_padding)
    image = torch.randn(1, 3, 64, 96)
    larger = F.pad(image, (0, 15, 0, 7), value=9.0)
    torch.testing.assert_close(backbone(larger)[0], backbone(image)[0])


def test_positions_are_resized_when_only_their_count_fits():
    backbone = build().eval()
    upright = backbone._positions((6, 4))
    assert upright.shape == (1, 1 + NUM_PATCHES + 5, 32)
    grid = backbone.pos_embed[:, 1:-5].reshape(1, 4, 6, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(6, 4), mode='bicubic', align_corners=False)
    expected = expected.permute(0, 2, 3, 1).reshape(1, NUM_PATCHES, 32)
    torch.testing.assert_close(upright[:, 1:-5], expected)
    torch.testing.assert_close(upright[:, -5:], backbone.pos_embed[:, -5:])
    assert (upright - backbone.pos_embed).abs().max() > 0.1


@pytest.mark.parametrize('type_one', [False, True])
@pytest.mark.parametrize('mode', [True, False])
def test_padding_changes_nothing(type_one, mode):
    backbone = build(with_mid_pos_embed=type_one).train(mode)
    shapes = [(64, 96), (96, 48), (50, 70), (64, 96)]
    images = [torch.randn(3, *shape) for shape in shapes]
    batch = torch.stack([F.pad(im, (0, 96 - im.shape[2], 0, 96 - im.shape[1])) for im in images])
    (together,) = backbone(batch, shapes)
    for image, tokens in zip(images, together, strict=True):
        torch.testing.assert_close(backbone(image[None])[0][0], tokens, rtol=0, atol=1e-4)
    public = build(with_mid_pos_embed=type_one, mask_padding=False).train(mode)
    public.load_state_dict(backbone.state_dict())
    assert (public(batch, shapes)[0] - together).abs().max() > 1e-2
    torch.testing.assert_close(public(batch, shapes), public(batch))


def test_equal_grids_need_no_mask():
    backbone = build()
    masks = []
    for layer in backbone.layers:
        layer.register_forward_pre_hook(lambda module, args: masks.append(args[1]))
    backbone(torch.randn(2, 3, 96, 96), [(64, 96), (70, 100)])
    assert masks == [None] * 3
    backbone(torch.randn(2, 3, 96, 96), [(64, 96), (32, 96)])
    assert masks[-1].shape == (2, 1, 1, 1 + NUM_PATCHES + 5)
    assert masks[-1].sum((1, 2, 3)).tolist() == [30, 18]


def test_checkpointing_gives_the_same_gradients_and_saves_less():
    saved = {}
    gradients = {}
    for with_cp in (False, True):
        torch.manual_seed(0)
        backbone = build(with_cp=with_cp, with_mid_pos_embed=True)
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            (tokens,) = backbone(torch.ones(2, 3, 64, 96), [(64, 96), (48, 64)])
        saved[with_cp] = sum(sizes)
        tokens.square().sum().backward()
        gradients[with_cp] = [parameter.grad for parameter in backbone.parameters()]
    torch.testing.assert_close(gradients[True], gradients[False])
    assert saved[True] < saved[False] / 2


def test_padding_gets_no_gradient():
    backbone = build()
    batch = torch.randn(2, 3, 64, 96, requires_grad=True)
    backbone(batch, [(64, 96), (32, 50)])[0].square().sum().backward()
    assert batch.grad[1, :, :32, :48].abs().sum() > 0
    assert batch.grad[1, :, 32:].abs().sum() == 0
    assert batch.grad[1, :, :, 48:].abs().sum() == 0


def test_a_size_seen_in_evaluation_is_not_resized_again():
    backbone = build(with_mid_pos_embed=True).eval()
    image = torch.randn(1, 3, 96, 64)

    def resizes() -> int:
        with CountResizes() as counter:
            backbone(image)
        return counter.count

    with torch.no_grad():
        assert [resizes(), resizes()] == [1, 0]  # all embeddings in one call
        backbone.load_state_dict(build(with_mid_pos_embed=True).state_dict())
        assert resizes() == 1
        backbone.train()
        assert [resizes(), resizes()] == [1, 1]
        backbone.eval()
        assert [resizes(), resizes()] == [1, 0]
        backbone.double().float()
        assert resizes() == 1
    assert [resizes(), resizes()] == [1, 1]  # with gradients nothing is kept


def test_training_in_evaluation_mode():
    backbone = build(with_mid_pos_embed=True).eval()
    image = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        (before,) = backbone(image)
        assert backbone._cached_positions
        # Neither a copy nor a file has them.
        assert not copy.deepcopy(backbone)._cached_positions
    optimizer = torch.optim.SGD([backbone.pos_embed, backbone.mid_pos_embed], lr=1.0)
    backbone(image)[0].square().mean().backward()
    assert backbone.pos_embed.grad.abs().sum() > 0 and backbone.mid_pos_embed.grad.abs().sum() > 0
    optimizer.step()
    with torch.no_grad():
        (after,) = backbone(image)
        assert not torch.allclose(after, before)
        torch.testing.assert_close(after, copy.deepcopy(backbone)(image)[0])


def test_too_small_image():
    message = 'image 1 of the batch has 12 x 40 pixels, less than one patch of 16 x 16'
    with pytest.raises(ValueError, match=message):
        build()(torch.randn(2, 3, 64, 96), [(64, 96), (12, 40)])


@pytest.mark.parametrize(
    'sizes', [None, dict(inputs=(20, 24, 32), hidden=(40, 64, 30), heads=(1, 2, 2), qk=9, v=11)]
)
def test_takes_a_classification_checkpoint(tmp_path, sizes):
    classifier = SlimVisionTransformer(arch=ARCH, img_size=48, sizes=sizes)
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for name, buffer in classifier.named_buffers():
        if name.endswith('.inputs'):
            buffer.copy_(torch.randperm(32)[: len(buffer)].sort().values)
    state_dict = {f'backbone.{key}': value for key, value in classifier.state_dict().items()}
    state_dict['head.layers.head.weight'] = torch.zeros(10, 32)
    path = str(tmp_path / 'slim.safetensors')
    save_state_dict(path, state_dict, {})

    backbone = build(
        sizes='auto',
        with_mid_pos_embed=True,
        init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.'),
    )
    fresh = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.init_weights()
    loaded = backbone.state_dict()
    for name, value in classifier.state_dict().items():
        if name != 'pos_embed':
            torch.testing.assert_close(loaded[name], value, rtol=0, atol=0)
    for name in backbone.new_weights:
        torch.testing.assert_close(loaded[name], fresh[name], rtol=0, atol=0)
    torch.testing.assert_close(loaded['pos_embed'][:, -5:], fresh['pos_embed'][:, -5:])
    torch.testing.assert_close(loaded['pos_embed'][:, :1], classifier.pos_embed[:, :1])
    grid = classifier.pos_embed[:, 1:].reshape(1, 3, 3, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(4, 6), mode='bicubic', align_corners=False)
    expected = expected.permute(0, 2, 3, 1).reshape(1, NUM_PATCHES, 32)
    torch.testing.assert_close(loaded['pos_embed'][:, 1:-5], expected)

    again = build(with_mid_pos_embed=True, sizes='auto')
    result = again.load_state_dict(loaded)
    assert not result.missing_keys and not result.unexpected_keys
    image = torch.randn(1, 3, 96, 64)
    torch.testing.assert_close(again(image), backbone(image))


def test_checkpoints_that_do_not_fit():
    backbone = build(with_mid_pos_embed=True)
    state_dict = backbone.state_dict()
    with pytest.raises(ValueError, match='pos_embed of the checkpoint has shape .*set img_size'):
        build(img_size=(64, 64)).load_state_dict(build().state_dict())
    with pytest.raises(ValueError, match='det_token of the checkpoint has shape .1, 5, 32.'):
        build(num_det_tokens=6, with_mid_pos_embed=True).load_state_dict(state_dict)
    with pytest.raises(ValueError, match="lacks 'mid_pos_embed': it is of type II"):
        backbone.load_state_dict(build().state_dict())
    with pytest.raises(ValueError, match="has 'mid_pos_embed': it is of type I, build the"):
        build().load_state_dict(state_dict)
    classifier = SlimVisionTransformer(arch=ARCH, img_size=(48, 64)).state_dict()
    with pytest.raises(ValueError, match='has 12 patches, the network .* is not noted'):
        backbone.load_state_dict(dict(classifier))  # a dict has no room for the note of its grid
    backbone.load_state_dict(classifier, strict=False)
    del state_dict['layers.1.attn.qkv.weight']
    with pytest.raises(ValueError, match="lacks 1 of the weights .*'layers.1.attn.qkv.weight'"):
        backbone.load_state_dict(state_dict)
