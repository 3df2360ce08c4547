"""The same, calibrated on 2,000 photos of Tiny-ImageNet besides, ten of each of its 200 classes.

For what looks at no labels: ``--method obs`` (which draws them from the network's own predictions)
and ``--heal``. The labels of these photos number 200 other classes and mean nothing here. They are
of 64 px, enlarged to 224. All images: ``--num-images 2500``.
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
                pipeline={{_base_.train_dataloader.dataset.pipeline}},
                indices=list(range(0, 20000, 10)),
            ),
        ],
    )
)
