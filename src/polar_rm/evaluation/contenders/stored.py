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
from polar_rm.evaluation.references import SAMPLE_IDS, ComparisonScorer, identity_in, identity_of
from polar_rm.evaluation.suites.judgebench import read_stored_scores
from polar_rm.records import Comparison, InvalidRecord, RowRules, find_file, read_rows


class Stored(Contender):
    """``scores:FILE``: stored scores.

    Rows are {id, scores} with a list in the order of the candidates, {id, candidate, score} with candidates counted from 0, or
    {id, chosen_score, rejected_score} of a pair. Without ``id``, row n belongs to comparison n. Rows {id, score} (or the output
    of ``polar score``) belong to samples that are a row each, as ``polar bestofn`` reads them; without ``id``, row n belongs to
    sample n. Files that JudgeBench writes are read unchanged. Every comparison or sample needs scores, and every row needs one.
    """

    kind = "stored"
    reads_references = False

    def __init__(self, name: str, file: str | Path) -> None:
        super().__init__(name)
        self.source = str(file)
        self._file = Path(file)
        self._scores: dict[str, list[float]] = {}
        self._by_rank = self._by_sample = False
        self._has_ids = False

    def check(self) -> None:
        """Read the file.

        Raises:
            PolarError: the file can't be read, or a row has none of the forms; the message names row and field.
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
            self._scores, self._has_ids = table.finish(file)
            self._by_rank, self._by_sample = table.kind == "chosen_score", table.kind == "score"
        self.facts["scores_of"] = len(self._scores)

    def fit(self, comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
        """Check that there are scores of all comparisons, or of all samples, and of no others.

        Raises:
            PolarError: the check fails; the message has the join key, the number of missing or extra ones, and the first of them.
        """
        missing: list[str] = []
        used: set[str] = set()
        joined, kind = "", "sample" if self._by_sample else "comparison"
        for comparison, keys, joined in self._joined(comparisons):
            for key in keys:
                if key in used:
                    raise PolarError(f"{self.name}: two {kind}s have the {joined} {key!r}: scores can't be joined by it")
                used.add(key)
                if key not in self._scores:
                    missing.append(key)
                elif not self._by_sample:
                    self._check_count(key, joined, comparison)
            yield comparison
        self.facts["joined_by"] = joined
        if missing:
            missed = f"no scores of {len(missing):,} of {len(used):,} {kind}s"
            raise PolarError(f"{self.name}: {missed}, joined by {joined}; the first: {missing[0]!r}")
        if not self.is_partial and (extra := self._scores.keys() - used):
            first = next(key for key in self._scores if key in extra)
            raise PolarError(
                f"{self.name}: {len(extra):,} stored scores have no {kind}, joined by {joined}; the first: {first!r}"
            )

    def load(self) -> ComparisonScorer:
        """The contender itself, which has the scores already."""
        return self

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """The stored scores, which :meth:`fit` has checked."""
        for comparison, keys, _ in self._joined(comparisons):
            scores = [score for key in keys for score in self._scores[key]]
            if self._by_rank and comparison.ranks[0] > comparison.ranks[1]:
                scores = scores[::-1]
            yield scores

    def _joined(self, comparisons: Iterable[Comparison]) -> Iterator[tuple[Comparison, list[str], str]]:
        """Each comparison with its join keys, one for all candidates or one for each sample, and the description of the keys."""
        number = 0
        for comparison in comparisons:
            identities: list[str | None] = [identity_of(comparison)]
            if self._by_sample:
                if SAMPLE_IDS not in comparison.metadata:
                    raise PolarError(f"{self.name}: scores without candidate belong to samples in rows of their own")
                identities = comparison.metadata[SAMPLE_IDS]
            numbers = [str(number + i) for i in range(1, len(identities) + 1)]
            number += len(identities)
            known = [identity for identity in identities if identity is not None]
            if self._has_ids and len(known) == len(identities):
                yield comparison, known, "id"
            else:
                kind = "samples" if self._by_sample else "comparisons"
                yield comparison, numbers, f"row number, as the {kind} have no id" if self._has_ids else "row number"

    def _check_count(self, key: str, joined: str, comparison: Comparison) -> None:
        n_candidates, n_scores = len(comparison.candidates), len(self._scores[key])
        if n_candidates != n_scores:
            raise PolarError(
                f"{self.name}: {n_scores} scores of {key!r} (joined by {joined}), which has {n_candidates} candidates"
            )


class _Table:
    """Collects rows of scores of one form by id. kind: the form, by the field that it is known by."""

    def __init__(self) -> None:
        self.kind = ""
        self._has_ids: bool | None = None
        self._scores: dict[str, list[float]] = {}
        self._candidates: dict[str, dict[int, float]] = {}

    def add(self, row: Mapping[str, Any], _: RowRules) -> None:
        """Add the next row.

        Raises:
            InvalidRecord: it has none of the forms, or another form than the rows before.
        """
        kind = next(
            (kind for kind in ("scores", "candidate", "chosen_score", "score", "reward") if row.get(kind) is not None), ""
        )
        if not kind:
            raise InvalidRecord("scores", "scores, or candidate and score, or chosen_score and rejected_score, or score")
        value = row.get(kind)
        kind = "score" if kind == "reward" else kind  # of ``polar score``, without a transform
        if self.kind not in ("", kind):
            raise InvalidRecord(kind, f"{self.kind!r} as in the rows before")
        identity = _identity(row)
        has_id = identity is not None
        if kind == "candidate" and not has_id:
            raise InvalidRecord("id", "the id of the candidate's comparison")
        if self._has_ids not in (None, has_id):
            raise InvalidRecord("id", "an id in every row, or in none")
        self.kind, self._has_ids = kind, has_id
        key = str(len(self._scores) + 1) if identity is None else identity
        if kind == "candidate":
            index, by_candidate = _whole(row["candidate"]), self._candidates.setdefault(key, {})
            if index in by_candidate:
                raise InvalidRecord("candidate", f"one row for candidate {index} of {key!r}; there was one before")
            by_candidate[index] = _number("score", row.get("score"))
            return
        if key in self._scores:
            raise InvalidRecord("id", f"a unique id; an earlier row has {key!r}")
        match kind:
            case "scores":
                self._scores[key] = _numbers(value)
            case "score":
                self._scores[key] = [_number(kind, value)]
            case _:
                self._scores[key] = [_number(name, row.get(name)) for name in ("chosen_score", "rejected_score")]

    def finish(self, file: Path) -> tuple[dict[str, list[float]], bool]:
        """Scores by id, and whether the rows have ids.

        Raises:
            PolarError: candidates of an id are missing.
        """
        for key, by_candidate in self._candidates.items():
            if sorted(by_candidate) != list(range(len(by_candidate))):
                raise PolarError(
                    f"{file}: id {key!r} has the candidates {sorted(by_candidate)}: they must be counted from 0 on, without gaps"
                )
            self._scores[key] = [by_candidate[index] for index in range(len(by_candidate))]
        return self._scores, bool(self._has_ids)


def _identity(row: Mapping[str, Any]) -> str | None:
    """The row's id; ``polar score`` writes it into the metadata."""
    if row.get("id") is not None:
        return str(row["id"])
    metadata = row.get("metadata")
    return identity_in(metadata) if isinstance(metadata, Mapping) else None


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
