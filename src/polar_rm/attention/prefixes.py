"""Keys and values of prefixes that were computed before: a group whose candidates arrive in pieces computes its prefix once.

A row with kept prefixes passes only its other tokens, the live ones, through the layers. In attention the kept keys and values
join those of the live tokens, and the kernel computes the same segments as without, but for the kept prefixes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from polar_rm.attention.layout import TreeTensors

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

    For one thread. reused: number of tokens so far that were not computed again.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = self.reused = 0
        self._prefixes: OrderedDict[bytes, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prefixes)

    def __contains__(self, ids: Sequence[int]) -> bool:
        return _key(ids) in self._prefixes

    def get(self, ids: Sequence[int]) -> Prefix | None:
        """The prefix with exactly these ids, which counts as used."""
        key = _key(ids)
        if key not in self._prefixes:
            return None
        self._prefixes.move_to_end(key)
        self.reused += len(ids)
        return self._prefixes[key]

    def add(self, prefix: Prefix) -> None:
        """Keep a computed prefix, unless it is short or larger than the whole memory."""
        size, key = prefix.n_bytes, _key(prefix.ids)
        if len(prefix.ids) < _MIN_TOKENS or size > self.max_bytes or key in self._prefixes:
            return
        self._prefixes[key] = prefix
        self.n_bytes += size
        while self.n_bytes > self.max_bytes:
            _, oldest = self._prefixes.popitem(last=False)
            self.n_bytes -= oldest.n_bytes


def _key(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype=np.int32).tobytes()


@dataclass(frozen=True)
class RowPrefixes:
    """The prefixes of one row of T tokens.

    tree: the tensors of the whole row, without the segments of kept prefixes. live: int64 [L], the tokens that pass through the
    layers. kept: first token and content of every kept prefix. new: the same of those that are computed now, which attention
    fills.
    """

    tree: TreeTensors
    live: torch.Tensor
    kept: Sequence[tuple[int, Prefix]]
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
        for start, prefix in self.kept:
            tokens = slice(start, start + len(prefix.ids))
            rows[1][0, :, tokens], rows[2][0, :, tokens] = prefix.keys[layer], prefix.values[layer]
        for start, prefix in self.new:
            assert len(prefix.keys) == layer, "layers come in order"
            tokens = slice(start, start + len(prefix.ids))
            prefix.keys.append(rows[1][0, :, tokens].clone())
            prefix.values.append(rows[2][0, :, tokens].clone())
        output = implementation(rows[0], rows[1], rows[2], self.tree)
        return output[:, :, self.live] if self.kept else output

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """[1, heads, L, dim] -> [1, heads, T, dim], with zeros for the tokens of kept prefixes."""
        row = tensor.new_zeros(1, tensor.shape[1], len(self.tree.trees), tensor.shape[3])
        return row.index_copy_(2, self.live, tensor)
