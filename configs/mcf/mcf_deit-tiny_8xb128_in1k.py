"""DeiT-Tiny pruned by MCF on ImageNet-1K: 5.717 M to 3.869 M parameters at ratio 0.4.

Starts from the original release's weights, converted once:
python tools/convert_checkpoint.py deit_tiny_patch16_224-a1311bcf.pth \
    checkpoints/deit_tiny_in1k.safetensors --to mmpretrain
"""

_base_ = './mcf_deit-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='deit-tiny'), head=dict(in_channels=192))
load_from = 'checkpoints/deit_tiny_in1k.safetensors'
