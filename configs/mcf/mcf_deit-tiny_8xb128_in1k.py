"""DeiT-Tiny pruned by MCF on ImageNet-1K: 5.717 M to 3.869 M parameters at ratio 0.4.

Starts from the original release's weights, converted once:
python tools/convert_checkpoint.py deit_tiny_patch16_224-a1311bcf.pth \
    checkpoints/deit_tiny_in1k.safetensors --to mmpretrain
"""

_base_ = '../_base_/imagenet/deit-tiny_8xb128.py'

ratio = 0.4  # share of the inputs and of the hidden units of each FFN that goes

custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=ratio, start_epoch=0)]
