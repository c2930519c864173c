"""Many items in, one reward per item out, in input order and in constant memory.

Items of one window that share prompt, reference and wrapper become one prefix tree, so that their common prefix is computed
once; trees of all lengths are packed into rows of a token budget without padding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from polar_rm.common.iteration import windows
from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import ScoreError
from polar_rm.model.packing import first_fit, pack
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import Comparison, ScoreItem, Text, Wrapper, group_items
from polar_rm.rewards.outcomes import Reward

# On a CPU only a tree that is longer makes a longer row: filling them gains nothing there, and values fall out of the cache.
_CPU_ROW_TOKENS = 2048
# On a CPU a tree of so many scores ends each row. Matrix products of fewer than eight rows round differently from larger ones,
# and without it the number of an item's neighbours would decide which of the two it meets: in the last layer, which runs where
# scores are read, and in the last chunk of a row.
_FILLER_BRANCHES = 8


class Scorer:
    """Scores streams with one model.

    row_tokens: most tokens of one row, which bounds memory; longer trees are split. window: items that are looked at together;
    it bounds both the memory for texts and how far apart two items may stand to share a prefix.

    noted: how many items and comparisons so far had each note (see :data:`polar_rm.rewards.outcomes.Note`), and under ``tied``
    comparisons with candidates of equal ids.
    """

    def __init__(self, model: RewardModel, *, row_tokens: int = 8192, window: int = 1024) -> None:
        self.model = model
        self.row_tokens = row_tokens
        self.window = window
        self.noted: Counter[str] = Counter()
        encoder = model.encoder
        self._filler = PrefixTree([encoder.separator_id], [[encoder.reward_id]] * _FILLER_BRANCHES, (0,) * _FILLER_BRANCHES)
        self._max_positions = getattr(model.backbone.config, "max_position_embeddings", None)

    def score(self, items: Iterable[ScoreItem]) -> Iterator[Reward]:
        """One reward per item, in order.

        Raises:
            ScoreError: an item's score is not finite; the message says which. There is no score of 0 or None for a failure.
        """
        rewards = (reward for window in windows(items, self.window) for reward in self.score_window(window))
        for number, reward in enumerate(rewards, 1):
            check_finite(reward, f"item {number}")
            yield reward

    def score_outputs(self, *, prompt: Text, reference: Text, outputs: Sequence[Text], wrapper: Wrapper = "sft") -> list[float]:
        """One raw reward per output. Only differences under one reference mean something.

        Raises:
            ScoreError: a score is not finite.
        """
        return [reward.reward for reward in self.score([ScoreItem(prompt, reference, output, wrapper) for output in outputs])]

    def score_window(self, window: Sequence[ScoreItem]) -> list[Reward]:
        """The items of one window, in order, finite or not; which ones share a prefix does not depend on other windows."""
        trees, indices_of_trees = [], []
        for indices in group_items(window):
            first = window[indices[0]]
            outputs = [window[i].output for i in indices]
            for part, tree in self.model.encoder.encode_outputs(first.prompt, first.reference, outputs, first.wrapper):
                trees.append(tree)
                indices_of_trees.append([indices[i] for i in part])
        rewards: dict[int, Reward] = {}
        for tree, indices, scores in zip(trees, indices_of_trees, self.score_trees(trees), strict=True):
            for branch, index in enumerate(indices):
                rewards[index] = Reward.of(scores[branch], tree, branch, self._max_positions)
        self.noted.update(note for reward in rewards.values() for note in reward.notes)
        return [rewards[index] for index in range(len(window))]

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """One list of raw rewards per comparison, see :meth:`reward_comparisons`."""
        for rewards in self.reward_comparisons(comparisons):
            yield [reward.reward for reward in rewards]

    def reward_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[Reward]]:
        """One reward per candidate of every comparison, encoded exactly as in training (all candidates share one prompt cut).

        Candidates of equal ids have the note ``tied``.

        Raises:
            ScoreError: a score is not finite.
        """
        done = 0
        for window in windows(comparisons, self.window):
            trees = self.model.encoder.encode_many(window)
            for tree, scores in zip(trees, self.score_trees(trees), strict=True):
                done += 1
                if not all(map(math.isfinite, scores)):
                    raise ScoreError(f"comparison {done} has the scores {scores}")
                rewards = [Reward.of(score, tree, branch, self._max_positions) for branch, score in enumerate(scores)]
                if (groups := tree.distinct())[0] is not tree:
                    for index in (index for equal in groups[1] if len(equal) > 1 for index in equal):
                        rewards[index] = replace(rewards[index], notes=(*rewards[index].notes, "tied"))
                self.noted.update({note for reward in rewards for note in reward.notes})
                yield rewards

    @torch.inference_mode()
    def score_trees(self, trees: Sequence[PrefixTree]) -> list[list[float]]:
        """Raw scores of every tree's candidates, finite or not. Trees beyond the budget are split, their prefix repeated.

        Candidates of equal ids are scored once: apart, they would differ by rounding, and a tie would be won or lost by it. The
        model computes without dropout, and is left in the mode that it had.
        """
        scores = [[math.nan] * len(tree.branches) for tree in trees]
        parts = []
        for index, tree in enumerate(trees):
            once, candidates = tree.distinct()
            parts += [(index, [candidates[i] for i in part], subtree) for part, subtree in once.split(self.row_tokens)]
        row_tokens = min(self.row_tokens, _CPU_ROW_TOKENS) if self.model.device.type == "cpu" else self.row_tokens
        filler = [self._filler] if self.model.device.type == "cpu" else []
        with _in_inference(self.model):
            for row in first_fit([subtree.n_tokens for _, _, subtree in parts], row_tokens):
                packed = pack([*(parts[i][2] for i in row), *filler]).to(self.model.device)
                flat = iter(self.model(packed).tolist())
                for i in row:
                    index, part, _ = parts[i]
                    for equal in part:
                        score = next(flat)
                        for candidate in equal:
                            scores[index][candidate] = score
        return scores


@contextmanager
def _in_inference(model: RewardModel) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards in its own: a model may be scored while it is trained."""
    training = [module for module in model.modules() if module.training]
    try:
        if training:
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def check_finite(reward: Reward, name: str) -> None:
    """Raises ScoreError if there is no finite reward. name: of the item, for the message."""
    if not math.isfinite(reward.reward):
        raise ScoreError(f"{name} has the score {reward.reward}")
