"""DeiT-Base pruned by MCF on ImageNet-1K: 86.568 M to 57.088 M parameters at ratio 0.4.

Starts from the original release's weights, converted once:
python tools/convert_checkpoint.py deit_base_patch16_224-b5f2ef4d.pth \
    checkpoints/deit_base_in1k.safetensors --to mmpretrain
"""

_base_ = '../_base_/imagenet/deit-base_8xb128.py'

ratio = 0.4  # share of the inputs and of the hidden units of each FFN that goes

custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=ratio, start_epoch=0)]
