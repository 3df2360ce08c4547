"""One-stage detectors of mmdet as they are exported, with NMS in the graph."""

import torch
import torchvision
from mmengine.config import ConfigDict
from torch import Tensor, nn

from mcf_mm.weights.exported import ExportedNetwork

#: IoUs and scores this near to a threshold may fall on either side of it.
NEAR = 1e-3


class ExportedOneStage(ExportedNetwork):
    """Puts out the boxes that RetinaNet, ATSS or FCOS of mmdet predict for one image, best first.

    ``scores`` and ``labels`` are ``(1, K)``, ``boxes`` ``(1, K, 4)`` with x1, y1, x2, y2 relative
    to the image, from 0 to 1; K, at most ``max_per_img``, differs from image to image. All is as
    ``test_cfg`` of the model says: the best ``nms_pre`` pairs of place and class of each level
    above ``score_thr``, then NMS within each class.

    Raises:
        ValueError: ``test_cfg`` asks for something else than plain NMS.
    """

    outputs = ('scores', 'labels', 'boxes')
    one_image = True

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.cfg = cfg = ConfigDict(model.bbox_head.test_cfg)
        nms = dict(cfg.nms)
        threshold = nms.pop('iou_threshold', None)
        if nms.pop('type', 'nms') != 'nms' or nms or not isinstance(threshold, (int, float)):
            raise ValueError(
                f"test_cfg.nms is {dict(cfg.nms)}; only dict(type='nms', iou_threshold=...) can be "
                'exported'
            )
        for name in ('nms_pre', 'max_per_img'):
            if cfg.get(name, -1) < 1:
                raise ValueError(f'test_cfg.{name} is {cfg.get(name)}; it must be at least 1')
        if not model.bbox_head.use_sigmoid_cls:
            raise ValueError('bbox_head.loss_cls.use_sigmoid is False; it must be True')
        # As a buffer, so that the check can lower it in the file.
        self.register_buffer('score_threshold', torch.tensor(float(cfg.get('score_thr', 0))))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = (int(side) for side in images.shape[-2:])
        scores, labels, boxes = self.candidates(images)
        # mmdet's way to part the classes: each has a place of its own. What was ruled out comes
        # last, so that it drives out nothing.
        largest = boxes.amax(dim=-1).masked_fill(scores < 0, 0).max()
        places = boxes + (labels * (largest + 1))[:, None]
        kept = torchvision.ops.nms(places, scores, self.cfg.nms.iou_threshold)
        kept = kept[scores[kept] >= 0][: self.cfg.max_per_img]
        sides = boxes.new_tensor([width, height, width, height])
        return scores[kept][None], labels[kept][None], (boxes[kept] / sides)[None]

    def candidates(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores ``(M,)``, -1 where ruled out, labels ``(M,)`` and boxes ``(M, 4)`` in pixels."""
        head = self.model.bbox_head
        height, width = (int(side) for side in images.shape[-2:])
        logits, deltas, *factors = head(self.model.extract_feat(self.normalise(images)))
        centerness = factors[0] if factors else [None] * len(logits)
        priors = head.prior_generator.grid_priors(
            [tuple(int(side) for side in level.shape[-2:]) for level in logits],
            dtype=logits[0].dtype,
            device=images.device,
        )
        found = []
        for level in zip(logits, deltas, centerness, priors, strict=True):
            found.append(self._best_of_level(*level))
        scores, labels, deltas, priors = (torch.cat(parts) for parts in zip(*found, strict=True))
        boxes = head.bbox_coder.decode(priors, deltas)
        if head.bbox_coder.clip_border:
            x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
            boxes = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=-1)
        if (smallest := self.cfg.get('min_bbox_size', -1)) >= 0:
            large = (boxes[:, 2:] - boxes[:, :2] > smallest).all(dim=-1)
            scores = scores.masked_fill(~large, -1.0)
        return scores, labels, boxes

    def _best_of_level(
        self, logits: Tensor, deltas: Tensor, centerness: Tensor | None, priors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        classes = self.model.bbox_head.cls_out_channels
        flat = logits[0].permute(1, 2, 0).reshape(-1).sigmoid()
        scores, pairs = flat.topk(min(self.cfg.nms_pre, flat.shape[0]))
        places, labels = pairs // classes, pairs % classes
        above = scores > self.score_threshold
        if centerness is not None:
            scores = scores * centerness[0].permute(1, 2, 0).reshape(-1).sigmoid()[places]
        scores = scores.masked_fill(~above, -1.0)
        deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
        return scores, labels, deltas[places], priors[places]

    def difference(self, images: Tensor, outputs: list[Tensor]) -> float:
        """Largest difference between ``outputs`` and what mmdet itself predicts.

        Infinite where a box has no counterpart, unless a score or an IoU is so near to its
        threshold that the last digit decides.
        """
        height, width = images.shape[-2:]
        features = self.model.extract_feat(self.normalise(images))
        cfg = ConfigDict(self.cfg, score_thr=self.score_threshold.item())
        (found,) = self.model.bbox_head.predict_by_feat(
            *self.model.bbox_head(features),
            batch_img_metas=[dict(img_shape=(height, width))],
            cfg=cfg,
        )
        boxes = found.bboxes / found.bboxes.new_tensor([width, height, width, height])
        return compare(
            (found.scores, found.labels, boxes),
            tuple(output[0] for output in outputs),
            self.cfg.nms.iou_threshold,
            found.bboxes.new_tensor([width, height, width, height]),
        )


def compare(
    expected: tuple[Tensor, ...], found: tuple[Tensor, ...], iou_threshold: float, sides: Tensor
) -> float:
    """Largest difference of scores and boxes between two lists of detections, in any order.

    Args:
        expected: Scores ``(K,)``, labels ``(K,)`` and boxes ``(K, 4)`` from 0 to 1.
        found: The same of another network.
        iou_threshold: That of the NMS.
        sides: Width, height, width and height of the image, for IoUs.

    Returns:
        The difference, infinite where a box has no counterpart for no reason.
    """
    if not len(expected[0]) or not len(found[0]):
        rest = torch.cat((expected[0], found[0]))
        return 0.0 if not len(rest) else float('inf')
    gaps = torch.maximum(
        (expected[0][:, None] - found[0]).abs(),
        (expected[2][:, None] - found[2]).abs().amax(dim=-1),
    )
    gaps = gaps.nan_to_num(float('inf')).masked_fill(expected[1][:, None] != found[1], float('inf'))
    paired = (gaps.amin(dim=1) <= NEAR, gaps.amin(dim=0) <= NEAR)
    largest = gaps.amin(dim=1)[paired[0]].max().item() if paired[0].any() else float('inf')
    scores, labels, boxes = (torch.cat(pair) for pair in zip(expected, found, strict=True))
    alone = ~torch.cat(paired)
    last = min(expected[0].min(), found[0].min())
    overlaps = torchvision.ops.box_iou(boxes * sides, boxes * sides)
    rivals = (labels[:, None] == labels) & (scores[:, None] < scores + NEAR)
    rivals.fill_diagonal_(False)
    near = (rivals & ((overlaps - iou_threshold).abs() < NEAR)).any(dim=1)
    # What a box drives out that is there by such a chance.
    follows = (rivals & alone & (overlaps > iou_threshold)).any(dim=1)
    explained = near | follows | (scores <= last + NEAR)
    few = alone.sum() <= 0.1 * len(alone)
    return largest if few and not (alone & ~explained).any() else float('inf')
