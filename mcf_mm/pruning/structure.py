"""What pruning keeps: for each FFN the inputs and the hidden units."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


def kept_size(size: int, ratio: float, multiple: int = 1) -> int:
    """How many of ``size`` elements stay, floor(size * (1 - ratio)) but at least one.

    Args:
        size: Number of elements.
        ratio: Share to drop, in [0, 1).
        multiple: The number is rounded to the nearest multiple of this, which some devices
            compute faster (ours). Nothing is rounded at ratio 0. Defaults to 1, the paper.

    Raises:
        ValueError: ``ratio`` is not in [0, 1) or ``multiple`` is below 1.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f'a pruning ratio must be in [0, 1), got {ratio}')
    if multiple < 1:
        raise ValueError(f'multiple must be at least 1, got {multiple}')
    # The small term keeps 10 * (1 - 0.9) at 1 where floating point says 0.9999999999999998.
    kept = max(1, math.floor(size * (1 - ratio) + 1e-9))
    if multiple == 1 or ratio == 0:
        return kept
    return min(size, max(1, round(kept / multiple)) * multiple)


@dataclass(frozen=True)
class Kept:
    """Ascending indices of what one FFN keeps.

    Attributes:
        inputs: Inputs of fc1, ``(C',)``, int64.
        hiddens: Hidden units, ``(H',)``, int64.
    """

    inputs: Tensor
    hiddens: Tensor

    @property
    def sizes(self) -> tuple[int, int]:
        """(C', H')."""
        return len(self.inputs), len(self.hiddens)


class Structure(Mapping[str, Kept]):
    """Maps the name of each pruned FFN to what it keeps.

    Args:
        kept: :class:`Kept` by FFN name, in the order of the forward pass.

    Raises:
        ValueError: Indices are not ascending, or none is kept.
    """

    def __init__(self, kept: Mapping[str, Kept]):
        self._kept = dict(kept)
        for name, part in self._kept.items():
            for kind in ('inputs', 'hiddens'):
                index = getattr(part, kind)
                if len(index) == 0 or index[0] < 0 or bool((index.diff() <= 0).any()):
                    raise ValueError(
                        f'{name}.{kind} must be ascending indices, at least one, '
                        f'got {index.tolist()[:8]}'
                    )

    def __getitem__(self, name: str) -> Kept:
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(C', H') by FFN name."""
        return {name: kept.sizes for name, kept in self.items()}

    def to_json(self) -> str:
        """One JSON object ``{name: {"inputs": [...], "hiddens": [...]}}``."""
        return json.dumps(
            {
                name: {'inputs': kept.inputs.tolist(), 'hiddens': kept.hiddens.tolist()}
                for name, kept in self.items()
            }
        )

    @classmethod
    def from_json(cls, text: str) -> 'Structure':
        """The inverse of :meth:`to_json`."""
        return cls(
            {
                name: Kept(torch.tensor(kept['inputs']), torch.tensor(kept['hiddens']))
                for name, kept in json.loads(text).items()
            }
        )
