"""Row 3 of table 3, FIS + CRS: each row of a layer keeps inputs of its own, 16.378 M parameters."""

_base_ = './mcf_deit-small_8xb128_in1k.py'

custom_hooks = [dict(type='mcf_mm.MCFPruningHook', ratio={{_base_.ratio}}, last_step='crs')]
