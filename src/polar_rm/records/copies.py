"""Near copies of a text."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

# Near copies share this part of their character n-grams: with one character changed, a text of 200 still is a copy, a
# one-line answer is not.
_COPY_OVERLAP = 0.95
_COPY_NGRAM = 5

# Two near copies share the smallest hash of their n-grams with a probability of 0.95, so one of the eight smallest always.
_SKETCH = 8


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


def near_copies(texts: Sequence[str], others: Iterable[str]) -> Iterator[tuple[int, int]]:
    """The pairs (index of a text, index of another) that :func:`is_copy` finds, by the order of the others.

    Only pairs that share one of the smallest hashes of their n-grams (bottom-k sketches, Broder 1997) are compared, so that time
    grows with the number of texts and not with that of pairs.
    """
    by_hash: dict[int, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        for key in _sketch(text):
            by_hash[key].append(index)
    for number, other in enumerate(others):
        likely = sorted({index for key in _sketch(other) for index in by_hash.get(key, ())})
        yield from ((index, number) for index in likely if is_copy(texts[index], other))


def _sketch(text: str) -> list[int]:
    normal = " ".join(text.casefold().split())
    return sorted({zlib.crc32(gram.encode("utf-8", "surrogatepass")) for gram in _ngrams(normal)})[:_SKETCH] if normal else []


def _ngrams(text: str) -> set[str]:
    return {text[i : i + _COPY_NGRAM] for i in range(max(1, len(text) - _COPY_NGRAM + 1))}
