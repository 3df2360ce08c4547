"""The same, calibrated on 2,000 photos of Tiny-ImageNet besides: other photos, without labels.

Those of 64 px are enlarged to 224 px, ten of each of its 200 classes. All of them:
``--num-images 2500``.
"""

_base_ = './deit-tiny_imagenet-samples.py'


train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        ignore_keys=['classes'],
        datasets=[
            {{_base_.train_dataloader.dataset}},
            dict(
                type='CustomDataset',
                data_root='data/tiny_imagenet/train',
                with_label=False,
                pipeline={{_base_.train_dataloader.dataset.pipeline}},
                indices=list(range(0, 20000, 10)),
            ),
        ],
    )
)
