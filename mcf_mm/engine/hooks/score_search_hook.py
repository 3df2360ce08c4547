"""Searches the dimensions of a model while it trains, on the task itself (SiDT)."""

from collections.abc import Mapping, Sequence

from mcf_mm.engine.hooks.pruning_hook import PruningHook
from mcf_mm.engine.score_run import ScoreRun
from mcf_mm.registry import HOOKS


@HOOKS.register_module()
class ScoreSearchHook(PruningHook):
    """Learns a score for each dimension, then cuts those with small ones and lets the rest recover.

    For any task: scores are on query/key channels, value channels and hidden units of whatever
    units the model has, a detector's backbone included. They start at 1 and train with the
    pre-trained weights, on the task's loss plus ``l1`` times the sum of their sizes. At the start
    of epoch ``search_epochs`` they are folded into the weights, one threshold for each kind over
    the network drops the share ``ratio``, and the model becomes really small; the epochs that
    remain recover. What is written is that of :class:`PruningHook`.

    Of the method (SiDT, arXiv 2204.07722) the abstract alone is known, which says that dimensions
    of 20 % and 40 % are searched on the task. The design is ours, on VTP and ViT-Slim.

    - The penalty is a part of the loss (``loss_scores`` in the log) and not added to gradients, so
      that loss scales, accumulation and clipping treat it as the task's loss.
    - The scores are in no state dict: dense weights load as ever, and checkpoints of the search
      load into the dense model, which is the model without its scores. They are a parameter group
      of their own, without weight decay; their rate follows the schedule of the config.
    - In distributed data parallel the gradients of the scores are averaged by this hook.
    - An EMAHook's average has no scores: it is validated with those of the model, and gets the
      last ones at the cut.
    - A query channel is multiplied, its key channel with it: their product counts.

    Args:
        ratio: Share of each kind to drop, in [0, 1), or ``{kind: ratio}``. Defaults to 0.4.
        search_epochs: Epochs that search. Defaults to 10 (ours).
        l1: Weight of the penalty; 5e-5 to 2e-4 is usual. Defaults to 1e-4.
        kinds: What is searched, of ``'qk'``, ``'v'``, ``'hidden'`` and ``'inputs'`` (of FFNs).
            Defaults to the first three.
        lr_mult: Learning rate of the scores over that of the units' weights, the largest where
            those have several. Defaults to 10 (ours).
        compensation: As for :class:`PruningHook`. Defaults to ``'none'``.
        num_images: Training images to compensate and heal with. Defaults to 1024.
        teacher: As for :class:`PruningHook`; the network after the search teaches.
        seed: Chooses these images. Defaults to 0.
        heal: As for :class:`PruningHook`, towards the network after the search.

    Raises:
        ValueError: As for :class:`PruningHook`; ``search_epochs`` is no shorter than the run.

    Example:
        >>> custom_hooks = [dict(type='mcf_mm.ScoreSearchHook', ratio=0.4, search_epochs=30)]
    """

    def __init__(
        self,
        ratio: float | Mapping[str, float] = 0.4,
        search_epochs: int = 10,
        l1: float = 1e-4,
        kinds: Sequence[str] = ('qk', 'v', 'hidden'),
        lr_mult: float = 10.0,
        compensation: str = 'none',
        num_images: int = 1024,
        teacher: dict | None = None,
        seed: int = 0,
        heal: dict | None = None,
    ):
        self.pruning = ScoreRun(
            type(self).__name__,
            ratio,
            search_epochs,
            l1,
            kinds,
            lr_mult,
            compensation,
            num_images=num_images,
            teacher=teacher,
            seed=seed,
            heal=heal,
        )
