"""MCF: FIS counts, CRS masks, and a vote on one set of inputs and hidden units for each FFN."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mcf_mm.pruning.calibration import Seen
from mcf_mm.pruning.criteria import baselines
from mcf_mm.pruning.criteria.base import Criterion, generator_of
from mcf_mm.pruning.criteria.fis import band_limit, count_outside, guided_rows
from mcf_mm.pruning.criteria.regular import SparseFFN, x_transformation
from mcf_mm.pruning.find import find_classifier
from mcf_mm.pruning.observers import ActivationObserver, Observer
from mcf_mm.pruning.structure import Sizes, Structure, check_seed
from mcf_mm.pruning.unit import Unit
from mcf_mm.pruning.units import FFN

METHODS = ('mcf', 'random', 'magnitude', 'activation')


class MCF(Criterion):
    """The criterion of the paper, and its baselines, which score weights in another way.

    Args:
        method: ``'mcf'`` counts as the paper; ``'random'``, ``'magnitude'`` (the paper's "direct
            pruning") and ``'activation'`` score the weights otherwise. Defaults to ``'mcf'``.
        guide: Fraction of important elements that guide FIS; 1 for all. Defaults to 0.5 (ours).
        scale: Width of the band of FIS. Defaults to 1 (ours).
        shared_inputs: See :func:`~mcf_mm.pruning.criteria.regular.x_transformation`. Defaults to
            ``'layer'``.
        seed: For ``'random'``. Defaults to 0.

    Attributes:
        classifier: Layer that guides; None for no guidance.

    Raises:
        ValueError: An argument is out of range.
    """

    kinds = ('inputs', 'hidden')

    def __init__(
        self,
        method: str = 'mcf',
        guide: float = 0.5,
        scale: float = 1.0,
        shared_inputs: str = 'layer',
        seed: int = 0,
    ):
        if method not in METHODS:
            raise ValueError(f'method must be one of {METHODS}, got {method!r}')
        if not 0 < guide <= 1:
            raise ValueError(f'guide must be in (0, 1], got {guide}')
        if not 0 < scale < float('inf'):
            raise ValueError(f'scale must be positive, got {scale}')
        if shared_inputs not in ('layer', 'network'):
            raise ValueError(f"shared_inputs must be 'layer' or 'network', got {shared_inputs!r}")
        check_seed(seed)
        self.method, self.guide, self.scale = method, guide, scale
        self.shared_inputs, self.seed = shared_inputs, seed
        self.classifier: nn.Linear | None = None

    def prepare(self, model: nn.Module) -> None:
        self.classifier = find_classifier(model)

    def observers(self, units: Sequence[Unit], sizes: Sizes) -> list[Observer]:
        # Guidance passes through all FFNs, whatever is pruned of them.
        return [
            ActivationObserver(unit, kind)
            for unit in units
            if isinstance(unit, FFN)
            for kind in self.kinds
        ]

    def sparsify(
        self, units: Sequence[Unit], sizes: Sizes, seen: Seen, only: str | None = None
    ) -> dict[str, SparseFFN]:
        """Score the weights of every FFN and apply CRS.

        Args:
            units: Units in the order of the forward pass.
            sizes: How many elements are kept; kinds that are not named keep all.
            seen: Result of calibration.
            only: Name of the one FFN to score. Guidance still starts at the classifier. Defaults
                to all in ``sizes``.

        Returns:
            Scores and masks by FFN name, in the order of the forward pass.
        """
        ffns = [unit for unit in units if isinstance(unit, FFN) and (unit, 'hidden') in seen]
        sparse = {}
        for ffn, outputs, hidden in guided_rows(ffns, seen, self.classifier, self.guide):
            if ffn.name == only or (only is None and ffn.name in sizes):
                own = {**ffn.sizes, **sizes[ffn.name]}
                layers = (
                    (ffn.fc1.weight, seen[ffn, 'inputs'], hidden),
                    (ffn.fc2.weight, seen[ffn, 'hidden'], outputs),
                )
                scores = self._scores(ffn, layers)
                ties = [baselines.activation(weight, values) for weight, values, _ in layers]
                kept = (own['inputs'], own['hidden'])
                sparse[ffn.name] = SparseFFN.from_scores(scores, ties, kept)
            if ffn.name == only:
                break
        return dict(reversed(sparse.items()))

    def _scores(self, ffn: FFN, layers: Sequence[tuple]) -> list[Tensor]:
        if self.method == 'mcf':
            return [
                count_outside(values.tokens, weight, band_limit(weight, self.scale), rows)
                for weight, values, rows in layers
            ]
        if self.method == 'random':
            generator = generator_of(self.seed, ffn.name)
            return [baselines.random(weight, generator) for weight, _, _ in layers]
        score = getattr(baselines, self.method)
        return [score(weight, values) for weight, values, _ in layers]

    def scores(self, unit: Unit, kind: str, seen: Seen) -> Tensor:
        """Summed importance of the weights of each input or hidden unit, for threshold policies.

        All rows count: guidance passes through all FFNs, and this is one.
        """
        if not isinstance(unit, FFN):
            raise ValueError(f'MCF scores the weights of FFNs, and {unit.name} is none')
        layers = (
            (unit.fc1.weight, seen[unit, 'inputs'], None),
            (unit.fc2.weight, seen[unit, 'hidden'], None),
        )
        return self._scores(unit, layers)[self.kinds.index(kind)].sum(0)

    @torch.no_grad()
    def select(self, units: Sequence[Unit], sizes: Sizes, seen: Seen) -> Structure:
        """X-Transformation (section 3.4): what the rows of each layer agree on, by vote."""
        return self.vote(self.sparsify(units, sizes, seen), sizes)

    def vote(self, sparse: dict[str, SparseFFN], sizes: Sizes) -> Structure:
        """The structure of FFNs that were sparsified before."""
        self.importance = {
            name: {'inputs': ffn.scores1.sum(0), 'hidden': ffn.scores2.sum(0)}
            for name, ffn in sparse.items()
        }
        return x_transformation(sparse, sizes, self.shared_inputs)
