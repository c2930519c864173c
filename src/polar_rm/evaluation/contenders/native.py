"""Reward models saved by polar, scored as ``polar score`` does."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from polar_rm.evaluation.contenders.base import Contender, ModelOptions
from polar_rm.evaluation.pairs import NotedScores
from polar_rm.evaluation.references import ComparisonScorer
from polar_rm.model.blueprint import Blueprint, checkpoint_blueprint
from polar_rm.model.native import untrained_warning
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import Comparison
from polar_rm.scoring.scorer import Scorer

_WINDOW = 128  # the number of comparisons that are packed together; progress is shown after each window


class Native(Contender):
    """A native folder. Its scores have notes, for example about truncation and about candidates of equal ids."""

    kind = "native"
    has_weights = True

    def __init__(self, name: str, folder: str | Path, options: ModelOptions) -> None:
        super().__init__(name)
        self.source = str(folder)
        self._folder, self._options = folder, options
        self._blueprint: Blueprint | None = None

    def check(self) -> None:
        """Check config, tokenizer and encoder of the folder; it raises the errors of :func:`checkpoint_blueprint`."""
        self._blueprint = checkpoint_blueprint(self._folder)
        self.facts |= {"encoder_hash": self._blueprint.encoder.hash, **self._options.placement(own=True)}

    def load(self) -> ComparisonScorer:
        """The model with its weights."""
        placement = self._options.placement(own=True)
        blueprint = self._blueprint or checkpoint_blueprint(self._folder)
        model = RewardModel.from_blueprint(blueprint, dtype=placement["dtype"], device=placement["device"])
        if model.untrained:
            self.warnings.append(untrained_warning(self.name, model.untrained))
        return NotingScorer(Scorer(model, row_tokens=self._options.row_tokens, window=_WINDOW))

    def release(self) -> None:
        """Free the model's memory."""
        free_memory()


class NotingScorer:
    """A :class:`Scorer` whose scores have notes."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """See :meth:`Scorer.reward_comparisons`."""
        for rewards in self._scorer.reward_comparisons(comparisons):
            tokens = [(reward.n_tokens, reward.cut) for reward in rewards]
            yield NotedScores([reward.reward for reward in rewards], [reward.notes for reward in rewards], tokens)


def free_memory() -> None:
    """Free the memory of models without references, because the next model may need it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
