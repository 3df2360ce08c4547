"""Swin-Tiny pruned by MCF on ImageNet-1K at ratio 0.3, which the paper has for Swin-Base; 12 FFNs.

Starts from the original release's weights, converted once:
python tools/convert_checkpoint.py swin_tiny_patch4_window7_224.pth \
    checkpoints/swin_tiny_in1k.safetensors --to mmpretrain
"""

_base_ = './mcf_swin-base_16xb64_in1k.py'

model = dict(backbone=dict(arch='tiny', drop_path_rate=0.2), head=dict(in_channels=768))
load_from = 'checkpoints/swin_tiny_in1k.safetensors'
