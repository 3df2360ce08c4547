"""Weights that do not fit are an error that names the layer, both shapes and the cure."""

import pytest
import torch
from micro_networks import ARCH, slim_vit, swin, timm_vit, vit, yolos
from torch import nn

from mcf_mm.weights.check import check_weights, describe_new
from mcf_mm.weights.convert import convert_state_dict


def without(state_dict: dict, part: str) -> dict:
    return {name: value for name, value in state_dict.items() if part not in name}


def test_what_fits():
    for model in (vit(), slim_vit(), swin(), yolos(), timm_vit()):
        assert check_weights(model, model.state_dict()) == []
    model = vit()
    assert check_weights(model.backbone, model.state_dict(), prefix='backbone') == []
    assert check_weights(model, convert_state_dict(timm_vit().state_dict(), 'mmpretrain')) == []


CURE = {
    'convert': r'those of timm: convert it with tools/convert_checkpoint.py IN OUT --to mmpretrain',
    'config': 'Use the config that it was trained with: the same width, depth, patch size, window',
    'slim': r"It is of a pruned network: use the slim\.py .*, or sizes='auto'",
    'dense': r'The network is pruned and the checkpoint is not .* slim\.safetensors beside the',
    'head': 'Its head is another: set num_classes as in its training, or train on with load_from',
}


@pytest.mark.parametrize(
    'model, source, message',
    [
        (
            vit,
            lambda: vit(arch=dict(ARCH, embed_dims=32)).state_dict(),
            r'^dense\.pth has 29 weights of another size than ImageClassifier: backbone\.cls_token '
            rf'is \(1, 1, 32\), not \(1, 1, 16\); .* not \(16, 3, 8, 8\)\. {CURE["config"]}',
        ),
        (
            vit,
            lambda: vit(patch_cfg=dict(kernel_size=4, stride=4)).state_dict(),
            r'patch_embed.projection.weight is \(16, 3, 4, 4\), not \(16, 3, 8, 8\)',
        ),
        (
            lambda: vit(in_channels=4),
            lambda: vit().state_dict(),
            r'1 weight .*projection.weight is \(16, 3, 8, 8\), not \(16, 4, 8, 8\)',
        ),
        (
            vit,
            lambda: vit(arch=dict(ARCH, num_layers=3)).state_dict(),
            r'^dense\.pth has 12 weights that ImageClassifier lacks, the first '
            rf"'backbone\.layers\.2\.ln1\.weight', \(16,\)\. {CURE['config']}",
        ),
        (
            vit,
            lambda: without(vit().state_dict(), '.layers.1.ln1'),
            r"lacks 2 of the weights of ImageClassifier, the first 'backbone\.layers\.1\.ln1\.w"
            rf"eight', \(16,\)\. {CURE['config']}",
        ),
        (
            swin,
            lambda: swin(arch=dict(num_heads=[4, 4])).state_dict(),
            r'blocks.0.attn.w_msa.relative_position_bias_table is \(49, 4\), not \(49, 2\)',
        ),
        (
            swin,
            lambda: swin(window_size=8).state_dict(),
            r'3 weights .*w_msa.relative_position_bias_table is \(225, 2\), not \(49, 2\).*window',
        ),
        (vit, lambda: vit(7).state_dict(), rf'head is \(7, 16\)|not \(2, 16\).*{CURE["head"]}'),
        (vit, lambda: without(vit().state_dict(), 'head.'), f'lacks 2 .*{CURE["head"]}'),
        (
            vit,
            lambda: slim_vit().state_dict(),
            r'has 3 .*layers.1.ffn.layers.0.0.weight is \(20, 8\), not \(40, 16\); .* It has 1 '
            rf"weight that ImageClassifier lacks, .*0\.inputs', \(8,\)\. {CURE['slim']}",
        ),
        (
            slim_vit,
            lambda: vit().state_dict(),
            r"lacks 1 .*\.inputs', \(8,\)\. It has 3 weights .* "
            rf'is \(40, 16\), not \(20, 8\).*{CURE["dense"]}',
        ),
        (
            vit,
            lambda: vit(arch=dict(ARCH, feedforward_channels=24)).state_dict(),
            r'FFNs or attention are smaller there: if it is of a pruned network, use the slim\.py',
        ),
        (
            slim_vit,
            lambda: without(slim_vit().state_dict(), 'inputs'),
            r"lacks 1 of .* the first 'backbone\.layers\.1\.ffn\.layers\.0\.0\.inputs', \(8,\)",
        ),
        (vit, dict, r'lacks 32 of .* It is empty'),
        (vit, lambda: {'a.b': torch.ones(1)}, r"'a\.b' \.\.\.: is it a checkpoint of this network"),
    ],
)
def test_what_does_not_fit(model, source, message):
    model, source = model(), source()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        check_weights(model, source, source='dense.pth')
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_pruned_attention_is_told_by_its_sizes():
    weights = {**vit().state_dict(), 'backbone.layers.0.attn.sizes': torch.tensor([2, 4, 8])}
    weights['backbone.layers.0.attn.qkv.weight'] = torch.ones(2 * (4 + 4 + 8), 16)
    message = r"not \(48, 16\)\. It has 1 .*'backbone\.layers\.0\.attn\.sizes', \(3,\)\. "
    with pytest.raises(ValueError, match=message + CURE['slim']):
        check_weights(vit(), weights)


def test_a_pruned_network_of_another_depth():
    deeper = slim_vit().state_dict()
    first, second = 'backbone.layers.1.', 'backbone.layers.2.'
    block = {name: value for name, value in deeper.items() if name.startswith(first)}
    deeper.update({name.replace(first, second): value for name, value in block.items()})
    message = r"has 13 weights .* lacks, the first 'backbone\.layers\.2\.ln1\.weight', \(16,\)\. "
    with pytest.raises(ValueError, match=message + CURE['config']):
        check_weights(slim_vit(), deeper)
    with pytest.raises(ValueError, match=rf'lacks 13 .*\. {CURE["config"]}'):
        model = slim_vit()
        model.backbone.layers.append(model.backbone.layers[1])
        check_weights(model, slim_vit().state_dict())


def test_names_of_another_library():
    weights = timm_vit().state_dict()
    for model in (vit(), vit().backbone):
        with pytest.raises(ValueError, match=rf"Its names are 'cls_token', .*{CURE['convert']}"):
            check_weights(model, weights)
    with pytest.raises(ValueError, match=CURE['convert']):
        check_weights(vit().backbone, weights, prefix='backbone.')
    # A classifier for YOLOS has to be one of mmpretrain, not of mmdet.
    with pytest.raises(ValueError, match=CURE['convert']):
        check_weights(yolos(), weights)
    with pytest.raises(ValueError, match='those of mmpretrain: convert .* --to timm'):
        check_weights(timm_vit(), vit().state_dict())
    huggingface = convert_state_dict(vit().state_dict(), 'huggingface')
    with pytest.raises(ValueError, match='those of huggingface: convert .* --to mmpretrain'):
        check_weights(vit(), huggingface)
    swin_names = convert_state_dict(swin().state_dict(), 'original')
    with pytest.raises(ValueError, match='those of original: convert .* --to mmpretrain'):
        check_weights(swin(), swin_names)
    detector = convert_state_dict(yolos().state_dict(), 'original')
    with pytest.raises(ValueError, match='those of original: convert .* --to mmdet'):
        check_weights(yolos(), detector)


def test_prefixes():
    model = vit()
    weights = model.state_dict()
    bare = model.backbone.state_dict()
    for wrong in ('', 'encoder.'):
        with pytest.raises(ValueError, match=r"set the prefix of init_cfg to 'backbone\.'$"):
            check_weights(model.backbone, weights, prefix=wrong)
    with pytest.raises(ValueError, match='without prefix: leave the prefix of init_cfg out$'):
        check_weights(model.backbone, bare, prefix='backbone.')
    with pytest.raises(ValueError, match=r"without 'backbone\.', .* with backbone\.init_cfg=dict"):
        check_weights(model, bare)


def test_what_may_be_new_or_resized():
    weights, detector = vit().state_dict(), yolos()
    anew = check_weights(
        detector, weights, new=('*.det_token',), resized=('*.pos_embed',), allow_new_head=True
    )
    assert anew[0] == 'backbone.det_token' and len(anew) == 13
    assert all(name.startswith('bbox_head.') for name in anew[1:])
    assert describe_new(anew[:3]) == (
        '3 weights not in the checkpoint, new from the start: backbone, bbox_head.fc_cls.0'
    )
    assert describe_new([]) is None
    with pytest.raises(ValueError, match=r"lacks 12 .*'bbox_head.fc_cls.0.weight', \(16, 16\)"):
        check_weights(detector, weights, new=('*.det_token',), resized=('*.pos_embed',))
    with pytest.raises(ValueError, match=r"lacks 1 .*'backbone.det_token', \(1, 5, 16\)"):
        check_weights(detector, weights, resized=('*.pos_embed',), allow_new_head=True)
    # Resized is another number of positions, not another width.
    wide = vit(arch=dict(ARCH, embed_dims=32)).state_dict()
    with pytest.raises(ValueError, match=r'backbone.pos_embed is \(1, 17, 32\), not \(1, 54, 16\)'):
        check_weights(
            detector,
            {**weights, 'backbone.pos_embed': wide['backbone.pos_embed']},
            new=('*.det_token',),
            resized=('*.pos_embed',),
            allow_new_head=True,
        )
    # New is missing, not of another size.
    other = {**detector.state_dict(), 'backbone.det_token': torch.ones(1, 6, 16)}
    with pytest.raises(ValueError, match=r'det_token is \(1, 6, 16\), not \(1, 5, 16\)'):
        check_weights(detector, other, new=('*.det_token',))


def test_heads_of_other_data_sets():
    assert check_weights(vit(), vit(7).state_dict(), allow_new_head=True) == [
        'head.layers.head.weight',
        'head.layers.head.bias',
    ]
    with pytest.raises(ValueError, match=r'layers.head.weight is \(7, 16\), not \(2, 16\)'):
        check_weights(vit(), vit(7).state_dict())
    assert check_weights(vit().backbone, vit(7).state_dict(), prefix='backbone.') == []


def test_what_follows_from_sizes_and_gates_is_not_looked_at():
    model = swin()
    assert check_weights(model, without(model.state_dict(), 'relative_position_index')) == []
    mask = {'backbone.stages.0.blocks.0.attn.attn_mask': torch.zeros(1, 16, 16)}
    assert check_weights(model, {**model.state_dict(), **mask}) == []
    norm = nn.BatchNorm1d(3)
    assert check_weights(norm, without(norm.state_dict(), 'num_batches')) == []
    gated = vit()
    gated.backbone.layers[0].ffn.register_parameter('gate_scores', nn.Parameter(torch.ones(40)))
    assert check_weights(gated, vit().state_dict()) == []
    assert check_weights(vit(), gated.state_dict()) == []
    with pytest.raises(ValueError, match='lacks 3 of .*relative_position_index'):
        check_weights(model, without(model.state_dict(), 'position_index'), ignore=())
