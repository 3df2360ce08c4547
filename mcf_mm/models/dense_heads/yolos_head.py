"""The head of YOLOS."""

import logging
from collections.abc import Sequence

import torch
from mmdet.models.dense_heads import DETRHead
from mmengine.logging import MessageHub, print_log
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mcf_mm.registry import MODELS

#: Costs of the matching. A detector hands ``train_cfg=None`` on, so DETRHead's default is lost.
ASSIGNER = dict(
    type='mmdet.HungarianAssigner',
    match_costs=[
        dict(type='mmdet.ClassificationCost', weight=1.0),
        dict(type='mmdet.BBoxL1Cost', weight=5.0, box_format='xywh'),
        dict(type='mmdet.IoUCost', iou_mode='giou', weight=2.0),
    ],
)


@MODELS.register_module()
class YOLOSHead(DETRHead):
    """DETR's head with a three-layer perceptron for classes and one for boxes.

    Matching, losses and prediction are DETR's: see section 2.1 of
    `You Only Look at One Sequence <https://arxiv.org/abs/2106.00666>`_. An image with more objects
    than there are detection tokens is trained on the objects that match best, and the first such
    image is named in a warning.

    Args:
        num_classes: Number of outputs for classes, without the one for no object.
        embed_dims: Width D of the encoder and of the hidden layers.
        no_object_weight: Weight of the no-object class in the cross-entropy. Defaults to 0.1.
        class_ids: Which output stands for label 0, 1, ... of the dataset. The public weights have
            91 outputs for the 80 classes of COCO, numbered by category id. The others take part in
            the softmax but are never predicted. Defaults to None, output k is label k.
        train_cfg: May have another ``assigner``. Defaults to None, the costs of the paper.
        test_cfg: May have ``max_per_img``, the most boxes to return for an image. Defaults to
            None, one for each detection token.
        **kwargs: As for :class:`mmdet.models.DETRHead` (``loss_bbox``, ``loss_iou``).

    Raises:
        ValueError: ``class_ids`` names an output twice or one that does not exist.
        FloatingPointError: In training, logits or boxes are NaN or infinite.

    Example:
        >>> bbox_head = dict(type='mcf_mm.YOLOSHead', num_classes=80, embed_dims=384)
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        no_object_weight: float = 0.1,
        class_ids: Sequence[int] | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        **kwargs,
    ):
        super().__init__(
            num_classes,
            embed_dims,
            # DETRHead makes these weights itself, but not in its subclasses.
            loss_cls=dict(
                type='mmdet.CrossEntropyLoss',
                class_weight=[1.0] * num_classes + [no_object_weight],
            ),
            train_cfg=train_cfg or dict(assigner=ASSIGNER),
            test_cfg=dict(test_cfg or {}),
            **kwargs,
        )
        self.bg_cls_weight = no_object_weight
        if class_ids is not None:
            wrong = [i for i in class_ids if i not in range(num_classes)]
            wrong += sorted({i for i in class_ids if list(class_ids).count(i) > 1})
            if wrong:
                raise ValueError(
                    f'class_ids must be different outputs from 0 to {num_classes - 1} '
                    f'(num_classes - 1), got {wrong} among them'
                )
            class_ids = list(class_ids)
        self.class_ids = class_ids
        self._has_warned = False

    def _init_layers(self) -> None:
        self.fc_cls = self._mlp(self.cls_out_channels)
        self.fc_reg = self._mlp(4)

    def _mlp(self, out_channels: int) -> nn.Sequential:
        width = self.embed_dims
        return nn.Sequential(
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, out_channels),
        )

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Classifies and locates.

        Args:
            hidden_states: Detection tokens, ``(1, B, num_det_tokens, D)``.

        Returns:
            Class logits ``(1, B, num_det_tokens, num_classes + 1)``, no-object last, and boxes
            ``(1, B, num_det_tokens, 4)`` as (cx, cy, w, h) relative to the image.
        """
        return self.fc_cls(hidden_states), self.fc_reg(hidden_states).sigmoid()

    def _get_targets_single(
        self, cls_score: Tensor, bbox_pred: Tensor, gt_instances: InstanceData, img_meta: dict
    ) -> tuple:
        """As DETRHead, with the output of each label in place of the label."""
        if self.class_ids is not None:
            ids = gt_instances.labels.new_tensor(self.class_ids)
            gt_instances = InstanceData(bboxes=gt_instances.bboxes, labels=ids[gt_instances.labels])
        image = img_meta.get('img_path', 'an image without a file')
        if len(gt_instances) > len(cls_score) and not self._has_warned:
            self._has_warned = True
            print_log(
                f'{image} has {len(gt_instances)} objects and the model {len(cls_score)} detection '
                f'tokens: only the {len(cls_score)} objects that match best are trained on, here '
                'and in other such images. num_det_tokens of the backbone sets their number',
                logger='current',
                level=logging.WARNING,
            )
        try:
            return super()._get_targets_single(cls_score, bbox_pred, gt_instances, img_meta)
        except ValueError as error:
            # The matching refuses NaN before there is a loss. Asked only now, for a look at the
            # tensors would have to wait for the GPU once more.
            if cls_score.isfinite().all() and bbox_pred.isfinite().all():
                raise
            iteration = MessageHub.get_current_instance().get_info('iter', 0) + 1
            raise FloatingPointError(
                f'iteration {iteration}: the class logits or boxes of {image} are NaN or infinite. '
                'The weights diverged before, if this image and its annotations are in order: '
                'train with a lower learning rate'
            ) from error

    def _predict_by_feat_single(self, cls_score: Tensor, *args, **kwargs) -> InstanceData:
        """As DETRHead, with the labels of ``class_ids``."""
        if self.class_ids is not None:
            # All that is no label becomes no object, so the softmax gives the same probabilities.
            log_probabilities = cls_score.log_softmax(-1)
            others = [i for i in range(self.num_classes + 1) if i not in self.class_ids]
            no_object = log_probabilities[:, others].logsumexp(-1, keepdim=True)
            cls_score = torch.cat((log_probabilities[:, self.class_ids], no_object), dim=-1)
        return super()._predict_by_feat_single(cls_score, *args, **kwargs)
