import unicodedata

import pytest

from polar_rm.corpus.config import Splits
from polar_rm.corpus.splits import assign_splits, held_out_policies
from polar_rm.errors import PolarError
from polar_rm.records import prompt_key


def test_held_out_policies_by_name_and_by_number():
    assert held_out_policies("abcd", Splits(policies=("b",))) == {"b"}
    drawn = held_out_policies("abcdefgh", Splits(policies=2))
    assert len(drawn) == 2
    assert held_out_policies("hgfedcba", Splits(policies=2)) == drawn
    assert drawn < held_out_policies("abcdefgh", Splits(policies=3))
    assert any(held_out_policies("abcdefgh", Splits(policies=2), seed=seed) != drawn for seed in range(5))
    with pytest.raises(PolarError, match="no policy 'z'"):
        held_out_policies("abcd", Splits(policies=("z",)))
    with pytest.raises(PolarError, match="fewer than two"):
        held_out_policies("abcd", Splits(policies=3))


def test_unseen_policies_are_compared_with_each_other_on_held_out_prompts():
    splits, unseen = Splits(prompts=0.5, policies=2), frozenset("cd")
    assert assign_splits(False, "abcd", unseen, splits) == {"train": (set("ab"), set("ab"))}
    assert assign_splits(True, "abc", unseen, splits) == {
        "unseen_prompts": (set("ab"), set("ab")),
        "unseen_policies": ({"c"}, {"c"}),
    }


def test_a_single_unseen_policy_is_compared_with_the_others():
    assert assign_splits(True, "abc", frozenset("c"), Splits(prompts=0.5))["unseen_policies"] == ({"c"}, set("abc"))


def test_without_held_out_prompts_unseen_policies_are_tested_on_all():
    assert assign_splits(False, "abc", frozenset("bc"), Splits()) == {
        "train": ({"a"}, {"a"}),
        "unseen_policies": (set("bc"), set("bc")),
    }


def test_copies_of_a_prompt_share_a_key():
    assert prompt_key(unicodedata.normalize("NFD", "Où est-il ?")) == prompt_key("où est-il ?")
    assert (
        prompt_key("What  is\nthis?") == prompt_key([{"role": "user", "content": "what is This?"}]) != prompt_key("what is that?")
    )
