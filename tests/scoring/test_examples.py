"""The packaged examples, and what is said about a model's rewards for them."""

import pytest

from polar_rm.rewards.outcomes import Failure, Reward
from polar_rm.scoring.examples import example_items, judge, read_examples

EXAMPLES = read_examples()


def rewards(*pairs):
    return [Reward(value, 1) for pair in pairs for value in pair]


def test_examples_are_whole_and_their_answers_differ():
    assert len(EXAMPLES) >= 10 and len(set(EXAMPLES)) == len(EXAMPLES)
    for example in EXAMPLES:
        assert all((example.prompt, example.reference, example.about))
        assert len({example.better, example.worse, example.reference}) == 3
    items = example_items(EXAMPLES[:2])
    assert [item.output for item in items] == [text for each in EXAMPLES[:2] for text in (each.better, each.worse)]
    assert [item.reference for item in items] == [EXAMPLES[0].reference] * 2 + [EXAMPLES[1].reference] * 2


def test_the_first_of_each_kind_is_shown_and_a_tie_is_not_right():
    judged = judge(EXAMPLES[:4], rewards((1.0, 1.0), (2.0, -1.0), (0.0, 3.0), (5.0, 4.0)))
    assert (judged["n"], judged["n_right"], judged["failed"]) == (4, 2, 0)
    assert judged["wrong"]["prompt"] == EXAMPLES[0].prompt and judged["wrong"]["rewards"] == [1.0, 1.0]
    assert judged["right"]["prompt"] == EXAMPLES[1].prompt and judged["right"]["rewards"] == [2.0, -1.0]


@pytest.mark.parametrize(("pair", "missing", "there"), [((1.0, 0.0), "wrong", "right"), ((0.0, 1.0), "right", "wrong")])
def test_nothing_is_shown_for_a_kind_that_does_not_occur(pair, missing, there):
    judged = judge(EXAMPLES[:2], rewards(pair, pair))
    assert judged[missing] is None and judged[there] is not None


def test_an_example_that_failed_is_neither_right_nor_wrong():
    outcomes = [Failure("model_error", "no memory"), Reward(1.0, 1), *rewards((2.0, 1.0))]
    judged = judge(EXAMPLES[:2], outcomes)
    assert (judged["n"], judged["n_right"], judged["failed"], judged["failure"]) == (1, 1, 1, "no memory")
