"""Scores from a file that were computed before, joined by id."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polar_rm.common.paths import check_data
from polar_rm.errors import PolarError
from polar_rm.evaluation.contenders.base import Contender
from polar_rm.evaluation.references import ComparisonScorer, identity_of
from polar_rm.evaluation.suites.judgebench import read_stored_scores
from polar_rm.records import Comparison, InvalidRecord, RowRules, find_file, read_rows


class Stored(Contender):
    """``scores:FILE``: stored scores.

    Rows are {id, scores} with a list in the order of the candidates, {id, candidate, score} with candidates counted from 0, or
    {id, chosen_score, rejected_score} of a pair. Without ``id``, row n belongs to comparison n. Files that JudgeBench writes are
    read unchanged. Every comparison needs scores, and every row needs a comparison.
    """

    kind = "stored"
    reads_references = False

    def __init__(self, name: str, file: str | Path) -> None:
        super().__init__(name)
        self.source = str(file)
        self._file = Path(file)
        self._scores: dict[str, list[float]] = {}
        self._by_rank = False
        self._has_ids = False

    def check(self) -> None:
        """Read the file.

        Raises:
            PolarError: the file can't be read, or a row has none of the three forms; the message names row and field.
        """
        check_data(self._file)
        file = self._file if self._file.exists() else find_file(self._file)
        table = _Table()
        if _is_judgebench(file):
            self._scores = {key: list(pair) for key, pair in read_stored_scores(file).items()}
            self._has_ids = True
        else:
            for _ in read_rows(file, table.add):
                pass
            self._scores, self._by_rank, self._has_ids = table.finish(file)
        self.facts["scores_of"] = len(self._scores)

    def fit(self, comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
        """Check that there are scores of all comparisons and of no others.

        Raises:
            PolarError: the check fails; the message has the join key, the number of missing or extra ones, and the first of them.
        """
        missing: list[str] = []
        used: set[str] = set()
        joined, total = "", 0
        for total, comparison in enumerate(comparisons, 1):
            key, joined = self._key(comparison, total)
            if key in used:
                raise PolarError(f"{self.name}: two comparisons have the {joined} {key!r}: scores can't be joined by it")
            used.add(key)
            if key in self._scores:
                self._check_count(key, joined, comparison)
            else:
                missing.append(key)
            yield comparison
        self.facts["joined_by"] = joined
        if missing:
            missed = f"no scores of {len(missing):,} of {total:,} comparisons"
            raise PolarError(f"{self.name}: {missed}, joined by {joined}; the first: {missing[0]!r}")
        if not self.is_partial and (extra := self._scores.keys() - used):
            first = next(key for key in self._scores if key in extra)
            raise PolarError(
                f"{self.name}: {len(extra):,} stored scores have no comparison, joined by {joined}; the first: {first!r}"
            )

    def load(self) -> ComparisonScorer:
        """The contender itself, which has the scores already."""
        return self

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """The stored scores, which :meth:`fit` has checked."""
        for number, comparison in enumerate(comparisons, 1):
            scores = self._scores[self._key(comparison, number)[0]]
            if self._by_rank and comparison.ranks[0] > comparison.ranks[1]:
                scores = scores[::-1]
            yield scores

    def _key(self, comparison: Comparison, number: int) -> tuple[str, str]:
        """The join key of a comparison, and its description."""
        if not self._has_ids:
            return str(number), "row number"
        identity = identity_of(comparison)
        return (str(number), "row number, as the comparisons have no id") if identity is None else (identity, "id")

    def _check_count(self, key: str, joined: str, comparison: Comparison) -> None:
        n_candidates, n_scores = len(comparison.candidates), len(self._scores[key])
        if n_candidates != n_scores:
            raise PolarError(
                f"{self.name}: {n_scores} scores of {key!r} (joined by {joined}), which has {n_candidates} candidates"
            )


class _Table:
    """Collects rows of scores of one form by id."""

    def __init__(self) -> None:
        self._kind = ""
        self._has_ids: bool | None = None
        self._scores: dict[str, list[float]] = {}
        self._candidates: dict[str, dict[int, float]] = {}

    def add(self, row: Mapping[str, Any], _: RowRules) -> None:
        """Add the next row.

        Raises:
            InvalidRecord: it has none of the forms, or another form than the rows before.
        """
        kind = next((kind for kind in ("scores", "candidate", "chosen_score") if row.get(kind) is not None), "")
        if not kind:
            raise InvalidRecord("scores", "scores, or candidate and score, or chosen_score and rejected_score")
        if self._kind not in ("", kind):
            raise InvalidRecord(kind, f"{self._kind!r} as in the rows before")
        has_id = row.get("id") is not None
        if kind == "candidate" and not has_id:
            raise InvalidRecord("id", "the id of the candidate's comparison")
        if self._has_ids not in (None, has_id):
            raise InvalidRecord("id", "an id in every row, or in none")
        self._kind, self._has_ids = kind, has_id
        key = str(row["id"]) if has_id else str(len(self._scores) + 1)
        if kind == "candidate":
            index, by_candidate = _whole(row["candidate"]), self._candidates.setdefault(key, {})
            if index in by_candidate:
                raise InvalidRecord("candidate", f"one row for candidate {index} of {key!r}; there was one before")
            by_candidate[index] = _number("score", row.get("score"))
            return
        if key in self._scores:
            raise InvalidRecord("id", f"a unique id; an earlier row has {key!r}")
        pair = ("chosen_score", "rejected_score")
        self._scores[key] = _numbers(row["scores"]) if kind == "scores" else [_number(name, row.get(name)) for name in pair]

    def finish(self, file: Path) -> tuple[dict[str, list[float]], bool, bool]:
        """Scores by id, whether they are in the order of ranks, and whether the rows have ids.

        Raises:
            PolarError: candidates of an id are missing.
        """
        for key, by_candidate in self._candidates.items():
            if sorted(by_candidate) != list(range(len(by_candidate))):
                raise PolarError(
                    f"{file}: id {key!r} has the candidates {sorted(by_candidate)}: they must be counted from 0 on, without gaps"
                )
            self._scores[key] = [by_candidate[index] for index in range(len(by_candidate))]
        return self._scores, self._kind == "chosen_score", bool(self._has_ids)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, str):  # a cell of a table
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidRecord("scores", "a list of numbers") from None
    if not isinstance(value, list) or len(value) < 1:
        raise InvalidRecord("scores", "a list of numbers, one for each candidate")
    return [_number("scores", score) for score in value]


def _number(name: str, value: Any) -> float:
    if isinstance(value, str):  # a cell of CSV
        try:
            value = float(value)
        except ValueError:
            raise InvalidRecord(name, f"a number, not {value[:40]!r}") from None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise InvalidRecord(name, f"a finite number, not {value!r:.40}")
    return float(value)


def _whole(value: Any) -> int:
    number = _number("candidate", value)
    if number != int(number) or number < 0:
        raise InvalidRecord("candidate", f"a candidate's number from 0 on, not {value!r:.40}")
    return int(number)


def _is_judgebench(file: Path) -> bool:
    """Whether a file is an output file of JudgeBench: JSON lines of pairs with their judgments."""
    if file.suffix != ".jsonl":
        return False
    with file.open("rb") as lines:
        first = lines.readline(1 << 25)
    return b'"judgments"' in first and b'"pair_id"' in first
