"""Finds the feed-forward networks of a model and names their parts alike."""

from dataclasses import dataclass

from torch import nn

from mcf_mm.pruning.slim import RowSparseLinear, SlimLinear


@dataclass(frozen=True)
class FFN:
    """One feed-forward network ``fc2(act(fc1(x)))`` inside a model.

    Attributes:
        name: Path of the FFN in the model, such as ``'backbone.layers.3.ffn'``.
        module: The FFN itself.
        fc1_path: Path of the first linear layer inside ``module``.
        fc2_path: Path of the second one.
    """

    name: str
    module: nn.Module
    fc1_path: str
    fc2_path: str

    @property
    def fc1(self) -> nn.Linear:
        """First linear layer, weight W1 ``(H, C)``, read anew because surgery may replace it."""
        return self.module.get_submodule(self.fc1_path)

    @property
    def fc2(self) -> nn.Linear:
        """Second linear layer, weight W2 ``(C, H)``."""
        return self.module.get_submodule(self.fc2_path)

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of inputs that fc1 and fc2 read, (C', H')."""
        return self.fc1.in_features, self.fc2.in_features

    @property
    def selection(self) -> str:
        """``'row'`` when each row of a layer reads inputs of its own, else ``'layer'``."""
        return 'row' if isinstance(self.fc2, RowSparseLinear) else 'layer'

    @property
    def width(self) -> int:
        """Embedding width C. Pruning never changes the output width, so fc2 tells it."""
        return self.fc2.out_features

    def replace(self, path: str, linear: nn.Linear) -> None:
        """Puts ``linear`` at ``path``, which is ``fc1_path`` or ``fc2_path``."""
        parent, _, child = path.rpartition('.')
        setattr(self.module.get_submodule(parent), child, linear)


def find_ffns(model: nn.Module) -> list[FFN]:
    """Lists the FFNs of ``model`` in the order of the forward pass.

    Recognised by their parts, so that no library need be imported: mmcv's ``FFN`` (``layers`` is
    a Sequential of [Sequential(Linear, activation, dropout), Linear, dropout]) and timm's ``Mlp``
    (``fc1``, ``fc2``). Gated FFNs, whose two layers do not fit together, are left out, and so are
    those without a residual connection (``add_identity=False``): DETR's heads have one.
    """
    ffns = []
    for name, module in model.named_modules():
        for paths in (('layers.0.0', 'layers.1'), ('fc1', 'fc2')):
            if _is_ffn(module, *paths):
                ffns.append(FFN(name, module, *paths))
    return ffns


def _is_ffn(module: nn.Module, fc1_path: str, fc2_path: str) -> bool:
    try:
        fc1, fc2 = module.get_submodule(fc1_path), module.get_submodule(fc2_path)
    except AttributeError:
        return False
    if not isinstance(fc1, nn.Linear) or not isinstance(fc2, nn.Linear):
        return False
    if not getattr(module, 'add_identity', True):
        return False
    if isinstance(fc2, RowSparseLinear):
        return True
    reads = fc2.out_features if isinstance(fc1, SlimLinear) else fc1.in_features
    return fc1.out_features == fc2.in_features and reads == fc2.out_features


def find_classifier(model: nn.Module) -> nn.Linear | None:
    """The linear layer that turns the class token into class scores, or None.

    It is the linear layer named ``head`` or ``fc`` below ``model.head`` (mmpretrain) or
    ``model.head`` itself (timm). A detector has ``bbox_head`` and therefore none.
    """
    head = getattr(model, 'head', None)
    if isinstance(head, nn.Linear):
        return head
    if not isinstance(head, nn.Module):
        return None
    for name, module in head.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition('.')[2] in ('head', 'fc'):
            return module
    return None
