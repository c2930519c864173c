"""The first pass of an evaluation over the data: checks it, and collects pairs and facts before a model runs.

A missing reference in the last row of the last file then costs seconds, not the hours of scoring before this row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from polar_rm.errors import PolarError
from polar_rm.evaluation.contenders.base import Contender
from polar_rm.evaluation.groups import NO_GROUP, field_names, group_of, suggestion
from polar_rm.evaluation.pairs import PairCounter, Pairs
from polar_rm.evaluation.references import NEED_REFERENCES, MissingReferences, ReferenceMode, apply_reference_protocol
from polar_rm.records import PROTOCOL_FIELD, Comparison, flatten, is_copy, references_of


@dataclass(frozen=True, slots=True)
class Survey:
    """The results of the first pass.

    pairs: all ordered pairs. reference_equals_candidate: the number of comparisons whose reference is equal, or nearly, to a
    candidate; first_copy: the number of the first of them, from 1. several_references: the number of comparisons with more than
    one. protocols: origin of references -> number of comparisons; {} if references are not used. without_pairs: the number of
    comparisons whose candidates all have one rank. without_group: the number of comparisons that lack the key to group by.
    fingerprint: hash of prompts, candidates and ranks in order; equal fingerprints mean equal pairs.
    """

    pairs: Pairs
    reference_equals_candidate: int
    first_copy: int | None
    several_references: int
    protocols: dict[str, int]
    without_pairs: int
    without_group: int
    fingerprint: str

    def copy_warnings(self) -> list[str]:
        """The warning about references that equal a candidate."""
        message = "comparisons have a reference that is equal, or nearly, to one of their candidates"
        if self.first_copy is None:
            return []
        return [f"{self.reference_equals_candidate:,} {message}; the first is comparison {self.first_copy:,}"]


def survey(
    comparisons: Iterable[Comparison],
    *,
    by: str | None,
    reference: ReferenceMode,
    contenders: Sequence[Contender],
    seed: int = 0,
    pairs_needed: bool = True,
) -> Survey:
    """Check all comparisons, and fit the contenders to them.

    Raises:
        PolarError: there are no comparisons or no ordered pair (if ``pairs_needed``), references are missing that ``reference``
            needs (the message has their count and names the first), or no comparison has the key ``by``.
    """
    missing = MissingReferences()
    stream: Iterator[Comparison] = iter(comparisons)
    if reference in NEED_REFERENCES:
        stream = _note_missing(stream, missing)
    stream = apply_reference_protocol(stream, reference, seed=seed)
    for contender in contenders:
        stream = contender.fit(stream)
    collector = _Collector(by, counts_protocols=reference in NEED_REFERENCES)
    for comparison in stream:
        collector.add(comparison)
    count = collector.counter.n_comparisons
    if missing.count:
        raise PolarError(
            f"{missing.text(count)}; --reference empty evaluates all comparisons without references, --references FILE adds them"
        )
    return collector.finish(count, pairs_needed)


class _Collector:
    """Collects the values of :class:`Survey`."""

    def __init__(self, by: str | None, counts_protocols: bool) -> None:
        self._by, self._counts_protocols = by, counts_protocols
        self._protocols: Counter[str] = Counter()
        self.counter = PairCounter()
        self._copies = self._several = self._without_pairs = self._without_group = 0
        self._first_copy: int | None = None
        self._field_names: dict[str, None] = {}
        self._fingerprint = hashlib.sha256()

    def add(self, comparison: Comparison) -> None:
        group = group_of(comparison, self._by)
        self._without_pairs += not self.counter.add(comparison, group)
        references = [flatten(reference) for reference in references_of(comparison)]
        self._several += len(references) > 1
        candidates = [flatten(candidate) for candidate in comparison.candidates]
        if any(is_copy(*both) for both in product(references, candidates)):
            self._copies += 1
            self._first_copy = self._first_copy or self.counter.n_comparisons
        if self._counts_protocols:
            self._protocols[str(comparison.metadata.get(PROTOCOL_FIELD, "given"))] += 1
        if self._by is not None and group == NO_GROUP:
            self._without_group += 1
            self._field_names.update(dict.fromkeys(field_names(comparison.metadata)))
        texts = [flatten(text) for text in (comparison.prompt, *comparison.candidates)]
        self._fingerprint.update(json.dumps([texts, list(comparison.ranks)]).encode())

    def finish(self, count: int, pairs_needed: bool) -> Survey:
        if not count:
            raise PolarError("there are no comparisons to evaluate")
        pairs = self.counter.finish()
        if pairs_needed and not len(pairs):
            raise PolarError(f"none of {count:,} comparisons has two candidates of different rank")
        if self._by is not None and self._without_group == count:
            raise PolarError(f"no comparison has the metadata {self._by!r}{suggestion(self._by, list(self._field_names))}")
        references = self._copies, self._first_copy, self._several, dict(self._protocols)
        counts = *references, self._without_pairs, self._without_group
        return Survey(pairs, *counts, self._fingerprint.hexdigest())


def _note_missing(comparisons: Iterable[Comparison], missing: MissingReferences) -> Iterator[Comparison]:
    """missing: receives the comparisons without a reference."""
    for number, comparison in enumerate(comparisons, 1):
        if comparison.reference is None:
            missing.add(number, comparison)
            comparison = replace(comparison, reference="")
        yield comparison
