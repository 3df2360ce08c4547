"""What a cut leaves for its report, as a file: sizes, importance, curves, costs and command."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcf_mm.analysis.complexity import Complexity, Cost
from mcf_mm.files import write_json
from mcf_mm.pruning import Sizes, Structure
from mcf_mm.pruning.curves import Curves

#: Name of the file, in the folder of the report.
RECORD = 'run.json'
#: What the kinds are called in pictures and tables.
KINDS = {
    'inputs': "inputs C'",
    'hidden': "hidden units H'",
    'heads': 'heads',
    'tokens': 'tokens',
    'qk': 'q/k channels of a head',
    'v': 'value channels of a head',
}
#: Points of a line in a picture.
POINTS = 64


@dataclass
class Record:
    """The facts of a cut.

    Attributes:
        full: Sizes of the dense network.
        sizes: Sizes of the pruned units.
        inputs: Indices of the inputs that FFNs read, by unit, where they are not all.
        importance: Scores from the largest on as shares of it, at most :data:`POINTS`, and the
            numbers of elements ``kept`` and ``count``, by unit and kind.
        curves: Loss by the share that goes, as pairs, by unit and kind.
        before: What the dense network costs, as :meth:`Complexity.to_dict` says it.
        after: What the pruned one costs.
        made: Command, versions and machine of the cut.
        throughput: What was timed, see :meth:`mcf_mm.analysis.throughput.Comparison.to_dict`.
    """

    full: Sizes
    sizes: Sizes
    before: dict[str, Any]
    after: dict[str, Any]
    inputs: dict[str, list[int]] = field(default_factory=dict)
    importance: dict[str, dict[str, dict]] = field(default_factory=dict)
    curves: dict[str, dict[str, list]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    throughput: dict[str, Any] | None = None

    @property
    def costs(self) -> tuple[Complexity, Complexity]:
        """What the dense and the pruned network cost."""
        return _complexity(self.before), _complexity(self.after)

    def save(self, folder: str | Path) -> Path:
        """Write the file into a folder, whole or not at all."""
        path = Path(folder) / RECORD
        write_json(path, asdict(self))
        return path


def record_cut(
    structure: Structure,
    full: Sizes,
    importance: Mapping[str, Mapping[str, Tensor]],
    before: Complexity,
    after: Complexity,
    curves: Curves | None = None,
) -> Record:
    """Gather the facts of a cut.

    Args:
        structure: What was kept.
        full: Sizes of the dense network.
        importance: Scores by unit and kind, ``(count,)``; may be empty.
        before: What the dense network costs.
        after: What the pruned one costs.
        curves: Cost curves, where the criterion has some. Defaults to None.
    """
    return Record(
        full={name: dict(own) for name, own in full.items()},
        sizes={name: dict(own) for name, own in structure.sizes.items()},
        before=before.to_dict(),
        after=after.to_dict(),
        inputs={
            name: kinds['inputs'].tolist()
            for name, kinds in structure.items()
            if 'inputs' in kinds and len(kinds['inputs']) < full[name]['inputs']
        },
        importance={
            name: {
                kind: _ranked(scores, kept.get(kind)) for kind, scores in importance[name].items()
            }
            for name, kept in structure.items()
            if name in importance
        },
        curves={} if curves is None else sampled_curves(curves),
    )


def sampled_curves(curves: Curves) -> dict[str, dict[str, list]]:
    """Loss by the share that goes, at most :data:`POINTS` pairs, by unit and kind."""
    return {
        name: {
            kind: [[i / max(1, len(loss) - 1), loss[i]] for i in _places(len(loss))]
            for kind, loss in kinds.items()
        }
        for name, kinds in curves.loss.items()
    }


def read_record(folder: str | Path) -> Record | None:
    """Read what :meth:`Record.save` wrote into a folder; None where there is no such file.

    Raises:
        ValueError: The file is no such record.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        known = {entry.name for entry in fields(Record)}
        record = Record(**{key: value for key, value in content.items() if key in known})
        _ = record.costs
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} is no record of a pruning run ({error!r}): delete it, and the report is made '
            'of the checkpoint alone'
        ) from None
    return record


def _ranked(scores: Tensor, kept: Tensor | None) -> dict[str, Any]:
    ranked = scores.detach().double().cpu().sort(descending=True).values
    most = float(ranked.abs().max()) or 1.0
    places = torch.tensor(_places(len(ranked)))
    return {
        'shares': [round(value, 5) for value in (ranked[places] / most).tolist()],
        'kept': len(ranked) if kept is None else len(kept),
        'count': len(ranked),
    }


def _places(count: int) -> list[int]:
    """Places of at most :data:`POINTS` of ``count`` elements, the first and the last among them."""
    return sorted({round(i * (count - 1) / (POINTS - 1)) for i in range(POINTS)})


def _complexity(cost: Mapping[str, Any]) -> Complexity:
    parts = {name: Cost(**part) for name, part in cost['parts'].items()}
    return Complexity(cost['params'], cost['macs'], parts)
