"""Scores many items: one reward for each item, in input order and in constant memory.

Items of one window that share prompt, reference and wrapper become one prefix tree, so that their common prefix is computed
once. Trees of all lengths are packed without padding into rows of at most a given number of tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from polar_rm.attention.prefixes import PrefixStore
from polar_rm.common.iteration import windows
from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import PolarError, ScoreError
from polar_rm.model.packing import PackedRow, first_fit, pack, pack_live
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import Comparison, InvalidRecord, Reference, ScoreItem, Text, Wrapper, group_items, one_reference
from polar_rm.rewards.anchors import NO_ANCHOR, AnchoredItems, has_anchor
from polar_rm.rewards.combining import Combine, ReferencedItems
from polar_rm.rewards.outcomes import Reward, Unread
from polar_rm.rewards.scale import Scale
from polar_rm.rewards.turns import turns_of
from polar_rm.rewards.uncertainty import Measured

T = TypeVar("T")
Scored = TypeVar("Scored", float, Measured)

WINDOW = 1024
"""Items that are grouped together by default; see :class:`Scorer`."""

# The largest row on a CPU, unless one tree is longer. Larger rows are not faster there, because values fall out of the cache.
_CPU_ROW_TOKENS = 2048
# On a CPU each row ends with a tree of this many scores. Matrix products of fewer than eight rows round differently from larger
# ones. Without the filler, the number of an item's neighbours would determine its rounding: in the last layer, which is computed
# only where scores are read, and in the last chunk of a row.
_FILLER_BRANCHES = 8


class Scorer:
    """Scores streams of items with one model.

    row_tokens: maximum number of tokens of one row, which bounds memory; longer trees are split. window: number of items that are
    grouped together. It bounds the memory for texts, and two items share a prefix only within a window. scale: the scale of the
    model's rewards from its folder, or a function that loads it when it is needed. It gives anchored rewards a probability and a
    deviation. prefixes: keeps computed prefixes between calls, on CPUs only; the model's weights must then not change.

    noted: the number of items and comparisons so far with each note (see :data:`polar_rm.rewards.outcomes.Note`); ``tied`` counts
    comparisons with candidates of equal ids. unread: what truncation removed so far.
    """

    def __init__(
        self,
        model: RewardModel,
        *,
        row_tokens: int = 8192,
        window: int = WINDOW,
        scale: Scale | Callable[[], Scale] | None = None,
        prefixes: PrefixStore | None = None,
    ) -> None:
        self.model = model
        self.prefixes = prefixes if model.device.type == "cpu" else None
        self._scale = scale or Scale()
        self.row_tokens = row_tokens
        self.window = window
        self.noted: Counter[str] = Counter()
        self.unread = Unread()
        encoder = model.encoder
        self._filler = PrefixTree([encoder.separator_id], [[encoder.reward_id]] * _FILLER_BRANCHES, (0,) * _FILLER_BRANCHES)
        self._max_positions = getattr(model.backbone.config, "max_position_embeddings", None)

    @property
    def scale(self) -> Scale:
        """The scale of this model's rewards."""
        if not isinstance(self._scale, Scale):
            self._scale = self._scale()
        return self._scale

    def score(self, items: Iterable[ScoreItem], *, anchored: bool = False, combine: Combine = "mean") -> Iterator[Reward]:
        """One reward for each item, in order.

        anchored: also score the references as candidates. Rewards then have an anchor, and a probability and a deviation if
        ``scale`` supports them. This costs one more candidate for each prompt and reference. combine: how rewards under several
        references become one; ``best`` scores the references, too.

        Raises:
            ScoreError: an item's score is not finite; the message names the item. A failure never gets a score of 0 or None.
            PolarError: with ``anchored`` or ``best``, an item has an empty reference.
        """
        number = 1
        for window in windows(items, self.window):
            for reward in self.score_window(window, anchored=anchored, combine=combine, first=number):
                check_finite(reward, f"item {number}")
                number += 1
                yield reward

    def score_outputs(
        self, *, prompt: Text, reference: Reference, outputs: Sequence[Text], wrapper: Wrapper = "sft"
    ) -> list[float]:
        """One raw reward for each output. Only differences between rewards under one reference are meaningful.

        Raises:
            ScoreError: a score is not finite.
        """
        return [reward.reward for reward in self.score([ScoreItem(prompt, reference, output, wrapper) for output in outputs])]

    def score_window(
        self, window: Sequence[ScoreItem], *, anchored: bool = False, combine: Combine = "mean", first: int = 1
    ) -> list[Reward]:
        """The rewards of one window's items, in order, finite or not. The grouping does not depend on other windows.

        anchored, combine: see :meth:`score`. first: number of the first item, for error messages.
        """
        plan = ReferencedItems.of(window)
        if anchored or combine == "best":
            for number, item in enumerate(window, first):
                if not has_anchor(item):
                    raise PolarError(f"item {number}: {NO_ANCHOR}")
            rewards = self._anchored(plan.to_score)
        else:
            rewards = [reward for reward, _ in self._by_item(plan.to_score, self.score_trees)]
        if not plan.is_plain(combine):
            rewards = [each for each in plan.outcomes(rewards, combine, self.scale) if isinstance(each, Reward)]
        self._note(rewards)
        return rewards

    def score_turns(self, items: Iterable[ScoreItem]) -> Iterator[list[Reward]]:
        """For each item a reward at the end of every turn of the assistant in its output, in order, all in one pass.

        A turn's reward is that of the output up to and with this turn, scored alone: the last is that of the whole output. An
        output that is a string is one turn. What comes behind the assistant's last turn is not scored.

        Raises:
            ScoreError: a score is not finite; the message names item and turn.
            PolarError: an output has no turn of the assistant, or an item has several references.
        """
        number = 1
        for window in windows(items, self.window):
            for rewards in self.score_turns_window(window, first=number):
                for turn, reward in enumerate(rewards, 1):
                    check_finite(reward, f"item {number}, turn {turn}")
                yield rewards
                number += 1

    def score_turns_window(self, window: Sequence[ScoreItem], *, first: int = 1) -> list[list[Reward]]:
        """The rewards of all turns of one window's items, finite or not. first: number of the first item, for error messages."""
        turns = [_turns_of(item, number) for number, item in enumerate(window, first)]
        parts = [replace(item, output=output) for item, outputs in zip(window, turns, strict=True) for output in outputs]
        ends = list(accumulate(map(len, turns)))
        # Each conversation is a tree of its own: what several share is less than what their turns share.
        groups = [list(range(end - len(outputs), end)) for outputs, end in zip(turns, ends, strict=True)]
        scored = self._by_item(parts, lambda trees: self.score_trees([tree.nested() for tree in trees]), groups)
        rewards = [[scored[index][0] for index in group] for group in groups]
        self._note(of_item[-1] for of_item in rewards)
        return rewards

    def _note(self, rewards: Iterable[Reward]) -> None:
        """Count the notes of items and what truncation removed from them."""
        for reward in rewards:
            self.noted.update(reward.notes)
            self.unread.add(reward.n_tokens, reward.cut)

    def measure_window(self, window: Sequence[ScoreItem]) -> tuple[list[Reward], NDArray[np.float32]]:
        """The rewards as in :meth:`score_window`, and the inputs of the head: float32 [n_items, hidden]."""
        measured = self._by_item(window, self.measure_trees)
        features = [feature for _, (_, feature) in measured] or [np.empty((0, len(self.model.head)), np.float32)]
        return [reward for reward, _ in measured], np.vstack(features)

    def _anchored(self, window: Sequence[ScoreItem]) -> list[Reward]:
        plan = AnchoredItems.of(window)
        features = None
        if self.scale.uncertainty:
            rewards, features = self.measure_window(plan.to_score)
        else:
            rewards = [reward for reward, _ in self._by_item(plan.to_score, self.score_trees)]
        outcomes = plan.outcomes(rewards, self.scale, features)
        return [outcome for outcome in outcomes if isinstance(outcome, Reward)]

    def _by_item(
        self,
        window: Sequence[ScoreItem],
        score: Callable[[Sequence[PrefixTree]], list[list[Scored]]],
        groups: Sequence[list[int]] | None = None,
    ) -> list[tuple[Reward, Scored]]:
        """The reward of every item, in order, with the result of ``score`` for it: a number, or a number and features.

        groups: indices of the items of each tree; by default those with one prompt and reference.
        """
        trees, indices_of_trees = [], []
        for indices in group_items(window) if groups is None else groups:
            first = window[indices[0]]
            outputs = [window[i].output for i in indices]
            for part, tree in self.model.encoder.encode_outputs(first.prompt, one_reference(first), outputs, first.wrapper):
                trees.append(tree)
                indices_of_trees.append([indices[i] for i in part])
        by_index: dict[int, tuple[Reward, Scored]] = {}
        for tree, indices, scores in zip(trees, indices_of_trees, score(trees), strict=True):
            for branch, index in enumerate(indices):
                scored = scores[branch]
                reward = scored[0] if isinstance(scored, tuple) else scored
                by_index[index] = Reward.of(reward, tree, branch, self._max_positions), scored
        return [by_index[index] for index in range(len(window))]

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """One list of raw rewards for each comparison, see :meth:`reward_comparisons`."""
        for rewards in self.reward_comparisons(comparisons):
            yield [reward.reward for reward in rewards]

    def reward_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[Reward]]:
        """One reward for each candidate of every comparison.

        Comparisons are encoded exactly as in training: all candidates share one truncation of the prompt. Candidates of equal ids
        have the note ``tied``.

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
                distinct, groups = tree.distinct()
                if distinct is not tree:
                    for index in (index for group in groups if len(group) > 1 for index in group):
                        rewards[index] = replace(rewards[index], notes=(*rewards[index].notes, "tied"))
                self.noted.update({note for reward in rewards for note in reward.notes})
                for reward in rewards:
                    self.unread.add(reward.n_tokens, reward.cut)
                yield rewards

    def score_trees(self, trees: Sequence[PrefixTree]) -> list[list[float]]:
        """Raw scores of every tree's candidates, finite or not. Trees longer than a row are split, with their prefix repeated.

        Candidates of equal ids are scored once: two scores would differ by rounding, and rounding would decide a tie. The model
        runs in evaluation mode, and its former mode is restored.
        """
        return self._by_branch(trees, lambda row: self.model(row).tolist())

    def measure_trees(self, trees: Sequence[PrefixTree]) -> list[list[Measured]]:
        """The same scores, each with the input of the head."""
        return self._by_branch(trees, self._measure)

    def _measure(self, row: PackedRow) -> list[Measured]:
        features = self.model.features(row)
        return list(zip(self.model.scores(features).tolist(), features.cpu().numpy(), strict=True))

    @torch.inference_mode()
    def _by_branch(self, trees: Sequence[PrefixTree], compute: Callable[[PackedRow], list[T]]) -> list[list[T]]:
        """The results of ``compute`` for all candidates, by tree and branch."""
        results: list[dict[int, T]] = [{} for _ in trees]
        parts = []
        for index, tree in enumerate(trees):
            distinct, groups = tree.distinct()
            parts += [(index, [groups[i] for i in part], subtree) for part, subtree in distinct.split(self.row_tokens)]
        row_tokens = min(self.row_tokens, _CPU_ROW_TOKENS) if self.model.device.type == "cpu" else self.row_tokens
        filler = [self._filler] if self.model.device.type == "cpu" else []
        with _in_inference(self.model):
            for row in first_fit([self._to_compute(subtree) for _, _, subtree in parts], row_tokens):
                flat = iter(self._compute(compute, [*(parts[i][2] for i in row), *filler]))
                for i in row:
                    index, part, _ = parts[i]
                    for group in part:
                        result = next(flat)
                        for candidate in group:
                            results[index][candidate] = result
        return [[by_branch[branch] for branch in range(len(by_branch))] for by_branch in results]

    def _to_compute(self, tree: PrefixTree) -> int:
        return tree.n_tokens - (self.prefixes.n_kept(tree.prefix) if self.prefixes is not None else 0)

    def _compute(self, compute: Callable[[PackedRow], list[T]], trees: Sequence[PrefixTree]) -> list[T]:
        """The results of a row, whose new prefixes are kept if there is a store."""
        if self.prefixes is None:
            return compute(pack(trees).to(self.model.device))
        row = pack_live(trees, self.prefixes)
        results = compute(row)
        for _, prefix in row.prefixes.new if row.prefixes else ():
            self.prefixes.add(prefix)
        return results


def _turns_of(item: ScoreItem, number: int) -> list[Text]:
    try:
        return turns_of(item.output)
    except InvalidRecord as error:
        raise PolarError(f"item {number}: {error}") from None


@contextmanager
def _in_inference(model: RewardModel) -> Iterator[None]:
    """Set all modules to evaluation mode, and restore their modes afterwards: a model may be scored during its training."""
    training = [module for module in model.modules() if module.training]
    try:
        if training:
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def check_finite(reward: Reward, name: str) -> None:
    """Check that a reward and its anchor are finite. name: the item's name for the message.

    Raises:
        ScoreError: one of them is not finite.
    """
    if not math.isfinite(reward.reward):
        raise ScoreError(f"{name} has the score {reward.reward}")
    if reward.anchor is not None and not math.isfinite(reward.anchor):
        raise ScoreError(f"{name}: the reference itself has the score {reward.anchor}")
