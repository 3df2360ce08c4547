"""YOLOS-Ti on facemask_coco from a DeiT-Ti that MCF pruned in one shot (p = 0.4, least squares).

Both backbones come from the same ImageNet-1K weights and neither saw other images since, so the
two detectors differ by the pruning alone. tools/prune.py makes the checkpoint, see
../mcf/README.md.
"""

_base_ = './yolos_deit-tiny_1xb8-300e_facemask.py'

checkpoint = 'work_dirs/photos/least_squares/slim.safetensors'
model = dict(backbone=dict(sizes='auto', init_cfg=dict(checkpoint=checkpoint)))
