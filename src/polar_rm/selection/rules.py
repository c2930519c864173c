"""The rules of a selection, applied in the order of :data:`RULES` to the numbers of all candidates.

Every rule prefers the higher score. Of equal scores it prefers the smaller hash of prompt, answer and other columns, so that the
order of files and rows decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal

import numpy as np
from numpy.typing import NDArray

from polar_rm.errors import ConfigError
from polar_rm.selection.config import SelectConfig, Within
from polar_rm.selection.near import find_near_duplicates
from polar_rm.selection.pairing import find_partners
from polar_rm.selection.table import Ints, Table

Mask = NDArray[np.bool_]

RULES = ("copies", "length", "near_duplicates", "threshold", "best_of_n", "partner", "top_share", "quotas")
"""The rules in their order. copies: an answer that another row has too, to the same prompt; always dropped. partner: for pairs,
an answer without a worse one by the margin."""

POOL_RULES = RULES[:3]
"""The rules that rejected answers have to pass, too."""


@dataclass(slots=True)
class Selection:
    """What the rules decided.

    preference: the place of each candidate in the order of preference, 0 the best. dropped_by: for each candidate the index in
    :data:`RULES` of the rule that dropped it, or -1; int8 [n]. applied: the rules that were applied. copy_of, similarities: for
    each near duplicate the better answer and how similar they are; int64 and float64 [n], -1 for others. partners: for pairs, the
    rejected answer of each selected one; int64 [n], -1 for others. cut: candidates that were compared with only a part of the
    answers that may be near duplicates. cells: rule -> the cell within which each candidate competed, for rules that rank.
    """

    preference: Ints
    dropped_by: NDArray[np.int8]
    applied: tuple[str, ...]
    copy_of: Ints
    similarities: NDArray[np.float64]
    partners: Ints
    cut: int = 0
    cells: dict[str, Ints] = field(default_factory=dict)

    @property
    def selected(self) -> Ints:
        """The indices of the selected candidates, in the order of the input."""
        return np.flatnonzero(self.dropped_by < 0)

    @property
    def rejected(self) -> Ints:
        """The indices of the rejected answers of all pairs, in the order of :attr:`selected`; empty if there are no pairs."""
        partners = self.partners[self.selected]
        return partners[partners >= 0]

    def passed(self, rule: str) -> Mask:
        """The candidates that a rule kept, and all rules before it: bool [n]."""
        return (self.dropped_by < 0) | (self.dropped_by > RULES.index(rule))


def select_rows(table: Table, config: SelectConfig) -> Selection:
    """Apply the rules.

    Raises:
        ConfigError: a quota is for a group that no row has.
    """
    n = len(table)
    preference = np.empty(n, np.int64)
    preference[np.lexsort((table.ties, -table.scores))] = np.arange(n)
    none = np.full(n, -1, np.int64)
    selection = Selection(preference, np.full(n, -1, np.int8), (), none, np.zeros(n), none.copy())
    state = _State(table, config, selection)
    steps: dict[str, Callable[[_State], Mask] | None] = {
        "copies": _without_copies,
        "length": _of_length if config.length else None,
        "near_duplicates": _without_near_duplicates if config.near_duplicates else None,
        "threshold": _above_threshold if config.threshold else None,
        "best_of_n": _best_of_n if config.best_of else None,
        "partner": _with_partner if config.kind == "pairs" else None,
        "top_share": _top_share if config.top_share else None,
        "quotas": _within_quotas if config.quotas else None,
    }
    applied = []
    for number, rule in enumerate(RULES):
        if step := steps[rule]:
            keep = step(state)
            selection.dropped_by[state.kept & ~keep] = number
            applied.append(rule)
    selection.applied = tuple(applied)
    return selection


@dataclass(frozen=True, slots=True)
class _State:
    table: Table
    config: SelectConfig
    selection: Selection

    @property
    def kept(self) -> Mask:
        return np.asarray(self.selection.dropped_by < 0)

    def best(self, cells: Ints, limit: Callable[[Ints], Ints]) -> Mask:
        """The best candidates of each cell. limit: the sizes of all cells -> the number to keep of each."""
        indices = np.flatnonzero(self.kept)
        indices = indices[np.lexsort((self.selection.preference[indices], cells[indices]))]
        sizes = np.bincount(cells[indices], minlength=int(cells.max(initial=-1)) + 1)
        place = np.arange(len(indices)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        mask = np.zeros(len(cells), bool)
        mask[indices[place < limit(sizes)[cells[indices]]]] = True
        return mask

    def cells(self, within: Within) -> Ints:
        if within == "all":
            return np.zeros(len(self.table), np.int64)
        return self.table.prompts if within == "prompt" else self.table.groups


def share_of(count: int, share: float) -> int:
    """A share of a number, rounded up: 0.1 of 30 is 3, although 0.1 * 30 is a little more in floating point."""
    return int((Decimal(repr(share)) * count).to_integral_value(ROUND_CEILING))


def _shares(share: float) -> Callable[[Ints], Ints]:
    def limits(sizes: Ints) -> Ints:
        unique, inverse = np.unique(sizes, return_inverse=True)
        return np.array([share_of(int(size), share) for size in unique], np.int64)[inverse]

    return limits


def _without_copies(state: _State) -> Mask:
    cells = np.unique(state.table.texts, return_inverse=True)[1]
    return state.best(cells, np.ones_like)


def _of_length(state: _State) -> Mask:
    length = state.config.length
    assert length
    keep = np.ones(len(state.table), bool)
    if length.min is not None:
        keep &= state.table.lengths >= length.min
    if length.max is not None:
        keep &= state.table.lengths <= length.max
    return keep


def _without_near_duplicates(state: _State) -> Mask:
    near, selection = state.config.near_duplicates, state.selection
    assert near
    order = np.flatnonzero(state.kept)
    order = order[np.argsort(selection.preference[order])]
    cells = state.table.prompt_keys if near.within == "prompt" else np.zeros(len(state.table), np.uint64)
    found = find_near_duplicates(state.table.signatures, order, cells, near.similarity)
    selection.copy_of, selection.similarities, selection.cut = found
    return np.asarray(selection.copy_of < 0)


def _above_threshold(state: _State) -> Mask:
    threshold = state.config.threshold
    assert threshold
    values = state.table.scores if threshold.of == "score" else state.table.probabilities
    return np.asarray(values >= threshold.at_least)


def _best_of_n(state: _State) -> Mask:
    state.selection.cells["best_of_n"] = state.table.prompts
    return state.best(state.table.prompts, lambda sizes: np.full_like(sizes, state.config.best_of))


def _with_partner(state: _State) -> Mask:
    selection = state.selection
    pool = selection.passed(POOL_RULES[-1])
    selection.partners = find_partners(state.table, selection.preference, pool, np.flatnonzero(state.kept), state.config)
    return np.asarray(selection.partners >= 0)


def _top_share(state: _State) -> Mask:
    top = state.config.top_share
    assert top
    cells = state.selection.cells["top_share"] = state.cells(top.within)
    return state.best(cells, _shares(top.share))


def _within_quotas(state: _State) -> Mask:
    quotas, names = state.config.quotas, state.table.group_names
    assert quotas
    cells = state.selection.cells["quotas"] = state.table.groups
    if quotas.share is not None:
        return state.best(cells, _shares(quotas.share))
    if isinstance(quotas.at_most, dict):
        if unknown := [name for name in quotas.at_most if name not in names]:
            known = ", ".join(names[:20])
            raise ConfigError(
                f"quotas.at_most: no row has the group {unknown[0]!r} in {state.config.group_by}; there are {known}"
            )
        limits = np.array([quotas.at_most.get(name, len(state.table)) for name in names], np.int64)
        return state.best(cells, lambda _: limits)
    return state.best(cells, lambda sizes: np.full_like(sizes, quotas.at_most))
