"""The probes of an audit: their measures, the pairs that they use, and their findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from polar_rm.audit.report import Finding, Verdict
from polar_rm.audit.sentences import SENTENCES
from polar_rm.audit.streams import ALTERED, FirstPass
from polar_rm.audit.thresholds import Thresholds
from polar_rm.evaluation.statistics import RESAMPLES, Floats, Interval, Ints, listed, statistic_interval

MATCHED = 0.1
"""The maximum difference between the log lengths in characters of two answers that count as equally long."""

_NO_SKILL = "it is not better than chance on these pairs, so there is no skill to explain"
_NO_REFERENCE = "it takes no reference"


@dataclass(frozen=True, slots=True)
class Answers:
    """A contender's results on all streams.

    correct: the outcomes of each stream's pairs, float64 [n_pairs]: 1 if the better answer scores higher, 0.5 for a tie, else 0.
    altered: scores of :data:`ALTERED`, float64 [n_comparisons, len(ALTERED)].
    """

    takes_reference: bool
    first_pass: FirstPass
    correct: Mapping[str, Floats]
    altered: Floats
    thresholds: Thresholds
    resamples: int = RESAMPLES
    seed: int = 0

    def margins(self, first: str, second: str) -> tuple[Floats, Ints]:
        """The margins of one altered answer over another, and the comparisons in which both are usable."""
        columns = [ALTERED.index(name) for name in (first, second)]
        rows = np.flatnonzero(self.first_pass.usable[:, columns].all(axis=1))
        values: Floats = self.altered[rows, columns[0]] - self.altered[rows, columns[1]]
        return values, rows

    def wins(self, first: str, second: str) -> tuple[Floats, Ints]:
        """1 if one altered answer scores higher than another, 0.5 for a tie, else 0; and the comparisons of these values."""
        margins, rows = self.margins(first, second)
        values: Floats = (np.sign(margins) + 1) / 2
        return values, rows


@dataclass(frozen=True, slots=True)
class Measurement:
    """The value of a measure on some pairs. reason: why there is no value. figures: the numbers that determine the value."""

    value: float | None = None
    ci95: Interval | None = None
    n_pairs: int = 0
    n_prompts: int = 0
    reason: str = ""
    figures: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe.

    name: also the name of its threshold. measure: a description. at_most: the value should be below the threshold, not above.
    needs_reference: the probe is not applicable without references. is_noted: for contenders that take references, a failure is
    reported as a property (``noted``).
    """

    name: str
    measure: str
    of: Callable[[Answers], Measurement]
    at_most: bool = False
    needs_reference: bool = False
    is_noted: bool = False

    def find(self, answers: Answers) -> Finding:
        """The finding on one contender."""
        lacks_reference = self.needs_reference and not answers.takes_reference
        measured = Measurement(reason=_NO_REFERENCE) if lacks_reference else self.of(answers)
        if not measured.reason and measured.n_prompts < answers.thresholds.prompts:
            reason = f"only {measured.n_prompts} prompts have such pairs"
            measured = Measurement(n_pairs=measured.n_pairs, n_prompts=measured.n_prompts, reason=reason)
        threshold = float(getattr(answers.thresholds, self.name))
        verdict = self._verdict(measured, threshold)
        if verdict == "failed" and self.is_noted and answers.takes_reference:
            verdict = "noted"
        sentences = SENTENCES[self.name]
        sentence = measured.reason if verdict == "not applicable" else sentences["failed" if verdict == "noted" else verdict]
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

    def _verdict(self, measured: Measurement, threshold: float) -> Verdict:
        if measured.reason or measured.ci95 is None:
            return "not applicable"
        low, high = measured.ci95
        if self.at_most:
            low, high, threshold = -high, -low, -threshold
        return "failed" if high < threshold else "passed" if low >= threshold else "undecided"


def _numbers(measured: Measurement) -> str:
    """The value with its interval, and the figures that it is computed from."""
    if measured.value is None or measured.ci95 is None:
        return ""
    figures = "".join(f"; {name.replace('_', ' ')} {value:.3f}" for name, value in (measured.figures or {}).items())
    return f" ({measured.value:+.3f} [{measured.ci95[0]:+.3f}, {measured.ci95[1]:+.3f}]{figures})"


def _mean(answers: Answers, values: Floats, prompts: Ints, low: float = 0.0, **figures: float) -> Measurement:
    """The mean over pairs of a value. low: the minimum of a pair's value; the maximum is 1."""
    if not len(values):
        return Measurement(reason="no pair is of this kind")
    value, ci95 = statistic_interval(
        values[:, None],
        prompts,
        lambda means: means[:, 0],
        extremes=(low, 1.0),
        resamples=answers.resamples,
        seed=answers.seed,
    )
    return Measurement(value, ci95, len(values), len(np.unique(prompts)), figures=figures)


def _accuracy(answers: Answers) -> Measurement:
    return _mean(answers, answers.correct["given"], answers.first_pass.survey.pairs.prompts)


def _accuracy_loss(stream: str, answers: Answers) -> Measurement:
    """The accuracy on the unchanged pairs minus the accuracy on another stream."""
    given, other = answers.correct["given"], answers.correct[stream]
    figures = {"accuracy": float(given.mean()), "then": float(other.mean())}
    return _mean(answers, given - other, answers.first_pass.survey.pairs.prompts, -1.0, **figures)


def _reference_loss(stream: str) -> Callable[[Answers], Measurement]:
    """The same measure, not applicable if accuracy without references is so high that references can't improve it."""

    def measure(answers: Answers) -> Measurement:
        without = float(answers.correct["empty"].mean())
        if 1 - without < answers.thresholds.room:
            return Measurement(reason=f"it is right in {without:.3f} of the pairs without a reference: these pairs need none")
        return _accuracy_loss(stream, answers)

    return measure


def _other_prompt(answers: Answers) -> Measurement:
    return _accuracy_loss("other_prompt", answers) if _has_skill(answers) else Measurement(reason=_NO_SKILL)


def _has_skill(answers: Answers, rows: Ints | None = None) -> bool:
    """Whether the whole interval of the accuracy is above chance."""
    rows = np.arange(len(answers.correct["given"])) if rows is None else rows
    ci95 = _mean(answers, answers.correct["given"][rows], answers.first_pass.survey.pairs.prompts[rows]).ci95
    return ci95 is not None and ci95[0] > 0.5


def _length(answers: Answers) -> Measurement:
    """The share of the skill (accuracy - 0.5) that remains if the better answer is the longer one as often as the shorter one.

    Pairs of equal length keep their weight. The pairs with a longer better answer and those with a shorter better answer get
    equal total weights, so that length alone has an accuracy of 0.5 on them.
    """
    pairs, lengths, correct = answers.first_pass.survey.pairs, answers.first_pass.lengths, answers.correct["given"]
    ratio = np.log1p(lengths[pairs.better]) - np.log1p(lengths[pairs.worse])
    cells = {"matched": np.abs(ratio) <= MATCHED, "longer": ratio > MATCHED, "shorter": ratio < -MATCHED}
    n_prompts = {name: len(np.unique(pairs.prompts[cell])) for name, cell in cells.items()}
    if (n_prompts["longer"] < answers.thresholds.prompts) != (n_prompts["shorter"] < answers.thresholds.prompts):
        rare = min(("longer", "shorter"), key=n_prompts.__getitem__)
        return Measurement(
            reason=f"the better answer is the {rare} one in {n_prompts[rare]} prompts only: "
            "quality can't be separated from length"
        )
    if not _has_skill(answers):
        return Measurement(reason=_NO_SKILL)
    columns = np.column_stack([column for cell in cells.values() for column in (correct * cell, cell.astype(np.float64))])
    value, ci95 = statistic_interval(
        columns, pairs.prompts, _skill_without_length, resamples=answers.resamples, seed=answers.seed
    )
    figures = {f"where_the_better_is_{name}": float(correct[cell].mean()) for name, cell in cells.items() if cell.any()}
    return Measurement(value, ci95, len(pairs), len(np.unique(pairs.prompts)), figures=figures)


def _skill_without_length(means: Floats) -> Floats:
    """The share of the skill that remains with balanced lengths.

    means: [n, 6], the shares of correct pairs and of all pairs in each cell: matched, better answer longer, better answer
    shorter.
    """
    correct, count = means[:, 0::2], means[:, 1::2]
    accuracies = np.divide(correct, count, out=np.full_like(correct, 0.5), where=count > 0)
    balanced = count[:, 0] * accuracies[:, 0] + (count[:, 1] + count[:, 2]) * (accuracies[:, 1] + accuracies[:, 2]) / 2
    return _share(balanced - 0.5, correct.sum(axis=1) - 0.5)


def _share(remaining: Floats, skill: Floats) -> Floats:
    """The remaining share of the skill; 1 for a resample without any skill."""
    shares: Floats = np.divide(remaining, skill, out=np.ones_like(remaining), where=skill > 0)
    return shares


def _markdown(answers: Answers) -> Measurement:
    """The share of the skill that remains without markdown, on the pairs that have markdown."""
    pairs = answers.first_pass.survey.pairs
    rows = np.flatnonzero(answers.first_pass.has_markdown[pairs.comparisons])
    if not len(rows):
        return Measurement(reason="no answer has markdown")
    if not _has_skill(answers, rows):
        return Measurement(n_pairs=len(rows), reason=_NO_SKILL)
    given, plain = answers.correct["given"][rows], answers.correct["plain"][rows]
    value, ci95 = statistic_interval(
        np.column_stack([given, plain]),
        pairs.prompts[rows],
        lambda means: _share(means[:, 1] - 0.5, means[:, 0] - 0.5),
        resamples=answers.resamples,
        seed=answers.seed,
    )
    figures = {"with_markdown": float(given.mean()), "without": float(plain.mean())}
    return Measurement(value, ci95, len(rows), len(np.unique(pairs.prompts[rows])), figures=figures)


def _wins(first: str, second: str) -> Callable[[Answers], Measurement]:
    def measure(answers: Answers) -> Measurement:
        values, rows = answers.wins(first, second)
        return _mean(answers, values, answers.first_pass.prompts[rows])

    return measure


def _lost_to(trick: str) -> Callable[[Answers], Measurement]:
    """The loss of accuracy if the worse answer uses a trick."""

    def measure(answers: Answers) -> Measurement:
        tricked, rows = answers.wins("better", trick)
        honest, all_rows = answers.wins("better", "worse")
        honest = honest[np.isin(all_rows, rows)]
        if not len(rows):
            return Measurement(reason="no pair is of this kind")
        figures = {"accuracy": float(honest.mean()), "then": float(tricked.mean())}
        return _mean(answers, honest - tricked, answers.first_pass.prompts[rows], -1.0, **figures)

    return measure


PROBES = (
    Probe("accuracy", "accuracy", _accuracy),
    Probe("gain", "accuracy minus accuracy without a reference", _reference_loss("empty"), needs_reference=True),
    Probe(
        "other_reference",
        "accuracy minus accuracy with another prompt's reference",
        _reference_loss("shuffled"),
        needs_reference=True,
    ),
    Probe(
        "adherence",
        "accuracy minus accuracy with a worse answer as reference",
        _reference_loss("swapped"),
        needs_reference=True,
    ),
    Probe("length", "share of skill with balanced lengths", _length),
    Probe("markdown", "share of skill without markdown", _markdown),
    Probe("other_prompt", "accuracy minus accuracy with another prompt", _other_prompt, is_noted=True),
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
