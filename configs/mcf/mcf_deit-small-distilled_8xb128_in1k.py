"""DeiT-Small with distillation token, pruned by MCF on ImageNet-1K at ratio 0.4.

The paper has no such row. Starts from the original release's weights:
python tools/convert_checkpoint.py deit_small_distilled_patch16_224-649709d9.pth \
    checkpoints/deit_small_distilled_in1k.safetensors --to mmpretrain
"""

_base_ = './mcf_deit-small_8xb128_in1k.py'

model = dict(
    backbone=dict(type='mcf_mm.SlimDistilledVisionTransformer'), head=dict(type='DeiTClsHead')
)
load_from = 'checkpoints/deit_small_distilled_in1k.safetensors'
