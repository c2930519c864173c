"""What ``polar evaluate`` does: a saved model against files of comparisons."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from polar_rm.common.files import sha256
from polar_rm.common.manifests import check_manifest
from polar_rm.common.progress import Progress, silent
from polar_rm.evaluation.accuracy import EvaluationResult, evaluate
from polar_rm.evaluation.baselines import BASELINES
from polar_rm.evaluation.references import ReferenceMode
from polar_rm.evaluation.report import DataFile
from polar_rm.records import Comparison, OnBadRow, read_comparisons, survey_files

# What a report says of comparisons whose scores have a note.
_WARNINGS = {
    "truncated": "have a text that was cut to the encoder's limits",
    "tied": "have candidates that the encoder makes equal: ties",
    "beyond_positions": "are longer than the backbone's positions: their scores mean little",
    "unfinished_thinking": "have a candidate whose thinking never ends",
}


class ComparisonFiles:
    """Files of comparisons as one stream that can be read more than once; the first pass alone reports bad rows.

    paths: files, folders or patterns, as :func:`survey_files` takes them; here afterwards every file that they mean.
    rows: comparisons read from each file by the latest pass. outputs: what this run writes; none of the files may be one.
    """

    def __init__(
        self, paths: Sequence[str | Path], on_bad_row: OnBadRow | None = None, outputs: Sequence[str | Path] = ()
    ) -> None:
        self.found = survey_files(paths, outputs)
        self.paths = list(self.found.files)
        self.rows = [0] * len(self.paths)
        self._on_bad_row = on_bad_row

    def __iter__(self) -> Iterator[Comparison]:
        on_bad_row = self._on_bad_row
        if on_bad_row is not None:
            self._on_bad_row = replace(on_bad_row, side_file=os.devnull, notes={})
        for number, path in enumerate(self.paths):
            self.rows[number] = 0
            for comparison in read_comparisons(path, on_bad_row):
                self.rows[number] += 1
                yield comparison

    def describe(self) -> list[DataFile]:
        """Path, hash and rows of every file, after a pass."""
        files = zip(self.paths, self.rows, strict=True)
        return [{"path": str(path), "sha256": sha256(path), "rows": rows} for path, rows in files]


def evaluate_files(
    model_dir: str | Path,
    files: Sequence[str | Path],
    *,
    by: str | None = None,
    reference: ReferenceMode = "given",
    baselines: Sequence[str] = tuple(BASELINES),
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    row_tokens: int = 8192,
    on_bad_row: OnBadRow | None = None,
    outputs: Sequence[str | Path] = (),
    progress: Progress = silent,
) -> EvaluationResult:
    """Load a native checkpoint and :func:`evaluate` it on files (JSONL or Parquet), in constant memory but for numbers.

    Raises:
        PolarError: whatever is wrong with the folder, the files or the options; before anything is scored.
        ScoreError: a score is not finite.
    """
    # Only here are torch and transformers needed; baselines, statistics and plots are used without them.
    from polar_rm.model.reward_model import RewardModel
    from polar_rm.scoring.scorer import Scorer

    for file in files:
        check_manifest(file)
    on_bad_row = on_bad_row or OnBadRow()
    comparisons = ComparisonFiles(files, on_bad_row, outputs)
    model = RewardModel.from_pretrained(model_dir, dtype=dtype, device=device)
    scorer = Scorer(model, row_tokens=row_tokens)
    result = evaluate(
        scorer,
        comparisons,
        by=by,
        reference=reference,
        baselines=baselines,
        seed=seed,
        model=str(model_dir),
        encoder_hash=model.encoder.hash,
        progress=progress,
    )
    result.report["data"] = comparisons.describe()
    for note, words in _WARNINGS.items():
        if count := scorer.noted[note]:
            result.report["warnings"].append(f"{count:,} comparisons {words}")
    if on_bad_row.count:
        result.report["warnings"].append(f"{on_bad_row.count:,} bad rows were skipped, see {on_bad_row.side_file}")
    result.report["warnings"] += on_bad_row.warnings()
    if comparisons.found.left_out:
        result.report["warnings"].append(f"of the folders were taken {comparisons.found.describe()}")
    return result
