"""Row 5 of table 3, direct pruning: the same sizes as MCF, chosen by magnitude."""

_base_ = './mcf_deit-small_8xb128_in1k.py'

custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio={{_base_.ratio}}, method='magnitude')]
