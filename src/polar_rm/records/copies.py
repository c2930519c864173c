"""Near copies of a text."""

from __future__ import annotations

# Near copies share this part of their character n-grams: with one character changed, a text of 200 still is a copy, a
# one-line answer is not.
_COPY_OVERLAP = 0.95
_COPY_NGRAM = 5


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


def _ngrams(text: str) -> set[str]:
    return {text[i : i + _COPY_NGRAM] for i in range(max(1, len(text) - _COPY_NGRAM + 1))}
