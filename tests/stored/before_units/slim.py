custom_hooks = []
custom_imports = dict(
    imports=[
        'mcf_mm.checkpoint',
    ]
)
data_preprocessor = dict(
    mean=[
        127.0,
        127.0,
        127.0,
    ],
    num_classes=2,
    std=[
        60.0,
        60.0,
        60.0,
    ],
)
default_hooks = dict(checkpoint=dict(interval=1, type='CheckpointHook'))
default_scope = 'mmpretrain'
experiment_name = 'run'
load_from = 'work_dirs/micro/slim.safetensors'
log_level = 'INFO'
model = dict(
    backbone=dict(
        arch=dict(embed_dims=16, feedforward_channels=40, num_heads=2, num_layers=3),
        ffn_hiddens=[
            24,
            24,
            24,
        ],
        ffn_inputs=[
            9,
            9,
            9,
        ],
        img_size=32,
        patch_size=8,
        type='mcf_mm.SlimVisionTransformer',
    ),
    head=dict(in_channels=16, num_classes=2, type='VisionTransformerClsHead'),
    type='ImageClassifier',
)
optim_wrapper = dict(optimizer=dict(lr=0.001, type='AdamW', weight_decay=0.05))
param_scheduler = [
    dict(T_max=5, type='CosineAnnealingLR'),
]
randomness = dict(deterministic=True, seed=0)
resume = False
test_cfg = dict()
test_dataloader = dict(
    batch_size=4,
    dataset=dict(
        data_root='data/photos',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='PackInputs'),
        ],
        type='CustomDataset',
    ),
    num_workers=0,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
test_evaluator = dict(topk=1, type='Accuracy')
train_cfg = dict(by_epoch=True, max_epochs=5, val_interval=1)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        data_root='data/photos',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(prob=0.5, type='RandomFlip'),
            dict(type='PackInputs'),
        ],
        type='CustomDataset',
    ),
    num_workers=0,
    sampler=dict(shuffle=True, type='DefaultSampler'),
)
val_cfg = dict()
val_dataloader = dict(
    batch_size=4,
    dataset=dict(
        data_root='data/photos',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='PackInputs'),
        ],
        type='CustomDataset',
    ),
    num_workers=0,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
val_evaluator = dict(topk=1, type='Accuracy')
visualizer = dict(
    type='Visualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ],
)
work_dir = 'work_dirs/work'
