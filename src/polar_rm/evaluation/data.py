"""The data of an evaluation: streams of comparisons that can be read several times, and descriptions of their files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from polar_rm.common.files import sha256
from polar_rm.common.manifests import check_manifest
from polar_rm.errors import PolarError
from polar_rm.evaluation.report import DataFile
from polar_rm.records import Comparison, OnBadRow, read_comparisons, survey_files


class ComparisonFiles:
    """Files of comparisons as one stream that can be read several times; only the first pass reports bad rows.

    paths: files, folders or patterns, as :func:`survey_files` takes them; the attribute holds all files that they match.
    rows: the number of rows that the latest pass read from each file. outputs: files that this run writes; they are
    refused as data. several_references: accept comparisons with several references.

    Raises:
        PolarError: a path matches no data or a file that this run writes, or a folder differs from its manifest.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        on_bad_row: OnBadRow | None = None,
        outputs: Sequence[str | Path] = (),
        *,
        several_references: bool = False,
    ) -> None:
        for path in paths:
            check_manifest(path)
        self._selection = survey_files(paths, outputs)
        self.paths = list(self._selection.files)
        self.rows = [0] * len(self.paths)
        self._on_bad_row = on_bad_row or OnBadRow()
        self._passes = 0
        self._several_references = several_references

    def __iter__(self) -> Iterator[Comparison]:
        bad = replace(self._on_bad_row, side_file=os.devnull, notes={}) if self._passes else self._on_bad_row
        self._passes += 1
        for number, path in enumerate(self.paths):
            self.rows[number] = 0
            for comparison, rows in self.read_file(path, bad):
                self.rows[number] += rows
                yield comparison

    def read_file(self, path: Path, on_bad_row: OnBadRow) -> Iterator[tuple[Comparison, int]]:
        """Read the comparisons of a file, each with the number of its rows."""
        return ((comparison, 1) for comparison in read_comparisons(path, on_bad_row, several_references=self._several_references))

    def describe(self) -> list[DataFile]:
        """Path, hash and rows of every file, after a pass."""
        files = zip(self.paths, self.rows, strict=True)
        return [{"path": str(path), "sha256": sha256(path), "rows": rows} for path, rows in files]

    def warnings(self) -> list[str]:
        """The warnings of a report about its data, after a pass: skipped rows, altered texts, files that were left out."""
        bad = self._on_bad_row
        lines = [f"{bad.count:,} bad rows were skipped, see {bad.side_file}"] if bad.count else []
        note = self._selection.note() if self._selection.left_out else None
        return [*lines, *bad.warnings(), *([note] if note else [])]


def check_limit(limit: int | None) -> None:
    """Refuse a limit that takes nothing.

    Raises:
        PolarError: it is below 1.
    """
    if limit is not None and limit < 1:
        raise PolarError(f"limit must be at least 1, not {limit}")


@dataclass(frozen=True, slots=True)
class First:
    """The first ``limit`` comparisons of a stream that can be read several times; all comparisons if ``limit`` is None.

    Raises:
        PolarError: ``limit`` is below 1.
    """

    comparisons: Iterable[Comparison]
    limit: int | None

    def __post_init__(self) -> None:
        check_limit(self.limit)

    def __iter__(self) -> Iterator[Comparison]:
        return islice(iter(self.comparisons), self.limit)
