"""Files of samples with gold values as comparisons that contenders can score, and the table of the gold values.

The samples of a prompt need not be adjacent. Consecutive samples of a prompt are one comparison, whose candidates share a prefix;
the table says which samples belong together. Texts are not kept.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polar_rm.errors import BadRow
from polar_rm.evaluation.data import ComparisonFiles, check_limit
from polar_rm.evaluation.references import SAMPLE_IDS, identity_in, prompt_key
from polar_rm.evaluation.statistics import Floats, Ints
from polar_rm.records import (
    PROTOCOL_FIELD,
    Comparison,
    InvalidRecord,
    OnBadRow,
    RowRules,
    Samples,
    dump_json,
    flatten,
    read_rows,
    reference_hint,
    to_samples,
)

_MAX_CANDIDATES = 256  # of one comparison made of several rows; bounds the texts in memory


def to_sampled_comparison(rows: Sequence[Samples]) -> Comparison:
    """A comparison whose candidates are all samples of some rows with the same prompt, reference and policy.

    The ranks are equal: no pairs are compared. The metadata hold ``golds`` and ``copies``, a value for each candidate, the
    ``policy``, and the rows' ids.
    """
    first = rows[0]
    golds = [gold for row in rows for gold in row.golds]
    copies = [row.copies for row in rows for _ in row.golds]
    metadata: dict[str, Any] = {"golds": golds, "copies": copies, "policy": first.policy}
    ids = [identity_in(row.metadata) for row in rows]
    metadata |= {"id": ids[0]} if ids[0] is not None else {}
    metadata |= {PROTOCOL_FIELD: protocol} if (protocol := first.metadata.get(PROTOCOL_FIELD)) else {}
    if len(golds) == len(ids):
        metadata[SAMPLE_IDS] = ids
    candidates = tuple(output for row in rows for output in row.outputs)
    return Comparison(first.prompt, first.reference, candidates, (0,) * len(candidates), first.wrapper, metadata)


class SampleFiles(ComparisonFiles):
    """Files of samples as one stream of comparisons (see :func:`to_sampled_comparison`) that can be read several times.

    gold: the column of the gold values; None: see :func:`polar_rm.records.to_samples`. limit: the number of prompts to take, the
    first ones. needs_references: a row without a reference is an error, also where bad rows are skipped. The others: see
    :class:`ComparisonFiles`.

    Raises:
        PolarError: as in :class:`ComparisonFiles`, or ``limit`` is below 1.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        on_bad_row: OnBadRow | None = None,
        outputs: Sequence[str | Path] = (),
        *,
        gold: str | None = None,
        limit: int | None = None,
    ) -> None:
        check_limit(limit)
        super().__init__(paths, on_bad_row, outputs)
        self.needs_references = False
        self._gold, self._limit = gold, limit
        self._prompts: set[bytes] = set()
        self._references: dict[bytes, bytes] = {}

    def read_file(self, path: Path, on_bad_row: OnBadRow) -> Iterator[tuple[Comparison, int]]:
        """Read the comparisons of a file, each with the number of its rows."""
        run: list[Samples] = []
        for number, row in read_rows(path, self._to_samples, on_bad_row):
            if not self._is_taken(row):
                continue
            if self.needs_references and row.reference is None:
                ways = "--reference empty scores all samples without references, --references FILE adds them"
                hint = reference_hint(row.metadata)
                raise BadRow(str(path), number, "reference", f"a reference, but the row has none{hint}; {ways}")
            if run and (len(run) == _MAX_CANDIDATES or not _belong_together(run[0], row)):
                yield to_sampled_comparison(run), len(run)
                run = []
            run.append(row)
        if run:
            yield to_sampled_comparison(run), len(run)

    def _to_samples(self, row: Mapping[str, Any], rules: RowRules) -> Samples:
        try:
            samples = to_samples(row, self._gold, rules)
        except InvalidRecord as error:
            raise _with_way_out(error, self._gold, row) from None
        key = _digest(flatten(samples.prompt), samples.policy)
        shared = _digest(samples.reference, samples.wrapper)
        if self._references.setdefault(key, shared) != shared:
            raise InvalidRecord("reference", "the reference and wrapper of the earlier rows with this prompt and policy")
        return samples

    def _is_taken(self, row: Samples) -> bool:
        if self._limit is None:
            return True
        key = _digest(flatten(row.prompt))
        if len(self._prompts) < self._limit:
            self._prompts.add(key)
        return key in self._prompts


def _belong_together(first: Samples, second: Samples) -> bool:
    """Whether two rows become one comparison; a row with several outputs is a comparison of its own."""
    if len(first.outputs) > 1 or len(second.outputs) > 1:
        return False
    return all(getattr(first, name) == getattr(second, name) for name in ("prompt", "reference", "wrapper", "policy"))


def _digest(*values: Any) -> bytes:
    return hashlib.blake2b(dump_json(values).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _with_way_out(error: InvalidRecord, gold: str | None, row: Mapping[str, Any]) -> InvalidRecord:
    """The error; where it is about the gold value, with the option that helps."""
    names = [gold] if gold else ["gold", "golds"]
    if error.field not in names:
        return error
    if error.field in row:
        return InvalidRecord(error.field, f"{error.expected}; --on-bad-row skip leaves out the samples without a gold value")
    numbers = [str(name) for name, value in row.items() if isinstance(value, (bool, int, float))]
    columns = f" (columns with numbers: {', '.join(numbers[:20])})" if numbers else ""
    return InvalidRecord(error.field, f"{error.expected}; --gold names the column of the gold values{columns}")


@dataclass(frozen=True, slots=True)
class SampleTable:
    """The samples of all groups, without texts. A group is the samples of one policy for one prompt.

    golds: float64 [n_rows]. copies: how many samples a row stands for. groups: the group of each row; int64 [n_rows], counted in
    order of appearance. prompts: the prompt of each group, int64 [n_groups]. n_policies: policies that rows name.
    """

    golds: Floats
    copies: Ints
    groups: Ints
    prompts: Ints
    n_policies: int

    def samples(self, values: Floats) -> list[Floats]:
        """The values of each group's samples, copies repeated. values: float64 [n_rows]."""
        order = np.argsort(self.groups, kind="stable")
        ends = np.cumsum(np.bincount(self.groups, self.copies, len(self.prompts)).astype(np.int64))
        return np.split(np.repeat(values[order], self.copies[order]), ends[:-1])


class TableBuilder:
    """Collects a :class:`SampleTable` while comparisons pass by."""

    def __init__(self) -> None:
        self._golds, self._copies, self._groups, self._prompts = array("d"), array("q"), array("q"), array("q")
        self._group_numbers: dict[tuple[str, str | None], int] = {}
        self._prompt_numbers: dict[str, int] = {}
        self._policies: set[str | None] = set()

    def watch(self, comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
        """Pass comparisons on, after adding their samples to the table."""
        for comparison in comparisons:
            key, policy = prompt_key(comparison), comparison.metadata["policy"]
            if (group := self._group_numbers.setdefault((key, policy), len(self._group_numbers))) == len(self._prompts):
                self._prompts.append(self._prompt_numbers.setdefault(key, len(self._prompt_numbers)))
            self._policies.add(policy)
            self._golds.extend(comparison.metadata["golds"])
            self._copies.extend(comparison.metadata["copies"])
            self._groups.extend([group] * len(comparison.candidates))
            yield comparison

    def finish(self) -> SampleTable:
        """The table of everything that was seen."""
        golds = np.array(self._golds, np.float64)
        copies, groups, prompts = (np.array(column, np.int64) for column in (self._copies, self._groups, self._prompts))
        return SampleTable(golds, copies, groups, prompts, len(self._policies - {None}))
