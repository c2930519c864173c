import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polar_rm.corpus import build_comparisons, build_ranked, is_held_out
from polar_rm.corpus.config import Pairing
from polar_rm.corpus.pairing import draw_comparisons, generator
from polar_rm.errors import PolarError
from polar_rm.records import Trajectory


def zoo(prompts=5, policies="abcd", samples=3):
    return [
        Trajectory("test", f"p{p}", f"prompt {p}", policy, s, f"{policy} says {s} about {p}")
        for p in range(prompts)
        for policy in policies
        for s in range(samples)
    ]


def test_positives_have_the_references_policy_and_negatives_have_others():
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


def test_the_result_depends_only_on_the_seed():
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
        Trajectory("t", "p", "prompt", "a", 1, "different"),
        Trajectory("t", "p", "prompt", "b", 0, "same"),
        Trajectory("t", "p", "prompt", "b", 1, "same"),
    ]
    assert list(build_comparisons(rows)) == []  # b has one text, which a has, too
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
    """Their texts decide: copies of a prompt under other ids, or as messages, are in one split."""
    prompts = [f"prompt {i}" for i in range(4000)]
    held_out = {p for p in prompts if is_held_out(p, 0.2)}
    assert 0.17 < len(held_out) / len(prompts) < 0.23
    assert held_out < {p for p in prompts if is_held_out(p, 0.3)}
    assert held_out != {p for p in prompts if is_held_out(p, 0.2, seed=1)}
    assert held_out == {p for p in prompts if is_held_out([{"role": "user", "content": f" {p.upper()}"}], 0.2)}


def test_one_id_for_two_prompts_is_refused():
    with pytest.raises(PolarError, match="two different prompts"):
        list(build_comparisons([*zoo(1), Trajectory("t", "p0", "another", "a", 9, "x")]))


def test_results_for_a_seed_never_change():
    """Corpora are identified by their settings, so equal settings must give equal comparisons in every release."""
    built = [(c.reference, c.candidates) for c in build_comparisons(zoo(), positives=2, negatives=2, per_prompt=3, seed=5)]
    assert hashlib.sha256(repr(built).encode()).hexdigest()[:16] == "bd3a5ea00024f55b"


def draw(texts_by_policy, seeds=20, comparable=lambda *_: True, **settings):
    return [
        list(draw_comparisons(texts_by_policy, Pairing(**settings), generator(seed, "p"), comparable=comparable))
        for seed in range(seeds)
    ]


TEXTS_BY_POLICY = {policy: [f"{policy}{i}" for i in range(3)] for policy in "abcd"}


def test_triples_of_two_policies():
    for built in draw({"a": ["a0", "a1"], "b": ["b0"]}, kind="triples"):
        [drawn] = built
        assert drawn.policies == ("a", "b")
        assert {drawn.reference, *drawn.positives} == {"a0", "a1"}
        assert drawn.negatives == ("b0",)


def test_triples_in_both_directions_mirror_each_other():
    for built in draw(TEXTS_BY_POLICY, kind="triples"):
        pairs = [drawn.policies for drawn in built]
        assert {policy for policy, _ in pairs} == set("abcd")
        assert pairs[1] == pairs[0][::-1]
        assert all(len(drawn.positives) == len(drawn.negatives) == 1 for drawn in built)


@pytest.mark.parametrize("kind", ["triples", "k_way"])
def test_one_direction_only(kind):
    for built in draw(TEXTS_BY_POLICY, kind=kind, both_directions=False):
        pairs = {drawn.policies for drawn in built}
        assert not pairs & {pair[::-1] for pair in pairs}


def test_negatives_of_near_length():
    texts_by_policy = {"a": ["x" * 10, "y" * 11], "b": ["b" * 100, "c" * 12], "c": ["d" * 50, "e" * 51]}
    for built in draw(texts_by_policy, near_length=1.3):
        assert all(set(drawn.negatives) <= {"c" * 12, "x" * 10, "y" * 11} for drawn in built)
        assert {drawn.policies[0] for drawn in built} <= {"a", "b"}
    assert any(len(text) > 40 for built in draw(texts_by_policy) for drawn in built for text in drawn.negatives)


def test_only_comparable_policies_are_compared():
    for built in draw(TEXTS_BY_POLICY, negatives=3, comparable=lambda policy, other: {policy, other} != {"a", "b"}):
        for policy, *others in (drawn.policies for drawn in built):
            assert len(others) == (2 if policy in "ab" else 3)
            assert {policy, *others} != {"a", "b"}


texts = st.lists(st.text("ab", max_size=2), min_size=1, max_size=4, unique=True).map(sorted)


@given(st.dictionaries(st.sampled_from("abcde"), texts, max_size=5), st.integers(0, 3), st.sampled_from(["triples", "k_way"]))
def test_no_text_is_twice_in_a_comparison(texts_by_policy, seed, kind):
    many = {} if kind == "triples" else {"positives": 2, "negatives": 3}
    for drawn in draw_comparisons(dict(sorted(texts_by_policy.items())), Pairing(kind=kind, **many), generator(seed, "p")):
        policy, *others = drawn.policies
        assert len({drawn.reference, *drawn.positives, *drawn.negatives}) == 1 + len(drawn.positives) + len(drawn.negatives)
        assert {drawn.reference, *drawn.positives} <= set(texts_by_policy[policy])
        assert all(text in texts_by_policy[other] for other, text in zip(others, drawn.negatives, strict=True))
        assert len({policy, *others}) == 1 + len(others)
