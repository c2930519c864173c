"""Counts that tasks collect and the report sums."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from polar_rm.encoding.tokenizers import whole_tokenizer

Counts = dict[str, dict[str, int]]

TEXT_COUNTS = ("texts", "characters", "words", "tokens", "reported_tokens")
"""The counts of every policy's texts; ``reported_tokens`` were counted by the policy's own tokenizer."""

EXAMPLES = 3  # of each cleaning rule
_CONTEXT = 160  # characters before and after the first difference


class Example(TypedDict):
    """An example of a cleaning rule. key: a hash of the example. before, after: the text around the first difference."""

    key: str
    prompt_id: str
    policy: str
    before: str
    after: str


@dataclass
class Tally:
    """Counts and examples.

    counts: group -> name -> number. A policy's numbers are in the group ``policy:NAME``, its histogram of lengths in
    ``lengths:NAME``. examples: rule -> the examples with the smallest hashes, so that the choice does not depend on the order.
    """

    counts: Counts = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    def add(self, group: str, name: str, number: int = 1) -> None:
        """Add a number to a count."""
        values = self.counts.setdefault(group, {})
        values[name] = values.get(name, 0) + number

    def add_policy(self, policy: str, name: str, number: int = 1) -> None:
        """Add a number to a count of a policy."""
        self.add(f"policy:{policy}", name, number)

    def add_text(self, policy: str, size: Size, n_tokens: int | None) -> None:
        """Count a text that may enter comparisons. n_tokens: as the policy's own tokenizer counted them."""
        values = self.counts.setdefault(f"policy:{policy}", dict.fromkeys(TEXT_COUNTS, 0))
        for name, number in zip(TEXT_COUNTS, (1, *size, n_tokens or 0), strict=True):
            values[name] = values.get(name, 0) + number
        self.add(f"lengths:{policy}", str(length_bin(size[0])))

    def add_cleaning(self, before: str, after: str, removed: dict[str, int], prompt_id: str, policy: str) -> None:
        """Count what each rule removed from a text, in characters; a text that one rule alone changed may become an example."""
        for rule, characters in removed.items():
            self.add("cleaning", f"{rule}.texts")
            self.add("cleaning", f"{rule}.characters", characters)
            if len(removed) == 1:
                self.add_example(rule, prompt_id, policy, *excerpts(before, after))

    def add_example(self, rule: str, prompt_id: str, policy: str, before: str, after: str) -> None:
        """Keep an example if its hash is among the smallest of its rule."""
        examples = self.examples.setdefault(rule, [])
        example = {"prompt_id": prompt_id, "policy": policy, "before": before, "after": after}
        key = hashlib.blake2b(repr(example).encode(errors="backslashreplace"), digest_size=8).hexdigest()
        examples.append({"key": key, "prompt_id": prompt_id, "policy": policy, "before": before, "after": after})
        examples.sort(key=lambda each: each["key"])
        del examples[EXAMPLES:]


def merge_examples(results: Iterable[dict[str, list[Example]]]) -> dict[str, list[Example]]:
    """The examples of several tasks: of each rule those with the smallest hashes."""
    merged: dict[str, list[Example]] = {}
    for examples in results:
        for rule, each in examples.items():
            merged[rule] = sorted(merged.get(rule, []) + each, key=lambda one: one["key"])[:EXAMPLES]
    return merged


def sum_counts(tallies: Iterable[Counts]) -> Counts:
    """The sum of the counts of several tasks."""
    total = Tally()
    for counts in tallies:
        for group, values in counts.items():
            for name, number in values.items():
                total.add(group, name, number)
    return total.counts


@lru_cache(1 << 16)
def length_bin(characters: int) -> int:
    """The logarithmic bin of a length, with eight bins per factor of two: lengths of one bin differ by less than a tenth."""
    return round(8 * math.log2(1 + characters))


def length_of(number: float) -> float:
    """The length in the middle of a bin, in characters."""
    return 2 ** (number / 8) - 1


Size = tuple[int, int, int]
"""Characters, words, tokens (0 without a tokenizer)."""


class TextCounter:
    """Counts characters, words and, with a tokenizer, tokens. Counts are cached: many texts are in several comparisons."""

    def __init__(self, tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        self._cache: dict[str, Size] = {}

    @classmethod
    def load(cls, folder: Path | None) -> TextCounter:
        """A counter with the tokenizer (``tokenizer.json``) of a folder; None counts no tokens.

        Raises:
            PolarError: the folder has no valid tokenizer.
        """
        if folder is None:
            return cls()
        return cls(whole_tokenizer(folder))

    def __call__(self, text: str) -> Size:
        if text not in self._cache:
            tokens = len(self._tokenizer.encode(text, add_special_tokens=False).ids) if self._tokenizer else 0
            self._cache[text] = len(text), len(text.split()), tokens
        return self._cache[text]


def excerpts(before: str, after: str) -> tuple[str, str]:
    """Both texts around the first character in which they differ."""
    n_equal = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    start = max(0, n_equal - _CONTEXT)
    lead = "…" if start else ""
    end = n_equal + _CONTEXT
    first, second = (f"{lead}{text[start:end]}{'…' if len(text) > end else ''}" for text in (before, after))
    return first, second
