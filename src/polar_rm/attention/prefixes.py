"""Keys and values of prefixes that were computed before: a group whose candidates arrive in pieces computes its prefix once.

A row with kept tokens passes only its other tokens, the live ones, through the layers. In attention the kept keys and values
join those of the live tokens, and the kernel computes the same segments as without, but for the kept tokens.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from polar_rm.attention.layout import BLOCK, TreeTensors

# Shorter prefixes cost less to compute than to keep.
_MIN_TOKENS = 16


@dataclass
class Prefix:
    """The keys and values of a prefix in every layer, each [kv_heads, tokens, dim], as attention gets them."""

    ids: Sequence[int]
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        """Memory of all layers."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class PrefixStore:
    """Recent prefixes of one model with fixed weights, in bounded memory; the least recently used one goes first.

    A prefix is found by its ids, or by its first blocks of queries where another one begins alike: candidates of one group may
    begin alike, a conversation goes on. Whole blocks alone are taken of another prefix, so that nothing is rounded
    differently and a score does not depend on what was scored before it. For one thread. reused: number of tokens so far that
    were not computed again.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = self.reused = 0
        self._prefixes: OrderedDict[bytes, Prefix] = OrderedDict()
        self._sorted: list[bytes] = []  # the keys: what begins most alike is beside each other

    def __len__(self) -> int:
        return len(self._prefixes)

    def n_kept(self, ids: Sequence[int]) -> int:
        """The number of first ids whose keys and values need not be computed."""
        return self._longest(_key(ids))[1]

    def use(self, ids: Sequence[int]) -> tuple[Prefix, int] | None:
        """A prefix that begins with the first ``n_kept(ids)`` ids, and this number; it counts as used. None: there is none."""
        key, length = self._longest(_key(ids))
        if not length:
            return None
        self._prefixes.move_to_end(key)
        self.reused += length
        return self._prefixes[key], length

    def _longest(self, key: bytes) -> tuple[bytes, int]:
        """The kept key that has the longest common beginning with ``key``, and how many of its first ids can be taken."""
        place = bisect_left(self._sorted, key)
        neighbours = [(_common(key, other), other) for other in self._sorted[max(place - 1, 0) : place + 1]]
        length, nearest = max(neighbours, default=(0, b""))
        return nearest, length if nearest == key else length - length % BLOCK

    def add(self, prefix: Prefix) -> None:
        """Keep a computed prefix, unless it is short or larger than the whole memory."""
        size, key = prefix.n_bytes, _key(prefix.ids)
        if len(prefix.ids) < _MIN_TOKENS or size > self.max_bytes or key in self._prefixes:
            return
        self._prefixes[key] = prefix
        insort(self._sorted, key)
        self.n_bytes += size
        while self.n_bytes > self.max_bytes:
            oldest, removed = self._prefixes.popitem(last=False)
            self.n_bytes -= removed.n_bytes
            del self._sorted[bisect_left(self._sorted, oldest)]


_ID_BYTES = 4


def _key(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype=np.int32).tobytes()


def _common(first: bytes, second: bytes) -> int:
    """The number of ids with which both keys begin."""
    size = min(len(first), len(second))
    differ = np.flatnonzero(np.frombuffer(first[:size], np.int32) != np.frombuffer(second[:size], np.int32))
    return int(differ[0]) if len(differ) else size // _ID_BYTES


@dataclass(frozen=True)
class RowPrefixes:
    """The prefixes of one row of T tokens.

    tree: the tensors of the whole row, whose segments are those of the live tokens. live: int64 [L], the tokens that pass through
    the layers. kept: first token, content and number of the tokens that are not computed, of every tree that has some. new: first
    token of every prefix that is computed now, at least its end, and the prefix to keep, which attention fills.
    """

    tree: TreeTensors
    live: torch.Tensor
    kept: Sequence[tuple[int, Prefix, int]]
    new: Sequence[tuple[int, Prefix]]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        implementation: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, TreeTensors], torch.Tensor],
    ) -> torch.Tensor:
        """query [1, heads, L, dim], key and value [1, kv_heads, L, dim] of the live tokens -> [1, heads, L, dim]"""
        rows = [query, key, value] if not self.kept else [self._whole(tensor) for tensor in (query, key, value)]
        for start, prefix, length in self.kept:
            tokens = slice(start, start + length)
            rows[1][0, :, tokens], rows[2][0, :, tokens] = prefix.keys[layer][:, :length], prefix.values[layer][:, :length]
        for start, prefix in self.new:
            assert len(prefix.keys) == layer, "layers come in order"
            tokens = slice(start, start + len(prefix.ids))
            prefix.keys.append(rows[1][0, :, tokens].clone())
            prefix.values.append(rows[2][0, :, tokens].clone())
        output = implementation(rows[0], rows[1], rows[2], self.tree)
        return output[:, :, self.live] if self.kept else output

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """[1, heads, L, dim] -> [1, heads, T, dim], with zeros for the kept tokens."""
        row = tensor.new_zeros(1, tensor.shape[1], len(self.tree.trees), tensor.shape[3])
        return row.index_copy_(2, self.live, tensor)
