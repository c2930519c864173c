"""The probes: what each measures, on which pairs, and what its finding says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from polar_rm.audit.report import Finding, Verdict
from polar_rm.audit.sentences import SENTENCES
from polar_rm.audit.streams import ALTERED, Seen
from polar_rm.audit.thresholds import Thresholds
from polar_rm.evaluation.statistics import RESAMPLES, Floats, Interval, Ints, listed, statistic_interval

MATCHED = 0.1
"""Two answers are of one length if the logarithms of their characters differ by no more."""

_NO_SKILL = "it is not better than chance on these pairs, so that there is no skill to explain"
_NO_REFERENCE = "it takes no reference"


@dataclass(frozen=True, slots=True)
class Answers:
    """What a contender said. correct: by stream, 1 where the better answer scores higher, 0.5 for a tie, 0: float64 [n_pairs].
    altered: scores of :data:`ALTERED`, float64 [n_comparisons, len(ALTERED)]."""

    takes_reference: bool
    seen: Seen
    correct: Mapping[str, Floats]
    altered: Floats
    thresholds: Thresholds
    resamples: int = RESAMPLES
    seed: int = 0

    def margins(self, first: str, second: str) -> tuple[Floats, Ints]:
        """By how much one altered answer scores above another, and the comparisons in which both make sense."""
        columns = [ALTERED.index(name) for name in (first, second)]
        rows = np.flatnonzero(self.seen.usable[:, columns].all(axis=1))
        values: Floats = self.altered[rows, columns[0]] - self.altered[rows, columns[1]]
        return values, rows

    def wins(self, first: str, second: str) -> tuple[Floats, Ints]:
        """1 where one altered answer scores above another, 0.5 for a tie, 0; and the comparisons in which both make sense."""
        margins, rows = self.margins(first, second)
        values: Floats = (np.sign(margins) + 1) / 2
        return values, rows


@dataclass(frozen=True, slots=True)
class Measured:
    """A measure on some pairs; or why there is none. figures: what it is made of."""

    value: float | None = None
    ci95: Interval | None = None
    n_pairs: int = 0
    n_prompts: int = 0
    why: str = ""
    figures: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """name: of the threshold, too. measure: in words. at_most: the value should lie below the threshold. needs_reference: makes
    no sense without. is_noted: failing is a property, no failure, of who takes a reference."""

    name: str
    measure: str
    of: Callable[[Answers], Measured]
    at_most: bool = False
    needs_reference: bool = False
    is_noted: bool = False

    def find(self, answers: Answers) -> Finding:
        """Its finding on one contender."""
        missing = self.needs_reference and not answers.takes_reference
        measured = Measured(why=_NO_REFERENCE) if missing else self.of(answers)
        if not measured.why and measured.n_prompts < answers.thresholds.prompts:
            measured = Measured(
                n_pairs=measured.n_pairs, n_prompts=measured.n_prompts, why=f"only {measured.n_prompts} prompts have such pairs"
            )
        threshold = float(getattr(answers.thresholds, self.name))
        verdict = self._verdict(measured, threshold)
        if verdict == "failed" and self.is_noted and answers.takes_reference:
            verdict = "noted"
        words = SENTENCES[self.name]
        sentence = measured.why if verdict == "not applicable" else words["failed" if verdict == "noted" else verdict]
        return {
            "probe": self.name,
            "measure": self.measure,
            "value": measured.value,
            "ci95": listed(measured.ci95),
            "threshold": threshold,
            "side": "at most" if self.at_most else "at least",
            "n_pairs": measured.n_pairs,
            "n_prompts": measured.n_prompts,
            "verdict": verdict,
            "sentence": f"{self.name.replace('_', ' ')}: {sentence}{_numbers(measured)}",
            "figures": dict(measured.figures or {}),
        }

    def _verdict(self, measured: Measured, threshold: float) -> Verdict:
        if measured.why or measured.ci95 is None:
            return "not applicable"
        low, high = measured.ci95
        if self.at_most:
            low, high, threshold = -high, -low, -threshold
        return "failed" if high < threshold else "passed" if low >= threshold else "undecided"


def _numbers(measured: Measured) -> str:
    """Value and interval, and what they are made of."""
    if measured.value is None or measured.ci95 is None:
        return ""
    made = "".join(f"; {name.replace('_', ' ')} {value:.3f}" for name, value in (measured.figures or {}).items())
    return f" ({measured.value:+.3f} [{measured.ci95[0]:+.3f}, {measured.ci95[1]:+.3f}]{made})"


def _mean(answers: Answers, values: Floats, prompts: Ints, low: float = 0.0, **figures: float) -> Measured:
    """The mean of a value of every pair. low: the lowest that a pair can have; the highest is 1."""
    if not len(values):
        return Measured(why="no pair is of this kind")
    value, ci95 = statistic_interval(
        values[:, None],
        prompts,
        lambda means: means[:, 0],
        extremes=(low, 1.0),
        resamples=answers.resamples,
        seed=answers.seed,
    )
    return Measured(value, ci95, len(values), len(np.unique(prompts)), figures=figures)


def _accuracy(answers: Answers) -> Measured:
    return _mean(answers, answers.correct["given"], answers.seen.survey.pairs.prompts)


def _loss_of(stream: str, answers: Answers) -> Measured:
    """Accuracy minus that in another stream."""
    given, other = answers.correct["given"], answers.correct[stream]
    figures = {"accuracy": float(given.mean()), "then": float(other.mean())}
    return _mean(answers, given - other, answers.seen.survey.pairs.prompts, -1.0, **figures)


def _of_reference(stream: str) -> Callable[[Answers], Measured]:
    """The same, for who has room to be better by a reference."""

    def measure(answers: Answers) -> Measured:
        without = float(answers.correct["empty"].mean())
        if 1 - without < answers.thresholds.room:
            return Measured(why=f"it is right in {without:.3f} of the pairs without a reference: these pairs need none")
        return _loss_of(stream, answers)

    return measure


def _other_prompt(answers: Answers) -> Measured:
    return _loss_of("other_prompt", answers) if _has_skill(answers) else Measured(why=_NO_SKILL)


def _has_skill(answers: Answers, rows: Ints | None = None) -> bool:
    """Whether accuracy is above chance, by the interval."""
    rows = np.arange(len(answers.correct["given"])) if rows is None else rows
    ci95 = _mean(answers, answers.correct["given"][rows], answers.seen.survey.pairs.prompts[rows]).ci95
    return ci95 is not None and ci95[0] > 0.5


def _length(answers: Answers) -> Measured:
    """The share of the skill (accuracy - 0.5) that is left when the better answer is the longer one as often as the shorter.

    Pairs of one length count as they are. Of the others, those whose better answer is longer get together the weight of those
    whose better answer is shorter, so that length alone reaches 0.5 among them.
    """
    pairs, lengths, correct = answers.seen.survey.pairs, answers.seen.lengths, answers.correct["given"]
    ratio = np.log1p(lengths[pairs.better]) - np.log1p(lengths[pairs.worse])
    cells = {"matched": np.abs(ratio) <= MATCHED, "longer": ratio > MATCHED, "shorter": ratio < -MATCHED}
    n_prompts = {name: len(np.unique(pairs.prompts[cell])) for name, cell in cells.items()}
    if (n_prompts["longer"] < answers.thresholds.prompts) != (n_prompts["shorter"] < answers.thresholds.prompts):
        rare = min(("longer", "shorter"), key=n_prompts.__getitem__)
        return Measured(
            why=f"the better answer is the {rare} one in {n_prompts[rare]} prompts only: quality and length can't be told apart"
        )
    if not _has_skill(answers):
        return Measured(why=_NO_SKILL)
    columns = np.column_stack([column for cell in cells.values() for column in (correct * cell, cell.astype(np.float64))])
    value, ci95 = statistic_interval(
        columns, pairs.prompts, _skill_left_by_length, resamples=answers.resamples, seed=answers.seed
    )
    figures = {f"where_the_better_is_{name}": float(correct[cell].mean()) for name, cell in cells.items() if cell.any()}
    return Measured(value, ci95, len(pairs), len(np.unique(pairs.prompts)), figures=figures)


def _skill_left_by_length(means: Floats) -> Floats:
    """Of means [n, 6]: right and number of the matched, of those whose better answer is longer, and of the shorter."""
    right, count = means[:, 0::2], means[:, 1::2]
    cells = np.divide(right, count, out=np.full_like(right, 0.5), where=count > 0)
    balanced = count[:, 0] * cells[:, 0] + (count[:, 1] + count[:, 2]) * (cells[:, 1] + cells[:, 2]) / 2
    return _share(balanced - 0.5, right.sum(axis=1) - 0.5)


def _share(left: Floats, skill: Floats) -> Floats:
    """A part of the skill. A resample without any skill says nothing: 1."""
    found: Floats = np.divide(left, skill, out=np.ones_like(left), where=skill > 0)
    return found


def _markdown(answers: Answers) -> Measured:
    """The share of the skill that is left without markdown, on the pairs that have some."""
    pairs = answers.seen.survey.pairs
    rows = np.flatnonzero(answers.seen.has_markdown[pairs.comparisons])
    if not len(rows):
        return Measured(why="no answer has markdown")
    if not _has_skill(answers, rows):
        return Measured(n_pairs=len(rows), why=_NO_SKILL)
    given, plain = answers.correct["given"][rows], answers.correct["plain"][rows]
    value, ci95 = statistic_interval(
        np.column_stack([given, plain]),
        pairs.prompts[rows],
        lambda means: _share(means[:, 1] - 0.5, means[:, 0] - 0.5),
        resamples=answers.resamples,
        seed=answers.seed,
    )
    figures = {"with_markdown": float(given.mean()), "without": float(plain.mean())}
    return Measured(value, ci95, len(rows), len(np.unique(pairs.prompts[rows])), figures=figures)


def _wins(first: str, second: str) -> Callable[[Answers], Measured]:
    def measure(answers: Answers) -> Measured:
        values, rows = answers.wins(first, second)
        return _mean(answers, values, answers.seen.prompts[rows])

    return measure


def _lost_to(trick: str) -> Callable[[Answers], Measured]:
    """How much rarer the better answer wins once the worse one uses a trick."""

    def measure(answers: Answers) -> Measured:
        tricked, rows = answers.wins("better", trick)
        honest, all_rows = answers.wins("better", "worse")
        honest = honest[np.isin(all_rows, rows)]
        if not len(rows):
            return Measured(why="no pair is of this kind")
        figures = {"accuracy": float(honest.mean()), "then": float(tricked.mean())}
        return _mean(answers, honest - tricked, answers.seen.prompts[rows], -1.0, **figures)

    return measure


PROBES = (
    Probe("accuracy", "accuracy", _accuracy),
    Probe("gain", "accuracy minus without a reference", _of_reference("empty"), needs_reference=True),
    Probe("other_reference", "accuracy minus with another prompt's reference", _of_reference("shuffled"), needs_reference=True),
    Probe("adherence", "accuracy minus with a worse answer as reference", _of_reference("swapped"), needs_reference=True),
    Probe("length", "share of skill when lengths say nothing", _length),
    Probe("markdown", "share of skill without markdown", _markdown),
    Probe("other_prompt", "accuracy minus with another prompt", _other_prompt, is_noted=True),
    Probe("other_answer", "wins over an answer to another prompt", _wins("better", "other_answer")),
    Probe("halved", "wins over its first half", _wins("better", "halved")),
    Probe("looped", "wins over itself with its end repeated", _wins("better", "looped")),
    Probe("empty", "wins over an empty answer", _wins("better", "empty")),
    Probe("copied", "wins of a copy of the reference over noise", _wins("copied", "noise"), needs_reference=True),
    Probe("scrambled", "wins over the reference's words, scrambled", _wins("better", "scrambled"), needs_reference=True),
    Probe("pasted", "accuracy lost to the reference's first words", _lost_to("pasted"), at_most=True, needs_reference=True),
    Probe("injected", "accuracy lost to a plea for a high score", _lost_to("injected"), at_most=True),
)
"""All probes, in the order of the report."""
