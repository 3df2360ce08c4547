"""SiDT on DeiT-Tiny, CIFAR-100 enlarged to 224 px, from weights of ImageNet-1K.

mmpretrain downloads the data set. The recipe is ours; see sidt_deit-small_8xb128_in1k.
"""

_base_ = './sidt_deit-tiny_8xb128_in1k.py'

image_size = 224
num_classes = 100

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/deit_tiny_in1k.safetensors',
            prefix='backbone.',
        )
    ),
    head=dict(num_classes=num_classes),
)
load_from = None
# The images are RGB as they are loaded.
data_preprocessor = dict(num_classes=num_classes, to_rgb=False)

resize = dict(type='Resize', scale=image_size, backend='pillow', interpolation='bicubic')
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    resize,
    dict(type='PackInputs'),
]
dataset = dict(_delete_=True, type='CIFAR100', data_root='data/cifar100')
train_dataloader = dict(dataset=dict(**dataset, split='train', pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(**dataset, split='test', pipeline=[resize, dict(type='PackInputs')])
)
test_dataloader = val_dataloader
