"""The first of evaluation's two passes: everything that can be refused or learnt before the model runs.

A missing reference in the last row of the last file should cost seconds, not the hours of scoring that precede it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from polar_rm.errors import PolarError
from polar_rm.evaluation.baselines import Baseline
from polar_rm.evaluation.references import ReferenceMode, apply_reference_protocol
from polar_rm.records import Comparison, flatten

NO_GROUP = "(none)"

# Near copies share this part of their character n-grams: with one character changed, a text of 200 still is a copy, a
# one-line answer is not.
_COPY_OVERLAP = 0.95
_COPY_NGRAM = 5


@dataclass(frozen=True, slots=True)
class Survey:
    """What the first pass saw.

    reference_equals_candidate: comparisons whose reference is a copy, or nearly, of a candidate. without_pairs:
    comparisons whose candidates all have one rank. without_group: comparisons that lack the key to group by.
    fingerprint: of prompts, candidates and ranks in order; equal fingerprints mean results about the same pairs.
    """

    n_comparisons: int
    n_pairs: int
    reference_equals_candidate: int
    without_pairs: int
    without_group: int
    fingerprint: str


def survey(
    comparisons: Iterable[Comparison],
    *,
    by: str | None,
    reference: ReferenceMode,
    baselines: Mapping[str, Baseline],
    seed: int = 0,
) -> Survey:
    """Check all comparisons, and fit the baselines on them.

    Raises:
        PolarError: no comparisons, no ordered pair, a missing reference (unless ``reference`` is ``empty``; the message
            says how many and which is the first), or a ``by`` that no comparison has.
    """
    missing: list[int] = []
    stream: Iterator[Comparison] = iter(comparisons)
    if reference != "empty":
        stream = _set_aside_missing(stream, missing)
    stream = apply_reference_protocol(stream, reference, seed=seed)
    for baseline in baselines.values():
        stream = baseline.fit(stream)
    count = n_pairs = copies = without_pairs = without_group = 0
    known: dict[str, None] = {}
    fingerprint = hashlib.sha256()
    for comparison in stream:
        count += 1
        pairs = len(comparison.pairs())
        n_pairs += pairs
        without_pairs += not pairs
        copies += any(is_copy(flatten(comparison.reference or ""), flatten(text)) for text in comparison.candidates)
        if by is not None and group_of(comparison, by) == NO_GROUP:
            without_group += 1
            known.update(dict.fromkeys(_keys(comparison.metadata)))
        texts = [flatten(text) for text in (comparison.prompt, *comparison.candidates)]
        fingerprint.update(json.dumps([texts, list(comparison.ranks)]).encode())
    if missing:
        raise PolarError(
            f"{len(missing):,} of {count + len(missing):,} comparisons have no reference, the first is comparison "
            f"{missing[0]:,}; --reference empty evaluates all comparisons without references"
        )
    if not count:
        raise PolarError("there are no comparisons to evaluate")
    if not n_pairs:
        raise PolarError(f"none of {count:,} comparisons has two candidates of different rank")
    if by is not None and without_group == count:
        raise PolarError(f"no comparison has the metadata {by!r}{_suggestion(by, list(known))}")
    return Survey(count, n_pairs, copies, without_pairs, without_group, fingerprint.hexdigest())


def is_copy(reference: str, candidate: str) -> bool:
    """Whether two texts are the same up to case and white space, or nearly (95% of their character 5-grams)."""
    reference, candidate = (" ".join(text.casefold().split()) for text in (reference, candidate))
    if not reference or reference == candidate:
        return bool(reference)
    shorter, longer = sorted((len(reference), len(candidate)))
    # Different lengths bound the overlap: n-grams, a costly set, are only made where it could suffice.
    if shorter < _COPY_OVERLAP * longer - _COPY_NGRAM:
        return False
    first, second = _ngrams(reference), _ngrams(candidate)
    return len(first & second) >= _COPY_OVERLAP * len(first | second)


def group_of(comparison: Comparison, by: str) -> str:
    """The value of a metadata key as text; ``meta.language`` looks into nested mappings, JSON text among them."""
    value: Any = comparison.metadata
    path = [by] if by in comparison.metadata else by.split(".")
    for key in path:
        value = _mapping(value).get(key)
    if value is None:
        return NO_GROUP
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _set_aside_missing(comparisons: Iterable[Comparison], missing: list[int]) -> Iterator[Comparison]:
    for number, comparison in enumerate(comparisons, 1):
        if comparison.reference is None:
            missing.append(number)
        else:
            yield comparison


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return {}  # a text that only looks like JSON has no keys
    return value if isinstance(value, Mapping) else {}


def _keys(metadata: Mapping[str, Any]) -> Iterator[str]:
    for key, value in metadata.items():
        yield key
        yield from (f"{key}.{inner}" for inner in _mapping(value))


def _suggestion(by: str, known: list[str]) -> str:
    if close := difflib.get_close_matches(by, known, 1):
        return f": did you mean {close[0]!r}?"
    return f"; there is: {', '.join(sorted(known)[:20])}" if known else "; there is no metadata at all"


def _ngrams(text: str) -> set[str]:
    return {text[i : i + _COPY_NGRAM] for i in range(max(1, len(text) - _COPY_NGRAM + 1))}
