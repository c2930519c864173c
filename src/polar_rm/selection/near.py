"""Near duplicates: MinHash signatures of word 5-grams, and the answers that nearly equal a better one.

A signature is 128 numbers. Two texts agree in a number with the probability of their Jaccard similarity, the share of n-grams
that they have in common (Broder 1997), so the share of agreeing numbers estimates it, with a standard error of at most 0.044. Of
every minimum only the lowest 16 bits are kept (Li and König 2010): 256 bytes a text. Candidates are texts that agree in all
numbers of a band.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from polar_rm.records import folded
from polar_rm.records.ngrams import ngram_hashes

Signatures = NDArray[np.uint16]
Ints = NDArray[np.int64]

N_HASHES = 128
"""Numbers of a signature."""
_NGRAM = 5
# Words, every sign (-1 is not 1), and every character of languages without spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]|_")
_RECALL = 0.99  # of pairs exactly as similar as the threshold, over the choice of bands
_MAX_COMPARED = 512  # answers that one answer is compared with
_CHUNK = 1 << 12

_generator = np.random.Generator(np.random.PCG64(20261127))
# Hash i of x is the upper half of a x modulo 2^64 with an odd a (Dietzfelbinger et al. 1997).
_FACTORS = _generator.integers(0, 2**63, N_HASHES, np.uint64) * np.uint64(2) + np.uint64(1)


def signature(text: str) -> Signatures:
    """The signature of a text: uint16 [128]. A text of fewer than five words is one n-gram; case and white space don't matter."""
    words = _WORD.findall(folded(text))
    grams = ngram_hashes(words, max(1, min(_NGRAM, len(words))))
    if not len(grams):
        return np.zeros(N_HASHES, np.uint16)
    # Chunks of n-grams bound the memory for very long texts.
    products = (grams[start : start + _CHUNK, None] * _FACTORS for start in range(0, len(grams), _CHUNK))
    minima = np.min([product.min(axis=0) for product in products], axis=0)
    return np.asarray((minima >> np.uint64(32)) & np.uint64(0xFFFF), np.uint16)


def find_near_duplicates(
    signatures: Signatures, order: Ints, cells: NDArray[np.uint64], similarity: float
) -> tuple[Ints, NDArray[np.float64], int]:
    """For each answer the better answer that it nearly equals, or -1; how similar they are; and how many comparisons were cut.

    An answer is dropped if it nearly equals an answer before it that is itself kept. signatures: uint16 [n, 128]. order: indices
    of the answers to compare, the best first. cells: uint64 [n]; only answers of one cell are compared. The last result counts
    answers that agree in a band with more than 512 kept ones, of which they were compared with 512.
    """
    copy_of = np.full(len(signatures), -1, np.int64)
    similarities = np.zeros(len(signatures))
    buckets = _shared_buckets(signatures, order, cells, similarity)
    suspects = order[(buckets >= 0).any(axis=1)]
    buckets = buckets[(buckets >= 0).any(axis=1)]
    n_bands = buckets.shape[1]
    least = math.ceil(similarity * N_HASHES - 1e-9)
    # The kept members of every bucket are a chain: ``last`` has the newest one, ``before`` the one before each, by band. The
    # number of a bucket is -1 if it has one member; the last element stands for all of these and stays empty.
    last = np.full(int(buckets.max(initial=-1)) + 2, -1, np.int32)
    before = np.full(buckets.shape, -1, np.int32)
    bands = np.arange(n_bands)
    n_cut = 0
    for number, index in enumerate(suspects.tolist()):
        kept, cut = _members(last[buckets[number]], before, bands)
        n_cut += cut
        if len(kept):
            agreeing = (signatures[suspects[kept]] == signatures[index]).sum(axis=1)
            best = int(agreeing.argmax())
            if agreeing[best] >= least:
                copy_of[index], similarities[index] = suspects[kept[best]], agreeing[best] / N_HASHES
                continue
        shared = buckets[number] >= 0
        before[number, shared] = last[buckets[number, shared]]
        last[buckets[number, shared]] = number
    return copy_of, similarities, n_cut


def rows_per_band(similarity: float) -> int:
    """The largest number of rows of a band with which 99% of pairs of this similarity agree in all rows of a band."""
    fits = [
        rows for rows in range(1, N_HASHES + 1) if similarity == 1 or 1 - (1 - similarity**rows) ** (N_HASHES // rows) >= _RECALL
    ]
    return max(fits)


def _shared_buckets(signatures: Signatures, order: Ints, cells: NDArray[np.uint64], similarity: float) -> NDArray[np.int32]:
    """The number of each answer's bucket in each band, counted over all bands; -1 where it is alone: int32 [n_order, n_bands]."""
    rows = rows_per_band(similarity)
    n_bands = N_HASHES // rows
    buckets = np.full((len(order), n_bands), -1, np.int32)
    n_buckets = 0
    for band in range(n_bands):
        keys = cells[order]
        for column in range(band * rows, (band + 1) * rows):
            keys = _mixed(keys ^ signatures[order, column])
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        number = np.cumsum(counts > 1) - 1 + n_buckets
        number[counts == 1] = -1
        buckets[:, band] = number[inverse]
        n_buckets += int((counts > 1).sum())
    return buckets


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijective mix of 64 bits (the end of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _members(newest: NDArray[np.int32], before: NDArray[np.int32], bands: NDArray[np.int64]) -> tuple[NDArray[np.int64], bool]:
    """The kept members of some buckets, at most 512, the newest first; and whether there are more."""
    found: set[int] = set()
    members, of_band = newest, bands
    while True:
        is_member = members >= 0
        if not is_member.any():
            return np.array(sorted(found), np.int64), False
        members, of_band = members[is_member], of_band[is_member]
        found.update(members.tolist())
        if len(found) > _MAX_COMPARED:
            return np.array(sorted(found)[:_MAX_COMPARED], np.int64), True
        members = before[members, of_band]
