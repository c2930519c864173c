"""Runs best of n: checks the samples in a first pass, scores them with every contender, and measures the curves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.evaluation.accuracy import (
    FEW_PROMPTS,
    add_baselines,
    as_contenders,
    contender_warnings,
    facts_of,
    pick_mode,
    reference_report,
)
from polar_rm.evaluation.bestofn.measure import Measured, measure
from polar_rm.evaluation.bestofn.report import SCHEMA, BestOfNReport
from polar_rm.evaluation.bestofn.samples import SampleFiles, SampleTable, TableBuilder
from polar_rm.evaluation.contenders import Contender, ModelOptions, resolve_contenders
from polar_rm.evaluation.contenders.baselines import BASELINES
from polar_rm.evaluation.pairs import Scores
from polar_rm.evaluation.references import ComparisonScorer, Referenced, ReferenceMode, apply_reference_protocol
from polar_rm.evaluation.scoring import score_contenders
from polar_rm.evaluation.statistics import RESAMPLES, Ints
from polar_rm.evaluation.survey import Survey, survey
from polar_rm.records import Comparison, OnBadRow
from polar_rm.rewards.combining import Combine

MAX_N = 64
"""The largest n by default."""


@dataclass(frozen=True, slots=True)
class BestOfN:
    """report: the content of the JSON file. table, scores: what it was computed from; scores by contender."""

    report: BestOfNReport
    table: SampleTable
    scores: dict[str, Scores]


def best_of_n(
    contenders: Mapping[str, ComparisonScorer] | Sequence[Contender],
    comparisons: Iterable[Comparison],
    *,
    max_n: int | None = None,
    reference: Literal["given", "empty"] | None = None,
    baselines: Sequence[str] = tuple(BASELINES),
    combine: Combine = "mean",
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Progress = silent,
) -> BestOfN:
    """What picking the top-scored of n samples yields by gold, for every contender, beside an oracle and a random pick.

    contenders: scorers by name, or the result of :func:`polar_rm.evaluation.contenders.find_contenders`.
    comparisons: samples as :func:`polar_rm.evaluation.bestofn.samples.to_sampled_comparison` returns them; a list or
        ``SampleFiles``, because they are read several times. Memory grows by 32 bytes a sample and, for each contender, by 8
        bytes a sample and 16 bytes for each prompt and n; not with the texts.
    max_n: the largest n. By default it is the largest n up to 64 for which at least half of the prompts have enough samples.
    reference: ``empty`` scores without references. The default is ``given``, or ``empty`` if no contender needs references and a
        prompt has none. baselines, combine, seed, progress: see :func:`polar_rm.evaluation.evaluate`.

    Raises:
        PolarError: there are no two samples of a prompt, gold never differs between samples of a prompt, no prompt has ``max_n``
            samples, or a reference is missing; before any scoring.
        ScoreError: a score is not finite.
    """
    if iter(comparisons) is comparisons:
        raise PolarError("samples are read several times: pass a list or SampleFiles instead of a generator")
    named = as_contenders(contenders)
    mode = pick_mode(named, reference, comparisons)
    named += add_baselines(baselines, named, mode)
    for contender in named:
        contender.check()
    builder = TableBuilder()
    seen = survey(builder.watch(comparisons), by=None, reference=mode, contenders=named, seed=seed, pairs_needed=False)
    table = builder.finish()
    counts = _counts(table)
    largest = _largest_n(counts, max_n)
    _check_golds(table)

    def read() -> Iterable[Comparison]:
        return apply_reference_protocol(comparisons, mode, seed=seed)

    sizes = seen.pairs.n_comparisons, seen.pairs.n_candidates
    scores = score_contenders(named, read, sizes=sizes, combine=combine, progress=progress)
    values = {name: each.values for name, each in scores.items()}
    measured = measure(table, values, largest, resamples=resamples, seed=seed)
    report = _report(named, table, scores, seen, mode, measured, largest)
    report["reference"]["combine"] = combine
    report["warnings"] = [
        *_warnings(counts, largest, measured, report["n_prompts"], is_default=max_n is None),
        *report["warnings"],
    ]
    return BestOfN(report, table, scores)


def best_of_n_files(
    contenders: Sequence[str | Path | Contender],
    files: Sequence[str | Path],
    *,
    gold: str | None = None,
    max_n: int | None = None,
    reference: Literal["given", "empty"] | None = None,
    references: str | Path | None = None,
    baselines: Sequence[str] = tuple(BASELINES),
    combine: Combine = "mean",
    limit: int | None = None,
    seed: int = 0,
    options: ModelOptions | None = None,
    on_bad_row: OnBadRow | None = None,
    outputs: Sequence[str | Path] = (),
    progress: Progress = silent,
) -> BestOfN:
    """Run :func:`best_of_n` on files of samples (see :func:`polar_rm.records.to_samples`).

    gold: the column of the gold values; by default ``gold``, or ``golds`` beside ``outputs``. limit: take only the samples of the
    first prompts, this many. The others: see :func:`polar_rm.evaluation.run.evaluate_files`.

    Raises:
        PolarError: contenders, files or options are invalid; before anything is scored.
        ScoreError: a score is not finite.
    """
    data = SampleFiles(files, on_bad_row, outputs, gold=gold, limit=limit)
    found = resolve_contenders(contenders, options, is_partial=limit is not None)
    comparisons = Referenced(data, references) if references else data
    mode = pick_mode(found, reference, comparisons)
    data.needs_references = mode == "given" and not references
    chosen: Literal["given", "empty"] = "given" if mode == "given" else "empty"
    result = best_of_n(
        found,
        comparisons,
        max_n=max_n,
        reference=chosen,
        baselines=baselines,
        combine=combine,
        seed=seed,
        progress=progress,
    )
    report = result.report
    report["gold"], report["limit"], report["data"] = gold, limit, data.describe()
    report["reference"]["file"] = str(references) if references else None
    report["warnings"] += data.warnings()
    return result


def _counts(table: SampleTable) -> Ints:
    """The number of samples of each group."""
    return np.bincount(table.groups, table.copies, len(table.prompts)).astype(np.int64)


def _largest_n(counts: Ints, max_n: int | None) -> int:
    most = int(counts.max())
    if most < 2:
        raise PolarError("every prompt has a single sample: best of n needs at least two samples for a prompt")
    if max_n is None:
        half = int(np.sort(counts)[::-1][(len(counts) - 1) // 2])
        return max(2, min(MAX_N, half))
    if max_n < 2:
        raise PolarError(f"--max-n must be at least 2, not {max_n}")
    if max_n > most:
        raise PolarError(f"--max-n {max_n}: no prompt has so many samples; the most is {most}")
    return max_n


def _check_golds(table: SampleTable) -> None:
    if all((each == each[0]).all() for each in table.samples(table.golds)):
        raise PolarError("the gold value is the same for all samples of every prompt: no sample is better than another")


def _warnings(counts: Ints, largest: int, measured: Measured, n_prompts: int, *, is_default: bool) -> list[str]:
    """What a reader of the curves should know about the samples."""
    lines = []
    below, above, single = ((counts < largest).sum(), (counts > largest).sum(), (counts == 1).sum())
    unit = "prompts" if len(counts) == n_prompts else "groups (of a prompt and a policy)"
    of = f"of {len(counts):,} {unit}"
    if below:
        lines.append(
            f"{below:,} {of} have fewer than {largest} samples: at each n the curves are means over the prompts with n samples, "
            f"and all other figures over the {measured.n_complete:,} prompts with {largest}"
        )
    if single:
        lines.append(f"{single:,} {of} have a single sample and count at n = 1 only")
    if above and is_default:
        lines.append(f"{above:,} {of} have more than {largest} samples, up to {counts.max():,}; --max-n sets a larger n")
    last = measured.points[-1]
    if last["oracle"]["value"] - last["random"]["value"] <= 0:
        lines.append(f"gold never differs between samples of the prompts with {largest} samples: there are no areas")
    lines += [
        f"{name} gives equal scores to all samples of a prompt: nothing is picked by it"
        for name, curve in measured.contenders.items()
        if max(each["value"] for each in curve["proxy"]) <= min(each["value"] for each in curve["proxy"]) + 1e-12
    ]
    if measured.n_complete == 1:
        lines.append("all samples belong to one prompt: there is no interval")
    elif measured.n_complete < FEW_PROMPTS:
        lines.append(f"the intervals rest on {measured.n_complete} prompts only and are too narrow")
    return lines


def _report(
    named: Sequence[Contender],
    table: SampleTable,
    scores: Mapping[str, Scores],
    seen: Survey,
    mode: ReferenceMode,
    measured: Measured,
    largest: int,
) -> BestOfNReport:
    fingerprint = hashlib.sha256(seen.fingerprint.encode() + table.golds.tobytes() + table.copies.tobytes())
    return {
        "schema": SCHEMA,
        "gold": None,
        "n_samples": int(table.copies.sum()),
        "n_prompts": int(table.prompts.max()) + 1,
        "n_policies": table.n_policies,
        "max_n": largest,
        "n_complete": measured.n_complete,
        "points": measured.points,
        "contenders": measured.contenders,
        "differences": measured.differences,
        "facts": {each.name: facts_of(each, scores[each.name]) for each in named},
        "data": [],
        "limit": None,
        "reference": reference_report(mode, seen),
        "fingerprint": fingerprint.hexdigest(),
        "warnings": [
            *seen.copy_warnings(),
            *(line for each in named for line in contender_warnings(each, scores[each.name])),
        ],
    }
