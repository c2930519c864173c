"""What is noted of a reward."""

import pytest

from polar_rm.encoding.tree import PrefixTree, Truncation
from polar_rm.rewards.outcomes import Cut, Reward


@pytest.mark.parametrize(("limit", "beyond"), [(None, False), (6, False), (5, False), (4, True)])
def test_a_sequence_is_beyond_the_positions_from_one_token_more_on(limit, beyond):
    tree = PrefixTree([1, 2, 3], [[4], [5, 6]], (0, 1))
    reward = Reward.of(0.5, tree, 1, limit)
    assert (reward.n_tokens, reward.notes) == (5, ("beyond_positions",) if beyond else ())


def test_the_cut_is_that_of_the_candidate():
    tree = PrefixTree([1, 2], [[3], [4]], (0, 1), Truncation(7, 0, (0, 9)), ((), ("empty",)))
    first, second = (Reward.of(0.5, tree, branch) for branch in range(2))
    assert (first.cut, first.notes) == (Cut(7, 0, 0), ("truncated",))
    assert (second.cut, second.notes) == (Cut(7, 0, 9), ("truncated", "empty"))
