"""Many items in, one reward per item out, in input order and in constant memory.

Items of one window that share prompt, reference and wrapper become one prefix tree, so that their common prefix is computed
once; trees of all lengths are packed into rows of a token budget without padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from polar_rm.common.iteration import windows
from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import ScoreError
from polar_rm.model.packing import first_fit, pack
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import Comparison, ScoreItem, group_items

# On a CPU only a tree that is longer makes a longer row: filling them gains nothing there, and values fall out of the cache.
_CPU_ROW_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Scored:
    """reward: raw and unbounded. n_tokens: of the item's whole sequence. truncated: whether any of its texts was cut."""

    reward: float
    n_tokens: int
    truncated: bool


class Scorer:
    """Scores streams with one model.

    token_budget: most tokens of one row, which bounds memory; longer trees are split. window: items that are looked at together;
    it bounds both the memory for texts and how far apart two items may stand to share a prefix.

    cut, alike: comparisons scored so far of which a text was cut to the encoder's limits, and those with candidates of equal ids.
    """

    def __init__(self, model: RewardModel, *, token_budget: int = 8192, window: int = 1024) -> None:
        self.model = model.eval()
        self.token_budget = token_budget
        self.window = window
        self.cut = self.alike = 0

    def score(self, items: Iterable[ScoreItem]) -> Iterator[Scored]:
        """One :class:`Scored` per item, in order.

        Raises:
            ScoreError: an item's score is not finite; the message says which. There is no score of 0 or None for a failure.
        """
        scores = (scored for window in windows(items, self.window) for scored in self.score_window(window))
        for number, scored in enumerate(scores, 1):
            check_finite(scored, f"item {number}")
            yield scored

    def score_window(self, window: Sequence[ScoreItem]) -> list[Scored]:
        """The items of one window, in order, finite or not; which ones share a prefix does not depend on other windows."""
        trees, places = [], []
        for indices in group_items(window):
            first = window[indices[0]]
            outputs = [window[i].output for i in indices]
            for part, tree in self.model.encoder.encode_outputs(first.prompt, first.reference, outputs, first.wrapper):
                trees.append(tree)
                places.append([indices[i] for i in part])
        results: dict[int, Scored] = {}
        for tree, place, rewards in zip(trees, places, self.score_trees(trees), strict=True):
            cut = tree.truncation
            for branch, index in enumerate(place):
                truncated = bool(cut.prompt or cut.reference or cut.candidates[branch])
                results[index] = Scored(rewards[branch], len(tree.prefix) + len(tree.branches[branch]), truncated)
        return [results[index] for index in range(len(window))]

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """One list of rewards per comparison, encoded exactly as in training (all candidates share one prompt cut)."""
        done = 0
        for window in windows(comparisons, self.window):
            trees = self.model.encoder.encode_many(window)
            for tree, rewards in zip(trees, self.score_trees(trees), strict=True):
                done += 1
                self.cut += bool(tree.truncation)
                self.alike += tree.distinct()[0] is not tree
                if not all(map(math.isfinite, rewards)):
                    raise ScoreError(f"comparison {done} has the scores {rewards}")
                yield rewards

    @torch.inference_mode()
    def score_trees(self, trees: Sequence[PrefixTree]) -> list[list[float]]:
        """Raw scores of every tree's candidates, finite or not. Trees beyond the budget are split, their prefix repeated.

        Candidates of equal ids are scored once: apart, they would differ by rounding, and a tie would be won or lost by it."""
        scores = [[math.nan] * len(tree.branches) for tree in trees]
        parts = []
        for index, tree in enumerate(trees):
            once, candidates = tree.distinct()
            parts += [(index, [candidates[i] for i in part], subtree) for part, subtree in once.split(self.token_budget)]
        row_tokens = min(self.token_budget, _CPU_ROW_TOKENS) if self.model.device.type == "cpu" else self.token_budget
        for row in first_fit([subtree.n_tokens for _, _, subtree in parts], row_tokens):
            packed = pack([parts[i][2] for i in row]).to(self.model.device)
            flat = iter(self.model(packed).tolist())
            for i in row:
                index, part, _ = parts[i]
                for alike, score in zip(part, flat, strict=False):
                    for candidate in alike:
                        scores[index][candidate] = score
        return scores


def check_finite(scored: Scored, where: str) -> None:
    if not math.isfinite(scored.reward):
        raise ScoreError(f"{where} has the score {scored.reward}")
