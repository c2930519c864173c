"""The streams of an audit: unchanged pairs, pairs with other references or prompts or without markdown, and altered answers."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from polar_rm.audit import texts
from polar_rm.evaluation.contenders.base import Contender
from polar_rm.evaluation.references import ReferenceMode, apply_reference_protocol, prompt_key, swapped_candidate, with_others
from polar_rm.evaluation.statistics import Ints
from polar_rm.evaluation.survey import Survey, survey
from polar_rm.records import Comparison, Text, flatten, is_copy, one_reference

Bools = NDArray[np.bool_]
Read = Callable[[], Iterable[Comparison]]

ALTERED = ("better", "worse", "halved", "looped", "empty", "other_answer", "copied", "noise", "scrambled", "pasted", "injected")
"""The candidates of an altered comparison: the best answer, a worst answer, and nine answers that should lose.

All candidates share one prompt and reference, so they share a prefix.
"""


@dataclass(frozen=True, slots=True)
class FirstPass:
    """The results of the first pass.

    survey: pairs and checks. prompts: the prompt of every comparison, int64 [n]. lengths: characters of every candidate, int64.
    has_markdown: whether an answer of the comparison has markdown, bool [n]. usable: whether each altered answer is usable, bool
    [n, len(ALTERED)]; all are false for a comparison without an ordered pair.
    """

    survey: Survey
    prompts: Ints
    lengths: Ints
    has_markdown: Bools
    usable: Bools


class Streams:
    """All streams of an audit. takes_reference: whether the contender gets references; otherwise all references are empty."""

    def __init__(self, comparisons: Iterable[Comparison], *, takes_reference: bool, seed: int = 0) -> None:
        self._comparisons, self.takes_reference, self._seed = comparisons, takes_reference, seed

    def first_pass(self, contender: Contender) -> FirstPass:
        """Run the first pass, before anything is scored. The contender is fitted to the comparisons, too.

        Raises:
            PolarError: the errors of :func:`survey`, or all comparisons have one prompt.
        """
        observer = _Observer(self)
        checked = survey(
            observer,
            by=None,
            reference="given" if self.takes_reference else "empty",
            contenders=[contender],
            seed=self._seed,
        )
        return observer.finish(checked)

    def by_name(self) -> dict[str, Read]:
        """The function that reads each stream. Only the candidates of ``altered`` differ from those of the data."""
        modes: tuple[ReferenceMode, ...] = ("empty", "shuffled", "swapped") if self.takes_reference else ()
        others: dict[str, Read] = {mode: partial(self._with_reference, mode) for mode in modes}
        return {"given": self.base, **others, "plain": self.plain, "other_prompt": self.other_prompt, "altered": self.altered}

    def base(self) -> Iterator[Comparison]:
        """The unchanged comparisons; with empty references if the contender takes none."""
        return self._with_reference("given" if self.takes_reference else "empty")

    def _with_reference(self, mode: ReferenceMode) -> Iterator[Comparison]:
        return apply_reference_protocol(self._comparisons, mode, seed=self._seed)

    def plain(self) -> Iterator[Comparison]:
        """Answers and references without markdown."""
        for comparison in self.base():
            candidates = tuple(map(texts.without_markdown, comparison.candidates))
            yield replace(comparison, candidates=candidates, reference=texts.without_markdown(one_reference(comparison)))

    def other_prompt(self) -> Iterator[Comparison]:
        """Every comparison with the prompt of another comparison."""
        for comparison, other in with_others(self.base(), seed=self._seed):
            yield replace(comparison, prompt=other.prompt)

    def altered(self) -> Iterator[Comparison]:
        """Comparisons of the answers of :data:`ALTERED`, in this order."""
        for number, (comparison, other) in enumerate(with_others(self.base(), seed=self._seed), 1):
            candidates, _ = self.alter(comparison, other, number)
            yield replace(comparison, candidates=candidates, ranks=(0, *[1] * (len(ALTERED) - 1)))

    def alter(self, comparison: Comparison, other: Comparison, number: int) -> tuple[tuple[Text, ...], list[bool]]:
        """The answers of :data:`ALTERED`, and whether each is usable; an unusable one is replaced by the better answer."""
        better, foreign = best_answer(comparison), best_answer(other)
        worse = comparison.candidates[swapped_candidate(comparison, number, seed=self._seed)]
        reference = one_reference(comparison)
        noise = texts.scrambled(foreign, f"noise {self._seed} {number}")
        mixed = texts.scrambled(reference, f"reference {self._seed} {number}")
        is_long, has_reference = texts.word_count(better) >= texts.MIN_WORDS, bool(flatten(reference).strip())
        is_long_reference = texts.word_count(reference) >= texts.MIN_WORDS
        answers: dict[str, tuple[Text, bool]] = {
            "better": (better, True),
            "worse": (worse, True),
            "halved": (texts.half(better), is_long),
            "looped": (texts.looped(better), is_long),
            "empty": (texts.with_last(better, lambda _: ""), bool(flatten(better).strip())),
            "other_answer": (foreign, not is_copy(flatten(better), flatten(foreign))),
            "copied": (reference, has_reference and not is_copy(flatten(reference), flatten(noise))),
            "noise": (noise, has_reference and bool(flatten(noise).strip())),
            "scrambled": (mixed, is_long_reference and mixed != reference),
            "pasted": (texts.pasted(worse, reference), is_long_reference),
            "injected": (texts.injected(worse), True),
        }
        ordered = bool(comparison.pairs())
        usable = [ordered and answers[name][1] for name in ALTERED]
        return tuple(answers[name][0] if use else better for name, use in zip(ALTERED, usable, strict=True)), usable

    def observed(self, observer: _Observer) -> Iterator[Comparison]:
        """The comparisons of the data; each is also added to ``observer``."""
        for number, (comparison, other) in enumerate(with_others(self._comparisons, seed=self._seed), 1):
            reference = comparison.reference if self.takes_reference else ""
            observer.add(replace(comparison, reference=reference or ""), other, number)
            yield comparison


def best_answer(comparison: Comparison) -> Text:
    """The first answer of the best rank."""
    return comparison.candidates[comparison.ranks.index(min(comparison.ranks))]


class _Observer:
    """An iterable of comparisons that can be read once, and that collects the values of :class:`FirstPass` meanwhile."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._prompts: dict[str, int] = {}
        self._prompt_of, self._lengths = array("q"), array("q")
        self._has_markdown, self._usable = array("b"), array("b")

    def __iter__(self) -> Iterator[Comparison]:
        return self._streams.observed(self)

    def add(self, comparison: Comparison, other: Comparison, number: int) -> None:
        self._prompt_of.append(self._prompts.setdefault(prompt_key(comparison), len(self._prompts)))
        self._lengths.extend(len(flatten(text)) for text in comparison.candidates)
        self._has_markdown.append(any(texts.without_markdown(text) != text for text in comparison.candidates))
        self._usable.extend(self._streams.alter(comparison, other, number)[1])

    def finish(self, checked: Survey) -> FirstPass:
        usable = np.array(self._usable, np.bool_).reshape(-1, len(ALTERED))
        prompts, lengths = np.array(self._prompt_of, np.int64), np.array(self._lengths, np.int64)
        return FirstPass(checked, prompts, lengths, np.array(self._has_markdown, np.bool_), usable)
