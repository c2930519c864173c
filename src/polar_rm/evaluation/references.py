"""The interface of scorers, and the reference protocols of an evaluation."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from polar_rm.errors import PolarError
from polar_rm.records import (
    PROTOCOL_FIELD,
    Comparison,
    InvalidRecord,
    Reference,
    RowRules,
    as_reference,
    flatten,
    read_rows,
    reference_hint,
)
from polar_rm.records.fields import Fields

ReferenceMode = Literal["given", "empty", "shuffled", "swapped"]
"""The source of references. given: the references of the data. empty: no references. shuffled: the reference of another prompt.
swapped: a worse answer to the same prompt, which is a candidate of the worst rank."""

ReferenceChoice = ReferenceMode | Literal["all"]
"""all: every mode on the same pairs, with gain and adherence of each contender."""

NEED_REFERENCES: tuple[ReferenceMode, ...] = ("given", "shuffled")
"""The protocols that use the references of the data; the others replace them."""

ID_FIELDS = ("id", "pair_id")
"""The metadata keys that may identify a comparison in other files; the first existing one is used."""

SAMPLE_IDS = "sample_ids"
"""Metadata of a comparison whose candidates come from rows of their own: the ids of these rows, None where a row has none."""

# The number of comparisons among which shuffled references are exchanged. It bounds memory, and in a file sorted by subject a
# wrong reference remains near the subject.
_SHUFFLE_WINDOW = 1024


class ComparisonScorer(Protocol):
    """Anything that scores candidates: a reward model's ``Scorer``, a baseline, a client of a server."""

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """A list of scores for each comparison, in order, with one score for each candidate; a higher score is better."""
        ...


class MissingReferences:
    """Comparisons without a reference: their count, and the first one by its number."""

    def __init__(self) -> None:
        self.count, self._first = 0, ""

    def add(self, number: int, comparison: Comparison) -> None:
        """Count a comparison. number: from 1."""
        self._first = self._first or f"comparison {number:,}{reference_hint(comparison.metadata)}"
        self.count += 1

    def text(self, total: int) -> str:
        """The beginning of a message. total: the number of all comparisons."""
        return f"{self.count:,} of {total:,} comparisons have no reference, the first is {self._first}"


def prompt_key(comparison: Comparison) -> str:
    """The hash of a comparison's prompt text. Ids are not used, because different prompts of several files may have equal ids."""
    return hashlib.sha256(flatten(comparison.prompt).encode("utf-8", "surrogatepass")).hexdigest()


def apply_reference_protocol(comparisons: Iterable[Comparison], mode: ReferenceMode, *, seed: int = 0) -> Iterator[Comparison]:
    """Comparisons with the references of a protocol: given, empty, exchanged between prompts, or replaced by a worse answer.

    All protocols but ``given`` are diagnostics. With ``empty`` and ``shuffled`` (another prompt's reference) the accuracy of a
    model that uses its reference falls, and with ``swapped`` it falls further. ``empty`` empties every reference, so that a
    number never mixes two protocols. With ``swapped`` the reference equals one of the candidates (see :func:`swapped_candidate`);
    reports have the number of these pairs.

    Raises:
        PolarError: the mode is unknown, a comparison lacks a reference that the mode needs, or there is nothing to exchange with.
    """
    if mode not in get_args(ReferenceMode):
        raise PolarError(f"unknown reference mode {mode!r}; known: {', '.join(get_args(ReferenceMode))}")
    if mode == "empty":
        return (replace(comparison, reference="") for comparison in comparisons)
    if mode == "swapped":
        return _swapped(comparisons, seed)
    given = _with_reference(comparisons)
    return given if mode == "given" else _shuffled(given, seed)


def swapped_candidate(comparison: Comparison, number: int, *, seed: int = 0) -> int:
    """The index of the candidate that ``swapped`` uses as the reference: one of the worst rank, drawn by seed and number.

    number: the number of the comparison, from 1.
    """
    worst = [index for index, rank in enumerate(comparison.ranks) if rank == max(comparison.ranks)]
    return worst[0] if len(worst) == 1 else random.Random(f"{seed} {number}").choice(worst)


def _swapped(comparisons: Iterable[Comparison], seed: int) -> Iterator[Comparison]:
    for number, comparison in enumerate(comparisons, 1):
        yield replace(comparison, reference=comparison.candidates[swapped_candidate(comparison, number, seed=seed)])


def _with_reference(comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
    for number, comparison in enumerate(comparisons, 1):
        if comparison.reference is None:
            hint = reference_hint(comparison.metadata)
            raise PolarError(f"comparison {number} has no reference{hint}; --reference empty evaluates all without references")
        yield comparison


def _shuffled(comparisons: Iterable[Comparison], seed: int) -> Iterator[Comparison]:
    for comparison, other in with_others(comparisons, seed=seed):
        yield replace(comparison, reference=other.reference or "")


def with_others(comparisons: Iterable[Comparison], *, seed: int = 0) -> Iterator[tuple[Comparison, Comparison]]:
    """Every comparison with a comparison of another prompt, drawn from a window of the data, so that memory is constant.

    Raises:
        PolarError: all comparisons have one prompt.
    """
    generator, comparisons = np.random.default_rng(seed), iter(comparisons)
    others: dict[str, list[Comparison]] = {}
    while window := list(islice(comparisons, _SHUFFLE_WINDOW)):
        while len(set(map(prompt_key, window))) < 2 and (more := list(islice(comparisons, _SHUFFLE_WINDOW))):
            window += more
        # The last window may hold a single prompt; the window before it then has others.
        earlier, others = others, {}
        for comparison in window:
            others.setdefault(prompt_key(comparison), []).append(comparison)
        available = others if len(others) > 1 else {**earlier, **others}
        if len(available) < 2:
            raise PolarError("texts can only be exchanged between at least two prompts")
        # A cycle through the prompts in random order, so that no comparison gets a text of its own prompt.
        keys = list(available)
        order = [keys[i] for i in generator.permutation(len(keys))]
        donor_of = dict(zip(order, order[1:] + order[:1], strict=True))
        for comparison in window:
            donors = available[donor_of[prompt_key(comparison)]]
            yield comparison, donors[int(generator.integers(len(donors)))]


class Referenced:
    """Comparisons with the references of a file, as a stream that can be read several times.

    source: rows {id, reference} or {prompt, reference}, or with a list ``references`` in its place. The former are joined by the
    ``id`` (or ``pair_id``) of the comparisons' metadata, and may have it in their own metadata; the latter are joined by the
    prompt's text. All rows are held in memory. Every comparison needs a row, whose references replace the comparison's own. If a
    row has the origin of its reference (``reference_protocol``), the comparison gets it, too.

    Raises:
        PolarError: the file can't be read, has neither form, or has two references for one id or prompt.
    """

    def __init__(self, comparisons: Iterable[Comparison], source: str | Path) -> None:
        self._comparisons, self._source = comparisons, source
        self._by_id = False
        self._references: dict[str, Reference] = {}
        self._protocols: dict[str, str] = {}
        for _ in read_rows(source, self._add):
            pass

    def _add(self, row: Mapping[str, Any], rules: RowRules) -> None:
        take = Fields(row, rules.is_cell)
        reference = as_reference(take.references() or [take.text("reference")])
        prompt = take.optional(take.text, "prompt")
        metadata = take.metadata()
        identity = identity_in(metadata)
        if self._references and self._by_id != (identity is not None):
            raise InvalidRecord("id", "an id in every row, or in none")
        self._by_id = identity is not None
        if identity is None and prompt is None:
            raise InvalidRecord("prompt", "a prompt, or an id")
        key = flatten(prompt or "") if identity is None else identity
        if self._references.setdefault(key, reference) != reference:
            name = "prompt" if identity is None else "id"
            raise InvalidRecord("reference", f"one reference for each {name}; an earlier row has another for {key[:60]!r}")
        if protocol := metadata.get(PROTOCOL_FIELD):
            self._protocols[key] = str(protocol)

    def __iter__(self) -> Iterator[Comparison]:
        for number, comparison in enumerate(self._comparisons, 1):
            key = identity_of(comparison) if self._by_id else flatten(comparison.prompt)
            if key is None or key not in self._references:
                joined = f"id {key!r}" if self._by_id else "prompt"
                raise PolarError(f"{self._source}: no reference for comparison {number} (joined by its {joined})")
            metadata = {name: value for name, value in comparison.metadata.items() if name != PROTOCOL_FIELD}
            if key in self._protocols:
                metadata[PROTOCOL_FIELD] = self._protocols[key]
            yield replace(comparison, reference=self._references[key], metadata=metadata)


def identity_of(comparison: Comparison) -> str | None:
    """The id of a comparison in other files: the first of :data:`ID_FIELDS` that its metadata has; None if it has none."""
    return identity_in(comparison.metadata)


def identity_in(metadata: Mapping[str, Any]) -> str | None:
    """The first of :data:`ID_FIELDS` that metadata have, as text."""
    return next((str(metadata[name]) for name in ID_FIELDS if metadata.get(name) is not None), None)
