"""The order of the comparisons in an epoch, as a function of (seed, epoch) that needs no list of them.

A Feistel network over the bits of an index is a permutation of ``[0, 2^bits)`` whatever its round function is, because each round
changes one half of the bits by a function of the other half and can be undone. Of a smaller range it becomes a permutation by
cycle walking: an index outside is mapped again until it is inside (Black and Rogaway, "Ciphers with arbitrary finite domains",
2002).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

VERSION = "feistel-1"
"""The name of this order. A run that began with another one must not go on with this one."""

# Few rounds mix large ranges well; ranges of a few indices, where a half is one bit, need many.
_ROUNDS = 24

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


class EpochOrder:
    """The permutation of ``range(n)`` that belongs to (seed, epoch)."""

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        self._n = np.uint64(n)
        bits = max(2, (n - 1).bit_length())
        self._low_bits = np.uint64(bits // 2)
        self._low = np.uint64((1 << bits // 2) - 1)
        self._high = np.uint64((1 << bits - bits // 2) - 1)
        self._keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)

    def __call__(self, positions: Indices) -> Indices:
        """The comparisons at these positions of the epoch: int64 [k] -> int64 [k]."""
        values = self._mapped(positions.astype(np.uint64))
        while len(outside := np.flatnonzero(values >= self._n)):
            values[outside] = self._mapped(values[outside])
        return values.astype(np.int64)

    def _mapped(self, values: np.ndarray) -> np.ndarray:
        high, low = values >> self._low_bits, values & self._low
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                low = low ^ (_mixed(high ^ key) & self._low)
            else:
                high = high ^ (_mixed(low ^ key) & self._high)
        mapped: np.ndarray = high << self._low_bits | low
        return mapped


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, in which every bit of the result depends on every bit of the value; uint64 [k]."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ values >> np.uint64(31)
    return mixed


def steps_per_epoch(n_comparisons: int, batch_size: int) -> int:
    """Steps of an epoch. The last step takes the rest, so that no comparison is dropped."""
    return -(-n_comparisons // batch_size)


def batches(n_comparisons: int, batch_size: int, *, seed: int, start_step: int = 0) -> Iterator[Indices]:
    """Indices of endless epochs, int64 arrays, one for each step. Step ``s`` is the same from whatever step a run resumes.

    A step takes the next ``batch_size`` comparisons of the epoch's order. So the global batch depends neither on the number of
    ranks nor on the row budget, and the position in the data is one integer: the step.
    """
    per_epoch = steps_per_epoch(n_comparisons, batch_size)
    epoch, offset = divmod(start_step, per_epoch)
    while True:
        order = EpochOrder(n_comparisons, seed, epoch)
        for step in range(offset, per_epoch):
            yield order(np.arange(step * batch_size, min(n_comparisons, (step + 1) * batch_size)))
        epoch, offset = epoch + 1, 0
