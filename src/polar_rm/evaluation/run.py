"""``polar evaluate`` on files of comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polar_rm.common.progress import Progress, silent
from polar_rm.evaluation.accuracy import EvaluationResult, evaluate
from polar_rm.evaluation.contenders import Contender, ModelOptions, resolve_contenders
from polar_rm.evaluation.contenders.baselines import BASELINES
from polar_rm.evaluation.data import ComparisonFiles, First
from polar_rm.evaluation.references import ReferenceChoice, Referenced
from polar_rm.records import OnBadRow
from polar_rm.rewards.combining import Combine


def evaluate_files(
    contenders: Sequence[str | Path | Contender],
    files: Sequence[str | Path],
    *,
    by: str | None = None,
    reference: ReferenceChoice | None = None,
    references: str | Path | None = None,
    baselines: Sequence[str] = tuple(BASELINES),
    combine: Combine = "mean",
    limit: int | None = None,
    seed: int = 0,
    options: ModelOptions | None = None,
    on_bad_row: OnBadRow | None = None,
    outputs: Sequence[str | Path] = (),
    progress: Progress = silent,
) -> EvaluationResult:
    """:func:`evaluate` contenders on files of comparisons.

    contenders: contenders, or their text forms (see :data:`polar_rm.evaluation.contenders.KINDS`). references: a file with
    references to add, see :class:`Referenced`. limit: use only this many first comparisons. options: options of models and
    servers. outputs: the files that the caller will write; they are refused as data. The other arguments: see :func:`evaluate`.

    Raises:
        PolarError: a contender, a file or an option is invalid; raised before anything is scored.
        ScoreError: a score is not finite.
    """
    data = ComparisonFiles(files, on_bad_row, outputs, several_references=True)
    first = First(data, limit)
    named = resolve_contenders(contenders, options, is_partial=limit is not None)
    comparisons = Referenced(first, references) if references else first
    result = evaluate(
        named,
        comparisons,
        by=by,
        reference=reference,
        baselines=baselines,
        combine=combine,
        seed=seed,
        progress=progress,
    )
    report = result.report
    report["data"] = data.describe()
    report["limit"] = limit
    report["reference"]["file"] = str(references) if references else None
    report["warnings"] += data.warnings()
    return result
