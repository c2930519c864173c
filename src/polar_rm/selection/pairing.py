"""The rejected answer of each chosen one: the worst, or a random one, whose score is lower by the margin."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polar_rm.selection.candidates import hash64
from polar_rm.selection.config import SelectConfig
from polar_rm.selection.table import Ints, Table


def find_partners(table: Table, preference: Ints, pool: NDArray[np.bool_], chosen: Ints, config: SelectConfig) -> Ints:
    """For each chosen candidate the rejected answer to the same prompt; -1 for all others, and where no answer is worse enough.

    preference: place of each candidate in the order of preference. pool: bool [n], the candidates that may be rejected. A random
    answer depends on the seed, the prompt and the chosen answer, and not on the order of the input.
    """
    partners = np.full(len(table), -1, np.int64)
    indices = np.flatnonzero(pool)
    indices = indices[np.lexsort((preference[indices], table.prompts[indices]))]
    scores, prompts = table.scores[indices], table.prompts[indices]
    first = np.searchsorted(prompts, table.prompts[chosen], "left")
    behind = np.searchsorted(prompts, table.prompts[chosen], "right")
    for index, begin, end in zip(chosen.tolist(), first.tolist(), behind.tolist(), strict=True):
        lower = scores[begin:end]
        # Scores fall along the prompt's answers, so those that are low enough are its last ones.
        n_fitting = int(((table.scores[index] - lower >= config.pairs.margin) & (lower < table.scores[index])).sum())
        if n_fitting:
            back = hash64([config.seed, int(table.ties[index])]) % n_fitting if config.pairs.rejected == "random" else 0
            partners[index] = indices[end - 1 - back]
    return partners
