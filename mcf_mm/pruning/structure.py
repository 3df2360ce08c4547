"""How much is kept (sizes) and what (a structure), of each kind of each unit."""

import json
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

#: How many elements of each kind a unit keeps, ``{unit: {kind: n}}``; of ``qk`` and ``v`` in each
#: head.
Sizes = Mapping[str, Mapping[str, int]]

#: Names of kinds in files of mcf_mm 0.1.
_OLD_KINDS = {'hiddens': 'hidden'}


def kept_size(size: int, ratio: float, multiple: int = 1) -> int:
    """How many of ``size`` elements stay, floor(size * (1 - ratio)) but at least one.

    Args:
        size: Number of elements.
        ratio: Share to drop, in [0, 1).
        multiple: The number is rounded to the nearest multiple of this, which some devices
            compute faster (ours). Nothing is rounded at ratio 0. Defaults to 1, the paper.

    Raises:
        ValueError: ``ratio`` is no number in [0, 1) or ``multiple`` no whole number from 1 on.
    """
    check_ratio('a pruning ratio', ratio)
    check_whole('multiple', multiple, 1)
    # The small term keeps 10 * (1 - 0.9) at 1 where floating point says 0.9999999999999998.
    kept = max(1, math.floor(size * (1 - ratio) + 1e-9))
    if multiple == 1 or ratio == 0:
        return kept
    return min(size, max(1, round(kept / multiple)) * multiple)


def check_ratio(argument: str, ratio: float) -> None:
    """Raise a ValueError that names ``argument`` unless it is a number in [0, 1)."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise ValueError(f'{argument} must be a number in [0, 1), got {ratio!r}')


def check_whole(argument: str, value: int, least: int = 0) -> None:
    """Raise a ValueError that names ``argument`` unless it is a whole number, ``least`` or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f'{argument} must be a whole number, got {value!r}')
    if value < least:
        raise ValueError(f'{argument} must be at least {least}, got {value}')


def check_seed(seed: int) -> None:
    """Raise a ValueError unless ``seed`` is one that every random generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f'seed must be a whole number from 0 to 2**32 - 1, got {seed!r}')


class Structure(Mapping[str, Mapping[str, Tensor]]):
    """What each unit keeps: ascending indices, ``{unit: {kind: indices}}``.

    Kinds that are not named keep all. An entry of an attention names its ``heads``; its ``qk`` and
    ``v`` are numbered through all heads of the network before the cut.

    Args:
        kept: Indices by unit and kind.

    Raises:
        ValueError: Indices are not ascending, or there is none.
    """

    def __init__(self, kept: Mapping[str, Mapping[str, Tensor]]):
        self._kept = {name: dict(kinds) for name, kinds in kept.items()}
        for name, kinds in self._kept.items():
            for kind, index in kinds.items():
                if len(index) == 0 or index[0] < 0 or bool((index.diff() <= 0).any()):
                    raise ValueError(
                        f'{name}.{kind} must be ascending indices, at least one, '
                        f'got {index.tolist()[:8]}'
                    )

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        """How many are kept, ``{unit: {kind: n}}``; of ``qk`` and ``v`` in each head."""
        return {
            name: {
                kind: len(index) // (len(kinds['heads']) if kind in ('qk', 'v') else 1)
                for kind, index in kinds.items()
            }
            for name, kinds in self.items()
        }

    def to_json(self) -> str:
        """One JSON object ``{unit: {kind: [index, ...]}}``."""
        return json.dumps(
            {
                name: {kind: index.tolist() for kind, index in kinds.items()}
                for name, kinds in self.items()
            }
        )

    @classmethod
    def from_json(cls, text: str) -> 'Structure':
        """The inverse of :meth:`to_json`; reads what mcf_mm 0.1 wrote, too."""
        return cls(
            {
                name: {
                    _OLD_KINDS.get(kind, kind): torch.tensor(index) for kind, index in kinds.items()
                }
                for name, kinds in json.loads(text).items()
            }
        )
