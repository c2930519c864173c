from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from polar_rm.encoding.tree import PrefixTree
from polar_rm.model.packing import deal, first_fit, pack


def test_row_lays_out_prefixes_and_branches():
    row = pack([PrefixTree([5, 6], [[7], [8, 9]], (0, 1)), PrefixTree([1], [[2, 3], [4]], (1, 0))])
    assert row.ids.tolist() == [[5, 6, 7, 8, 9, 1, 2, 3, 4]]
    assert row.tree.positions.tolist() == [0, 1, 2, 2, 3, 0, 1, 2, 1]
    assert row.tree.scores.tolist() == [2, 4, 7, 8]
    assert row.ranks == ((0, 1), (1, 0))


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 60))
def test_first_fit_keeps_every_tree_within_the_budget(lengths, budget):
    rows = first_fit(lengths, budget)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[i] for i in row) <= budget or len(row) == 1
    fits = [length for length in lengths if length <= budget]
    assert len(rows) - (len(lengths) - len(fits)) <= 2 * sum(fits) / budget + 1  # else two rows would fit into one


def test_rows_are_filled_up_to_the_budget():
    assert first_fit([6, 4, 5, 5], 10) == [[0, 1], [2, 3]]


@given(st.integers(1, 9), st.integers(1, 5))
def test_deal_gives_every_row_once_and_every_rank_a_turn(n_rows, world_size):
    rows = [[i] for i in range(n_rows)]
    dealt = deal(rows, list(range(n_rows)), world_size)
    assert sorted(i for ranks in dealt for row in ranks for i in row) == list(range(n_rows))
    assert all(len(ranks) == world_size for ranks in dealt)


def test_rows_of_similar_cost_are_in_the_same_micro_step():
    assert deal([[0], [1], [2, 3], [4]], [1, 9, 3, 5, 2], 2) == [[[1], [2, 3]], [[4], [0]]]
