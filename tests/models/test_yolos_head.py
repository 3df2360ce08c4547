import math

import pytest
import torch
from mmengine.structures import InstanceData

from mcf_mm.models import YOLOSHead

META = dict(img_shape=(100, 200), scale_factor=(0.5, 0.5))


def objects(boxes: list, labels: list) -> InstanceData:
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels=torch.tensor(labels)
    )


def test_two_perceptrons_of_three_layers():
    head = YOLOSHead(num_classes=2, embed_dims=8)
    logits, boxes = head(torch.randn(1, 2, 5, 8))
    assert logits.shape == (1, 2, 5, 3) and boxes.shape == (1, 2, 5, 4)
    assert 0 < boxes.min() and boxes.max() < 1
    assert sum(p.numel() for p in head.parameters()) == 4 * (8 * 8 + 8) + 8 * 3 + 3 + 8 * 4 + 4


def test_losses_by_hand():
    head = YOLOSHead(num_classes=2, embed_dims=8)
    logits = torch.tensor([[[[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]]]])
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1]]]])
    # In relative coordinates (0.5, 0.5, 0.4, 0.4): the first token matches.
    losses = head.loss_by_feat(logits, boxes, [objects([[60, 30, 140, 70]], [0])], [META])
    weighted = [
        (1.0, -math.log(math.exp(2) / (math.exp(2) + 1 + math.e))),
        (0.1, -math.log(1 / (2 + math.e))),
        (0.1, -math.log(math.exp(3) / (2 + math.exp(3)))),
    ]
    cross_entropy = sum(w * loss for w, loss in weighted) / sum(w for w, _ in weighted)
    assert losses['loss_cls'].item() == pytest.approx(cross_entropy, rel=1e-5)
    assert losses['loss_bbox'].item() == pytest.approx(5 * 0.2, rel=1e-5)
    # Half of the object, and nothing beside it in the enclosing box.
    assert losses['loss_iou'].item() == pytest.approx(2 * (1 - 0.5), rel=1e-5)


def test_costs_of_the_matching():
    head = YOLOSHead(num_classes=2, embed_dims=8)
    # One token has the box and the other the class: 5 x L1 + 2 x GIoU weigh more.
    logits = torch.tensor([[[[0.0, 5.0, 0.0], [5.0, 0.0, 0.0]]]])
    boxes = torch.tensor([[[[0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]]]])
    gts = [objects([[60, 30, 140, 70]], [0])]
    assert head.loss_by_feat(logits, boxes, gts, [META])['loss_bbox'].item() < 1e-5


def test_an_image_without_objects():
    head = YOLOSHead(num_classes=2, embed_dims=8)
    tokens = torch.randn(1, 2, 5, 8, requires_grad=True)
    logits, boxes = head(tokens)
    gts = [objects([], []), objects([[0, 0, 9, 9]], [1])]
    gts[0].labels = gts[0].labels.long()
    both = head.loss_by_feat(logits, boxes, gts, [META, META])
    none = head.loss_by_feat(logits[:, :1], boxes[:, :1], gts[:1], [META])
    assert none['loss_bbox'] == none['loss_iou'] == 0 < none['loss_cls']
    sum(both.values()).backward(retain_graph=True)
    sum(none.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_more_objects_than_tokens():
    head = YOLOSHead(num_classes=2, embed_dims=8)
    corners = torch.rand(9, 2) * 50
    many = objects(torch.cat((corners, corners + 20), dim=1).tolist(), [0, 1, 0] * 3)
    losses = head.loss_by_feat(*head(torch.randn(1, 1, 4, 8)), [many], [META])
    assert all(loss.isfinite() for loss in losses.values())


def test_prediction():
    head = YOLOSHead(num_classes=2, embed_dims=8)
    logits = torch.tensor([[[[0.0, 4.0, 9.0], [3.0, 0.0, 0.0]]]])
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.2], [0.9, 0.5, 0.4, 1.0]]]])
    (result,) = head.predict_by_feat(logits, boxes, [META])
    assert result.labels.tolist() == [0, 1]  # the best score first, never the no-object class
    expected = logits[0, 0].softmax(-1)[[1, 0], [0, 1]]
    torch.testing.assert_close(result.scores, expected)
    # Clipped to the image, then in pixels of the original, twice as large.
    torch.testing.assert_close(
        result.bboxes, torch.tensor([[280.0, 0.0, 400.0, 200.0], [160.0, 80.0, 240.0, 120.0]])
    )


def test_labels_in_another_order():
    torch.manual_seed(0)
    plain = YOLOSHead(num_classes=5, embed_dims=8)
    head = YOLOSHead(num_classes=5, embed_dims=8, class_ids=[3, 0, 4])
    logits, boxes = torch.randn(1, 2, 6, 6) * 3, torch.rand(1, 2, 6, 4)
    logits[0, 0, 0, 1] = 50  # an output that is no label, and leaves nothing for the others
    results = head.predict_by_feat(logits, boxes, [META] * 2)
    for image, result in enumerate(results):
        scores, labels = logits[0, image].softmax(-1)[:, [3, 0, 4]].max(-1)
        order = scores.argsort(descending=True)
        torch.testing.assert_close(result.scores, scores[order])
        assert torch.equal(result.labels, labels[order])
        assert len(set(labels.tolist())) > 1
    assert results[0].scores.min() < 1e-9

    corners = [[0, 0, 20, 30], [50, 20, 90, 60], [100, 50, 200, 100]]
    own = [objects(corners, [2, 0, 1]), objects(corners[:1], [1])]
    mapped = [objects(corners, [4, 3, 0]), objects(corners[:1], [0])]
    losses = head.loss_by_feat(logits, boxes, own, [META] * 2)
    assert losses == plain.loss_by_feat(logits, boxes, mapped, [META] * 2)
    assert own[0].labels.tolist() == [2, 0, 1]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(losses, plain.loss_by_feat(logits, boxes, own, [META] * 2))


@pytest.mark.parametrize('class_ids, wrong', [([0, 5, -1], '5, -1'), ([0, 2, 2], '2')])
def test_outputs_that_cannot_be_labels(class_ids, wrong):
    message = rf'different outputs from 0 to 4 \(num_classes - 1\), got \[{wrong}\] among them'
    with pytest.raises(ValueError, match=message):
        YOLOSHead(num_classes=5, embed_dims=8, class_ids=class_ids)
