"""The pairs of a calibration. They are checked before a model is loaded, then scored with their references as candidates."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polar_rm.calibration.laplace import Features
from polar_rm.common.iteration import windows
from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.evaluation.references import MissingReferences, prompt_key
from polar_rm.evaluation.statistics import Floats, Ints
from polar_rm.records import Comparison, items_of
from polar_rm.rewards.anchors import AnchoredItems, has_anchor
from polar_rm.scoring.scorer import Scorer, check_finite

# The number of comparisons that are scored together.
_WINDOW = 256


@dataclass(frozen=True, slots=True)
class Survey:
    """The results of the first pass: numbers of comparisons, of ordered pairs, of prompts, and of comparisons without an anchor
    (those with an empty reference)."""

    n_comparisons: int
    n_pairs: int
    n_prompts: int
    n_without_anchor: int


def survey(comparisons: Iterable[Comparison]) -> Survey:
    """Check that the comparisons can calibrate a model.

    Raises:
        PolarError: there are no comparisons, no ordered pair, pairs of one prompt only, or missing references; the message has
            their count and names the first one.
    """
    count = n_pairs = n_without = 0
    missing = MissingReferences()
    prompts: set[str] = set()
    for count, comparison in enumerate(comparisons, 1):
        pairs = len(comparison.pairs())
        n_pairs += pairs
        if comparison.reference is None:
            missing.add(count, comparison)
        elif pairs:
            prompts.add(prompt_key(comparison))
            n_without += not has_anchor(items_of(comparison)[0])
    if missing.count:
        raise PolarError(f'{missing.text(count)}; an empty one ("") calibrates a model that scores without references')
    if not count:
        raise PolarError("there are no comparisons to calibrate with")
    if not n_pairs:
        raise PolarError(
            f"none of {count:,} comparisons has two candidates of different rank: there is no pair to calibrate with"
        )
    if len(prompts) < 2:
        raise PolarError("all pairs belong to one prompt; calibration needs at least two prompts, and better some hundred")
    return Survey(count, n_pairs, len(prompts), n_without)


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """The data of a calibration.

    raw: rewards of all candidates, float64 [n_candidates]. anchored: anchored rewards of those with a reference, float64 [at most
    n_candidates]. features: features of the candidates, and the pairs. prompts: the prompt of each pair, int64 [n_pairs],
    numbered from 0 in order of occurrence.
    """

    raw: Floats
    anchored: Floats
    features: Features
    prompts: Ints

    @property
    def differences(self) -> Floats:
        """The reward of the better candidate minus the reward of the worse one, float64 [n_pairs]."""
        return self.raw[self.features.better] - self.raw[self.features.worse]


def score_pairs(
    scorer: Scorer, comparisons: Iterable[Comparison], *, total: int | None = None, progress: Progress = silent
) -> ScoredPairs:
    """Score all candidates as items, as ``polar score`` and the server do.

    Comparisons without a pair are left out. progress: called with the numbers of comparisons that are done and of all. Memory:
    the features of all candidates, 4 bytes for each number.

    Raises:
        ScoreError: a score is not finite; the message names the comparison.
    """
    raw, anchored, features = array("d"), array("d"), []
    better, worse, prompts = array("q"), array("q"), array("q")
    codes: dict[str, int] = {}
    done = 0
    for window in windows(comparisons, _WINDOW):
        usable = [(done + number, comparison) for number, comparison in enumerate(window, 1) if comparison.pairs()]
        start = len(raw)
        for _, comparison in usable:
            prompt = codes.setdefault(prompt_key(comparison), len(codes))
            for first, second in comparison.pairs():
                better.append(start + first)
                worse.append(start + second)
                prompts.append(prompt)
            start += len(comparison.candidates)
        window_raw, window_anchored, window_features = _score(scorer, usable)
        raw.extend(window_raw)
        anchored.extend(window_anchored)
        features.append(window_features)
        done += len(window)
        progress("calibrate", done, total)
    head = scorer.model.head.astype(np.float64)
    pairs = Features(np.concatenate(features), np.array(better, np.int64), np.array(worse, np.int64), head)
    return ScoredPairs(np.array(raw, np.float64), np.array(anchored, np.float64), pairs, np.array(prompts, np.int64))


def _score(scorer: Scorer, numbered: Sequence[tuple[int, Comparison]]) -> tuple[list[float], list[float], NDArray[np.float32]]:
    """Raw rewards of all candidates, anchored rewards of those with an anchor, and features of all, [n_candidates, hidden]."""
    named = [(f"comparison {number}", item) for number, comparison in numbered for item in items_of(comparison)]
    items = [item for _, item in named]
    plan = AnchoredItems.of(items)
    anchors = plan.to_score[len(plan.anchorable) :]
    rewards, features = scorer.measure_window([*items, *anchors])
    for (name, _), reward in zip(named, rewards, strict=False):
        check_finite(reward, name)
    anchored = []
    for index, anchor in zip(plan.anchorable, plan.anchor_of, strict=True):
        anchor_reward = rewards[len(items) + anchor - len(plan.anchorable)]
        check_finite(anchor_reward, f"the reference of {named[index][0]} as a candidate")
        anchored.append(rewards[index].reward - anchor_reward.reward)
    return [reward.reward for reward in rewards[: len(items)]], anchored, features[: len(items)]
