"""Which layer of a network scores the classes."""

import timm
import zoo
from torch import nn

from mcf_mm.pruning import find_classifier


class Classifier(nn.Module):
    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head


def test_the_classifier_of_mmpretrain_is_no_hidden_layer_of_its_head():
    kinds = dict(num_classes=5, in_channels=24)
    head = zoo.part('VisionTransformerClsHead', **kinds)
    assert find_classifier(Classifier(head)) is head.layers.head
    head = zoo.part('VisionTransformerClsHead', hidden_dim=12, **kinds)
    assert find_classifier(Classifier(head)) is head.layers.head
    head = zoo.part('DeiTClsHead', **kinds)
    assert find_classifier(Classifier(head)) is head.layers.head
    head = zoo.part('LinearClsHead', **kinds)
    assert find_classifier(Classifier(head)) is head.fc
    # The last width equals the number of classes, which must not confuse.
    for widths in ([12], [12, 5]):
        head = zoo.part('StackedLinearClsHead', mid_channels=widths, **kinds)
        assert find_classifier(Classifier(head)) is head.layers[-1].fc


def test_the_classifiers_of_timm_and_hugging_face():
    vit = zoo.network('timm ViT')
    assert find_classifier(vit) is vit.head
    swin = zoo.network('timm Swin')
    assert find_classifier(swin) is swin.head.fc
    distilled = zoo.network('timm DeiT distilled')
    assert find_classifier(distilled) is distilled.head
    for name in ('ViT', 'DeiT', 'DINOv2'):
        model = zoo.network(f'Hugging Face {name}')
        assert find_classifier(model) is model.classifier
    # A hidden layer of a head of timm is none.
    head = timm.layers.NormMlpClassifierHead(24, 5, hidden_size=12)
    assert find_classifier(Classifier(head)) is head.fc


def test_networks_without_a_classifier():
    assert find_classifier(zoo.network('mmdet SwinTransformer')) is None
    headless = timm.create_model('vit_tiny_patch16_224', depth=1, num_classes=0)
    assert find_classifier(headless) is None
