from polar_rm.encoding.tree import PrefixTree
from polar_rm.training.splitting import longer_than, parts_of


def tree(prefix, *branches):
    return PrefixTree([1] * prefix, [[number] * length for number, length in enumerate(branches, 2)], tuple(range(len(branches))))


def test_parts_fill_the_budget_in_order_and_scores_keep_their_places():
    trees = [tree(10, 5, 5, 5, 20, 1), tree(3, 4, 4)]
    parts = parts_of(trees, 20)
    assert [(part.scores.start, part.scores.stop) for part in parts] == [(0, 2), (2, 3), (3, 4), (4, 5), (5, 7)]
    assert [part.tree.n_tokens for part in parts] == [20, 15, 30, 11, 11]  # a candidate of 20 tokens can't be made shorter
    branches = [branch for part in parts for branch in part.tree.branches]
    assert branches == trees[0].branches + trees[1].branches
    assert sum((part.tree.ranks for part in parts), ()) == trees[0].ranks + trees[1].ranks


def test_only_trees_that_splitting_makes_shorter_are_split():
    trees = {3: tree(10, 5, 5), 5: tree(10, 5, 6), 7: tree(30, 5)}
    assert longer_than(20, trees) == {5: trees[5]}
