"""YOLOS, a detector that is one vision transformer."""

from mmdet.models.detectors import SingleStageDetector
from mmdet.structures import OptSampleList
from torch import Tensor

from mcf_mm.registry import MODELS


@MODELS.register_module()
class YOLOS(SingleStageDetector):
    """You Only Look at One Sequence: an encoder with detection tokens and two perceptrons.

    Paper: `You Only Look at One Sequence: Rethinking Transformer in Vision through Object
    Detection <https://arxiv.org/abs/2106.00666>`_.

    Args:
        backbone: Config of :class:`mcf_mm.models.YOLOSVisionTransformer`.
        bbox_head: Config of :class:`mcf_mm.models.YOLOSHead`.
        **kwargs: As for :class:`mmdet.models.SingleStageDetector`.

    Raises:
        ValueError: The head has another width than the backbone.

    Example:
        >>> model = dict(
        ...     type='mcf_mm.YOLOS',
        ...     data_preprocessor=dict(
        ...         type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53],
        ...         std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
        ...     backbone=dict(type='mcf_mm.YOLOSVisionTransformer', arch='deit-small'),
        ...     bbox_head=dict(type='mcf_mm.YOLOSHead', num_classes=80, embed_dims=384))
    """

    def __init__(self, backbone: dict, bbox_head: dict, **kwargs):
        super().__init__(backbone=backbone, bbox_head=bbox_head, **kwargs)
        width, expected = self.backbone.embed_dims, self.bbox_head.embed_dims
        if width != expected:
            raise ValueError(
                f'the backbone is {width} wide and embed_dims of bbox_head is {expected}: '
                f'set embed_dims={width}'
            )
        # mmdet would look for the 100 best boxes among fewer.
        limit = self.bbox_head.test_cfg.get('max_per_img')
        if limit is not None:
            limit = min(limit, self.backbone.num_det_tokens)
            self.bbox_head.test_cfg['max_per_img'] = limit

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """Losses ``loss_cls``, ``loss_bbox`` and ``loss_iou`` of a batch ``(B, 3, H, W)``."""
        tokens = self.extract_feat(batch_inputs, batch_data_samples)
        return self.bbox_head.loss(tokens, batch_data_samples)

    def predict(self, batch_inputs: Tensor, batch_data_samples: list, rescale: bool = True) -> list:
        """Adds ``pred_instances`` to the data samples of a batch.

        Args:
            batch_inputs: Images, ``(B, 3, H, W)``.
            batch_data_samples: Data samples with ``img_shape`` and ``scale_factor``.
            rescale: Whether boxes are in pixels of the original images. Defaults to True.
        """
        tokens = self.extract_feat(batch_inputs, batch_data_samples)
        results = self.bbox_head.predict(tokens, batch_data_samples, rescale=rescale)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None
    ) -> tuple[Tensor, Tensor]:
        return self.bbox_head(self.extract_feat(batch_inputs, batch_data_samples))

    def extract_feat(
        self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None
    ) -> Tensor:
        """Encodes images.

        Args:
            batch_inputs: Images, ``(B, 3, H, W)``, padded at the right and the bottom.
            batch_data_samples: Data samples, whose ``img_shape`` is the size without padding.
                Defaults to None: no image has padding.

        Returns:
            Detection tokens, ``(1, B, num_det_tokens, C)``; the first dimension is what DETR's
            head takes for decoder layers.
        """
        img_shapes = None
        if batch_data_samples is not None:
            img_shapes = [sample.img_shape[:2] for sample in batch_data_samples]
        (tokens,) = self.backbone(batch_inputs, img_shapes)
        return tokens[None]
