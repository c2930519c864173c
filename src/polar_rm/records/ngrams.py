"""Hashes of the n-grams of words, by which corpora and selections find what texts share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15  # odd: multiplication by it loses no bits modulo 2^64


def ngram_hashes(words: Sequence[str], n: int) -> Hashes:
    """Polynomial hashes of all n-grams, equal on every machine: uint64 [max(0, len(words) - n + 1)]."""
    count = len(words) - n + 1
    if count < 1:
        return np.empty(0, np.uint64)
    each = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    total = np.zeros(count, np.uint64)
    for index in range(n):
        total = total * np.uint64(_BASE) + each[index : index + count]
    return total


@lru_cache(1 << 16)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
