"""DeiT-Small pruned by MCF on ImageNet-1K: 22.051 M to 14.673 M parameters at ratio 0.4.

One training run: an FFN is sparsified in each of the first 12 epochs, then the network becomes
small and the other epochs recover. The recipe is Swin's with a small learning rate, as in section
4.1 of the paper; it gives no number of epochs and no rate, so both are ours.

Starts from the original release's weights, converted once:
python tools/convert_checkpoint.py deit_small_patch16_224-cd65a155.pth \
    checkpoints/deit_small_in1k.safetensors --to mmpretrain
"""

_base_ = '../_base_/imagenet/deit-small_8xb128.py'

ratio = 0.4  # share of the inputs and of the hidden units of each FFN that goes

custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio=ratio, start_epoch=0)]
