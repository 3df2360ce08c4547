"""Swin-Base pruned by MCF on ImageNet-1K: 87.768 M to 65.113 M parameters at ratio 0.3.

24 FFNs, one in each of the first 24 epochs. Guidance has no class token: it follows the mean over
tokens, and ends where patch merging breaks the identity of the channels.

Starts from the original release's weights, converted once:
python tools/convert_checkpoint.py swin_base_patch4_window7_224.pth \
    checkpoints/swin_base_in1k.safetensors --to mmpretrain
"""

_base_ = '../_base_/imagenet/swin-base_16xb64.py'

ratio = 0.3  # share of the inputs and of the hidden units of each FFN that goes

custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=ratio, start_epoch=0)]
