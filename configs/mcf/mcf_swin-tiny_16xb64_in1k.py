"""Swin-Tiny pruned by MCF on ImageNet-1K at ratio 0.3, which the paper has for Swin-Base; 12 FFNs.

Starts from the original release's weights, converted once:
python tools/convert_checkpoint.py swin_tiny_patch4_window7_224.pth \
    checkpoints/swin_tiny_in1k.safetensors --to mmpretrain
"""

_base_ = '../_base_/imagenet/swin-tiny_16xb64.py'

ratio = 0.3  # share of the inputs and of the hidden units of each FFN that goes

custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=ratio, start_epoch=0)]
