"""Runs an audit: a first pass that checks, all streams through one loaded contender, then the probes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from polar_rm.audit.probes import PROBES, Answers
from polar_rm.audit.report import SCHEMA, AuditReport, Finding
from polar_rm.audit.streams import ALTERED, Bools, Seen, Streams
from polar_rm.audit.thresholds import Thresholds
from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.evaluation.accuracy import contender_warnings
from polar_rm.evaluation.contenders import Contender, Given, ModelOptions, as_found
from polar_rm.evaluation.data import ComparisonFiles, First
from polar_rm.evaluation.pairs import PairScores, Scores
from polar_rm.evaluation.references import ComparisonScorer, Referenced
from polar_rm.evaluation.scoring import score_streams
from polar_rm.evaluation.statistics import RESAMPLES
from polar_rm.records import Comparison, OnBadRow


@dataclass(frozen=True, slots=True)
class AuditResult:
    """report: what is written to a file. answers, streams: what it was computed from, for what shows texts."""

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
    """Ask a contender about pairs in all the ways of :mod:`polar_rm.audit.streams`, and find its shortcuts.

    comparisons: read several times (checks first), so a list or ``ComparisonFiles``. Memory grows by some 200 bytes a comparison,
        not with the texts. Each pair costs about twenty scored answers, eleven of which share a prefix.
    use_references: False asks without any; probes of references are then not applicable.
    seed: of the bootstrap, and of what is drawn: other prompts, random orders.

    Raises:
        PolarError: nothing to compare, a missing reference, a contender that can't be asked about changed texts.
        ScoreError: a score is not finite.
    """
    if iter(comparisons) is comparisons:
        raise PolarError("comparisons are read several times: pass a list or ComparisonFiles instead of a generator")
    named = contender if isinstance(contender, Contender) else Given("model", contender)
    if named.kind == "stored":
        raise PolarError(f"{named.name}: stored scores are of texts as they were; an audit asks about changed ones")
    limits = thresholds or Thresholds()
    streams = Streams(comparisons, takes_reference=use_references and named.reads_references, seed=seed)
    named.check()
    seen = streams.look(named)
    scores = _ask(named, streams, seen, progress)
    pairs = seen.survey.pairs
    correct = {name: PairScores(pairs, {name: each}).correct(name) for name, each in scores.items() if name != "altered"}
    altered = scores["altered"].values.reshape(-1, len(ALTERED))
    usable = seen.usable & ~_made_equal(scores["altered"])
    answers = Answers(streams.takes_reference, replace(seen, usable=usable), correct, altered, limits, resamples, seed)
    findings = [probe.find(answers) for probe in PROBES]
    report = _report(named, streams, seen, findings, limits, scores["given"], seed)
    if lost := int(seen.usable.sum() - usable.sum()):
        report["warnings"].append(
            f"{lost:,} altered answers were left out: the encoder cuts them to a text that is asked about, too"
        )
    return AuditResult(report, answers, streams)


def _made_equal(scores: Scores) -> Bools:
    """The altered answers that the contender's encoder makes equal to another, for example by its limit on length. That they tie
    says nothing. bool [n_comparisons, len(ALTERED)]; the two answers as they are always count."""
    marks = scores.marks if scores.marks is not None and "tied" in scores.kinds else np.zeros(len(scores.values), np.uint16)
    bit = scores.kinds.index("tied") if "tied" in scores.kinds else 0
    equal: Bools = (marks >> bit & 1).astype(np.bool_).reshape(-1, len(ALTERED))
    equal[:, [ALTERED.index("better"), ALTERED.index("worse")]] = False
    return equal


def _ask(contender: Contender, streams: Streams, seen: Seen, progress: Progress) -> dict[str, Scores]:
    count = seen.survey.pairs.n_comparisons
    sizes = {"altered": count * len(ALTERED)}
    asked = {name: (read, (count, sizes.get(name, seen.survey.pairs.n_candidates))) for name, read in streams.by_name().items()}
    return score_streams([contender], asked, progress=progress)[contender.name]


def _report(
    contender: Contender,
    streams: Streams,
    seen: Seen,
    findings: list[Finding],
    thresholds: Thresholds,
    given: Scores,
    seed: int,
) -> AuditReport:
    verdicts = {finding["verdict"] for finding in findings}
    pairs = seen.survey.pairs
    return {
        "schema": SCHEMA,
        "contender": contender.name,
        "kind": contender.kind,
        "source": contender.source,
        "takes_reference": streams.takes_reference,
        "facts": dict(contender.facts),
        "verdict": "failed" if "failed" in verdicts else "undecided" if "undecided" in verdicts else "passed",
        "findings": findings,
        "thresholds": thresholds.model_dump(),
        "n_comparisons": pairs.n_comparisons,
        "n_pairs": len(pairs),
        "n_prompts": len(np.unique(pairs.prompts)),
        "references": seen.survey.protocols,
        "data": [],
        "limit": None,
        "seed": seed,
        "fingerprint": seen.survey.fingerprint,
        "warnings": [*contender_warnings(contender, given.noted), *seen.survey.copy_warnings()],
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

    contender: by a word of :data:`polar_rm.evaluation.contenders.KINDS`, or itself. references: file that references are added
    from. limit: take only the first so many comparisons. outputs: what the caller will write; no file may be one of them.

    Raises:
        PolarError: whatever is wrong with contender, files or options; before anything is scored.
        ScoreError: a score is not finite.
    """
    data = ComparisonFiles(files, on_bad_row, outputs)
    first = First(data, limit)
    [found] = as_found([contender], options)
    comparisons = Referenced(first, references) if references else first
    result = audit(found, comparisons, use_references=use_references, thresholds=thresholds, seed=seed, progress=progress)
    report = result.report
    report["data"], report["limit"] = data.describe(), limit
    report["warnings"] += data.warnings()
    return result
