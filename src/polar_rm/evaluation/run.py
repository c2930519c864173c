"""What ``polar evaluate`` does with files of comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polar_rm.common.progress import Progress, silent
from polar_rm.evaluation.accuracy import EvaluationResult, evaluate
from polar_rm.evaluation.contenders import Contender, ModelOptions, as_found
from polar_rm.evaluation.contenders.baselines import BASELINES
from polar_rm.evaluation.data import ComparisonFiles, First
from polar_rm.evaluation.references import ReferenceChoice, Referenced
from polar_rm.records import OnBadRow


def evaluate_files(
    contenders: Sequence[str | Path | Contender],
    files: Sequence[str | Path],
    *,
    by: str | None = None,
    reference: ReferenceChoice | None = None,
    references: str | Path | None = None,
    baselines: Sequence[str] = tuple(BASELINES),
    limit: int | None = None,
    seed: int = 0,
    options: ModelOptions | None = None,
    on_bad_row: OnBadRow | None = None,
    outputs: Sequence[str | Path] = (),
    progress: Progress = silent,
) -> EvaluationResult:
    """:func:`evaluate` contenders on files of comparisons.

    contenders: by the words of :data:`polar_rm.evaluation.contenders.KINDS`, or as :func:`find_contenders` gives them.
    references: file that references are added from, see :class:`Referenced`. limit: take only the first so many comparisons.
    options: how models compute. outputs: what the caller will write; no file may be one of them. The others: see
    :func:`evaluate`.

    Raises:
        PolarError: whatever is wrong with contenders, files or options; before anything is scored.
        ScoreError: a score is not finite.
    """
    data = ComparisonFiles(files, on_bad_row, outputs)
    first = First(data, limit)
    found = as_found(contenders, options, is_partial=limit is not None)
    comparisons = Referenced(first, references) if references else first
    result = evaluate(found, comparisons, by=by, reference=reference, baselines=baselines, seed=seed, progress=progress)
    report = result.report
    report["data"] = data.describe()
    report["limit"] = limit
    report["reference"]["file"] = str(references) if references else None
    report["warnings"] += data.warnings()
    return result
