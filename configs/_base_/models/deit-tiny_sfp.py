"""A plain DeiT-Ti and the pyramid on its last map, for the detectors of this folder.

Attention is global in all blocks; ``window_size=14`` makes large images affordable. Position
embeddings stay those of 224 px and are resized to each batch.
"""

custom_imports = dict(imports=['mcf_mm.registry'])

plain_backbone = dict(
    type='mcf_mm.SlimVisionTransformer',
    arch='deit-tiny',
    out_type='featmap',
    drop_path_rate=0.1,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='checkpoints/deit_tiny_in1k.safetensors',
        prefix='backbone.',
    ),
)
simple_pyramid = dict(type='mcf_mm.SimpleFeaturePyramid', in_channels=192)

#: For small data on CPUs: half of the usual width, or neck and head would cost four times as much
#: as the backbone.
small_neck = dict(out_channels=128)
small_head = dict(in_channels=128, feat_channels=128, stacked_convs=2)
