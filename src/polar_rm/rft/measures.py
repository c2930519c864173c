"""Cheap measures of texts and rewards, which show how a policy changes while its reward rises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, pstdev

from polar_rm.records import words

_NGRAM = 4


def repetition(text: str) -> float:
    """The share of a text's word 4-grams that occurred before in it (seq-rep-4, Welleck et al. 2020); 0 without any 4-gram."""
    tokens = words(text)
    grams = [tuple(tokens[i : i + _NGRAM]) for i in range(len(tokens) - _NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def likeness(text: str, reference: str) -> float:
    """The F1 of the words that a text shares with a reference (Rajpurkar et al. 2016), 0 to 1; 1 for two texts without words."""
    first, second = Counter(words(text)), Counter(words(reference))
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 1.0


def group_std(rewards: Sequence[float], groups: Sequence[Sequence[int]]) -> float | None:
    """The standard deviation of the rewards within groups, a mean over groups of two and more; None without such a group.

    groups: indices of the rewards of one prompt. GRPO and RLOO learn from differences within groups alone.
    """
    spreads = [pstdev(rewards[index] for index in group) for group in groups if len(group) > 1]
    return fmean(spreads) if spreads else None
