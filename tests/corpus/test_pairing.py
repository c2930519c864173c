import random

import pytest

from polar_rm.corpus import build_comparisons, build_ranked, is_held_out
from polar_rm.errors import PolarError
from polar_rm.records import Trajectory


def zoo(prompts=5, policies="abcd", samples=3):
    return [
        Trajectory("test", f"p{p}", f"prompt {p}", policy, s, f"{policy} says {s} about {p}")
        for p in range(prompts)
        for policy in policies
        for s in range(samples)
    ]


def test_positives_are_the_references_policy_and_negatives_are_not():
    built = list(build_comparisons(zoo(), positives=2, negatives=3))
    assert len(built) == 5 * 4
    for comparison in built:
        author = comparison.metadata["policy"]
        assert comparison.reference.startswith(f"{author} says")
        assert comparison.ranks == (0, 0, 1, 1, 1)
        authors = [candidate[0] for candidate in comparison.candidates]
        assert authors[:2] == [author] * 2
        assert sorted(authors[2:]) == sorted(set("abcd") - {author})
        assert authors == comparison.metadata["candidate_policies"]
        assert len({comparison.reference, *comparison.candidates}) == 6


def test_the_result_depends_on_the_seed_alone():
    rows = zoo()
    shuffled = random.Random(1).sample(rows, len(rows))
    assert list(build_comparisons(rows)) == list(build_comparisons(shuffled))
    assert list(build_comparisons(rows)) != list(build_comparisons(rows, seed=1))
    one_prompt = [row for row in rows if row.prompt_id == "p2"]
    assert [c for c in build_comparisons(rows) if c.metadata["prompt_id"] == "p2"] == list(build_comparisons(one_prompt))


def test_any_sample_may_be_the_reference():
    references = {c.reference for seed in range(20) for c in build_comparisons(zoo(1), seed=seed)}
    assert len(references) == 12


def test_identical_texts_never_form_a_pair():
    rows = [
        Trajectory("t", "p", "prompt", "a", 0, "same"),
        Trajectory("t", "p", "prompt", "a", 1, "own"),
        Trajectory("t", "p", "prompt", "b", 0, "same"),
        Trajectory("t", "p", "prompt", "b", 1, "same"),
    ]
    assert list(build_comparisons(rows)) == []  # b has one text, and a has it too
    rows.append(Trajectory("t", "p", "prompt", "b", 2, "other"))
    for seed in range(10):
        for comparison in build_comparisons(rows, seed=seed):
            assert len({comparison.reference, *comparison.candidates}) == 1 + len(comparison.candidates)


def test_caps_and_chosen_references():
    assert len(list(build_comparisons(zoo(), per_prompt=2))) == 10
    assert {c.metadata["policy"] for c in build_comparisons(zoo(), references={"b"})} == {"b"}


def test_ranked_comparisons_follow_the_order():
    [comparison] = build_ranked(zoo(1), ["c", "a", "b"])
    assert [candidate[0] for candidate in comparison.candidates] == ["c", "a", "b"]
    assert comparison.ranks == (0, 1, 2)
    assert comparison.reference[0] == "c"
    assert comparison.reference != comparison.candidates[0]
    with pytest.raises(PolarError, match="two policies"):
        list(build_ranked(zoo(1), ["c", "c"]))


def test_held_out_prompts_are_a_fraction_and_never_move():
    ids = [f"prompt {i}" for i in range(4000)]
    held = {i for i in ids if is_held_out(i, 0.2)}
    assert 0.17 < len(held) / len(ids) < 0.23
    assert held < {i for i in ids if is_held_out(i, 0.3)}
    assert held != {i for i in ids if is_held_out(i, 0.2, seed=1)}


def test_one_id_for_two_prompts_is_refused():
    with pytest.raises(PolarError, match="two different prompts"):
        list(build_comparisons([*zoo(1), Trajectory("t", "p0", "another", "a", 9, "x")]))
