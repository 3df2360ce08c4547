"""DeiT-Base pruned by MCF on ImageNet-1K: 86.568 M to 57.088 M parameters at ratio 0.4.

Drop path is that of mmpretrain's DeiT-Base config; its weight averaging is left out, as in the
other sizes. Starts from the original release's weights, converted once:
python tools/convert_checkpoint.py deit_base_patch16_224-b5f2ef4d.pth \
    checkpoints/deit_base_in1k.safetensors --to mmpretrain
"""

_base_ = './mcf_deit-small_8xb128_in1k.py'

model = dict(backbone=dict(arch='deit-base', drop_path_rate=0.1), head=dict(in_channels=768))
load_from = 'checkpoints/deit_base_in1k.safetensors'
