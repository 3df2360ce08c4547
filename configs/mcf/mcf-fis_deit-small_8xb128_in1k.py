"""Row 2 of table 3, FIS alone: zeros in a network of full size."""

_base_ = './mcf_deit-small_8xb128_in1k.py'

custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio={{_base_.ratio}}, last_step='fis')]
