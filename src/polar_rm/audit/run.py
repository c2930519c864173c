"""Runs an audit: checks the data in a first pass, scores all streams with one loaded contender, and runs the probes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from polar_rm.audit.probes import PROBES, Answers
from polar_rm.audit.report import SCHEMA, AuditReport, Finding, Verdict
from polar_rm.audit.streams import ALTERED, Bools, FirstPass, Streams
from polar_rm.audit.thresholds import Thresholds
from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.evaluation.accuracy import contender_warnings, pick_mode
from polar_rm.evaluation.contenders import Contender, Given, ModelOptions, resolve_contenders
from polar_rm.evaluation.data import ComparisonFiles, First
from polar_rm.evaluation.pairs import PairScores, Scores
from polar_rm.evaluation.references import ComparisonScorer, Referenced
from polar_rm.evaluation.scoring import score_streams
from polar_rm.evaluation.statistics import RESAMPLES
from polar_rm.records import Comparison, OnBadRow


@dataclass(frozen=True, slots=True)
class AuditResult:
    """The result of an audit. report: the content of the JSON file. answers, streams: the data of the report, for examples."""

    report: AuditReport
    answers: Answers
    streams: Streams


def audit(
    contender: Contender | ComparisonScorer,
    comparisons: Iterable[Comparison],
    *,
    use_references: bool = True,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Progress = silent,
) -> AuditResult:
    """Score all streams of :mod:`polar_rm.audit.streams` with a contender, and find its shortcuts.

    comparisons: a list or ``ComparisonFiles``, because they are read several times, first for checks. Memory grows by about 200
        bytes a comparison, not with the texts. Each pair costs about twenty scores; eleven of them share a prefix.
    use_references: False scores without references; the probes that need references are then not applicable.
    seed: seed of the bootstrap, of other prompts and of random orders.

    Raises:
        PolarError: there is nothing to compare, a reference is missing, or the contender can't score changed texts.
        ScoreError: a score is not finite.
    """
    if iter(comparisons) is comparisons:
        raise PolarError("comparisons are read several times: pass a list or ComparisonFiles instead of a generator")
    named = contender if isinstance(contender, Contender) else Given("model", contender)
    if named.kind == "stored":
        raise PolarError(f"{named.name}: stored scores belong to unchanged texts, but an audit also scores changed texts")
    limits = thresholds or Thresholds()
    takes_reference = use_references and named.reads_references and pick_mode([named], None, comparisons) == "given"
    streams = Streams(comparisons, takes_reference=takes_reference, seed=seed)
    named.check()
    first_pass = streams.first_pass(named)
    scores = _score_all_streams(named, streams, first_pass, progress)
    pairs = first_pass.survey.pairs
    streams_of_pairs = [name for name in scores if name != "altered"]
    correct = {name: PairScores(pairs, {name: scores[name]}).correct(name) for name in streams_of_pairs}
    altered = scores["altered"].values.reshape(-1, len(ALTERED))
    usable = first_pass.usable & ~_made_equal(scores["altered"])
    answers = Answers(streams.takes_reference, replace(first_pass, usable=usable), correct, altered, limits, resamples, seed)
    findings = [probe.find(answers) for probe in PROBES]
    report = _report(named, streams, first_pass, findings, limits, scores["given"], seed)
    if lost := int(first_pass.usable.sum() - usable.sum()):
        report["warnings"].append(
            f"{lost:,} altered answers were left out: the encoder truncates them to the text of another answer"
        )
    return AuditResult(report, answers, streams)


def _made_equal(scores: Scores) -> Bools:
    """The altered answers that the contender's encoder makes equal to another answer, for example by truncation.

    Their ties are not evidence. bool [n_comparisons, len(ALTERED)]; it is always false for the two unchanged answers.
    """
    marks = scores.marks if scores.marks is not None and "tied" in scores.kinds else np.zeros(len(scores.values), np.uint16)
    bit = scores.kinds.index("tied") if "tied" in scores.kinds else 0
    equal: Bools = (marks >> bit & 1).astype(np.bool_).reshape(-1, len(ALTERED))
    equal[:, [ALTERED.index("better"), ALTERED.index("worse")]] = False
    return equal


def _score_all_streams(contender: Contender, streams: Streams, first_pass: FirstPass, progress: Progress) -> dict[str, Scores]:
    n_comparisons, n_candidates = first_pass.survey.pairs.n_comparisons, first_pass.survey.pairs.n_candidates
    sizes = {"altered": n_comparisons * len(ALTERED)}
    sized = {name: (read, (n_comparisons, sizes.get(name, n_candidates))) for name, read in streams.by_name().items()}
    return score_streams([contender], sized, progress=progress)[contender.name]


def _overall(verdicts: set[Verdict]) -> Literal["passed", "failed", "undecided"]:
    """An audit passes if probes passed, and none failed or is open: probes that could not be asked say nothing."""
    if "failed" in verdicts:
        return "failed"
    return "passed" if "passed" in verdicts and "undecided" not in verdicts else "undecided"


def _report(
    contender: Contender,
    streams: Streams,
    first_pass: FirstPass,
    findings: list[Finding],
    thresholds: Thresholds,
    given: Scores,
    seed: int,
) -> AuditReport:
    pairs = first_pass.survey.pairs
    return {
        "schema": SCHEMA,
        "contender": contender.name,
        "kind": contender.kind,
        "source": contender.source,
        "takes_reference": streams.takes_reference,
        "facts": dict(contender.facts),
        "verdict": _overall({finding["verdict"] for finding in findings}),
        "findings": findings,
        "thresholds": thresholds.model_dump(),
        "n_comparisons": pairs.n_comparisons,
        "n_pairs": len(pairs),
        "n_prompts": len(np.unique(pairs.prompts)),
        "references": first_pass.survey.protocols,
        "data": [],
        "limit": None,
        "seed": seed,
        "fingerprint": first_pass.survey.fingerprint,
        "warnings": [*contender_warnings(contender, given), *first_pass.survey.copy_warnings()],
    }


def audit_files(
    contender: str | Path | Contender,
    files: Sequence[str | Path],
    *,
    use_references: bool = True,
    references: str | Path | None = None,
    thresholds: Thresholds | None = None,
    limit: int | None = None,
    seed: int = 0,
    options: ModelOptions | None = None,
    on_bad_row: OnBadRow | None = None,
    outputs: Sequence[str | Path] = (),
    progress: Progress = silent,
) -> AuditResult:
    """:func:`audit` a contender on files of comparisons.

    contender: a contender, or its text form (see :data:`polar_rm.evaluation.contenders.KINDS`). references: a file with
    references to add. limit: use only this many first comparisons. outputs: the files that the caller will write; they are
    refused as data.

    Raises:
        PolarError: the contender, a file or an option is invalid; raised before anything is scored.
        ScoreError: a score is not finite.
    """
    data = ComparisonFiles(files, on_bad_row, outputs)
    first = First(data, limit)
    [named] = resolve_contenders([contender], options)
    comparisons = Referenced(first, references) if references else first
    result = audit(named, comparisons, use_references=use_references, thresholds=thresholds, seed=seed, progress=progress)
    report = result.report
    report["data"], report["limit"] = data.describe(), limit
    report["warnings"] += data.warnings()
    return result
