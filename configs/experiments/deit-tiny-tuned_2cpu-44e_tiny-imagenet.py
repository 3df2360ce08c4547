"""The fine-tuned DeiT-Tiny for as many epochs again: what its pruned versions compare with.

Run deit-tiny_2cpu-44e_tiny-imagenet.py first, its last checkpoint is where all of them start.
"""

_base_ = './deit-tiny_2cpu-44e_tiny-imagenet.py'

load_from = 'work_dirs/deit-tiny_2cpu-44e_tiny-imagenet/epoch_44.pth'
