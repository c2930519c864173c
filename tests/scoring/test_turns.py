"""A score at the end of each turn of a conversation, all in one pass."""

import json

import pytest
from support import tiny

from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import BadRow, PolarError, ScoreError
from polar_rm.model import packing
from polar_rm.records import ScoreItem, write_records
from polar_rm.scoring import scorer as scorer_module
from polar_rm.scoring.files import score_file
from polar_rm.scoring.scorer import Scorer


def said(*texts):
    """Messages of assistant and user in turn."""
    return [{"role": ("assistant", "user")[i % 2], "content": text} for i, text in enumerate(texts)]


TALK = said("the quick fox", "and the dog?", "a lazy dog by the river", "why?", "it's 12,345.6 metres high, isn't it?")
PROMPT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what jumps?"}]
REFERENCE = said("the fox", "and the dog?", "it watches", "why?", "because")


@pytest.fixture(scope="module", params=["polar", "polar-chat"])
def model(request, tmp_path_factory):
    settings = tiny.EncoderSettings(template=request.param)
    return tiny.reward_model(tmp_path_factory.mktemp("lm"), settings=settings)


def alone(model, item):
    """Every turn scored as an item of its own, by ordinary scoring."""
    ends = [i + 1 for i, message in enumerate(item.output) if message["role"] == "assistant"]
    return [next(Scorer(model).score([ScoreItem(item.prompt, item.reference, item.output[:end])])) for end in ends]


def test_turns_have_the_scores_of_the_conversation_up_to_them(model):
    items = [ScoreItem(PROMPT, REFERENCE, TALK), ScoreItem("p", "r", TALK[:4]), ScoreItem("p", "", said("fox"))]
    for item, rewards in zip(items, Scorer(model).score_turns(items), strict=True):
        expected = alone(model, item)
        assert [each.reward for each in rewards] == pytest.approx([each.reward for each in expected], rel=1e-5, abs=1e-5)
        assert [(each.n_tokens, each.cut, each.notes) for each in rewards] == [(e.n_tokens, e.cut, e.notes) for e in expected]
    assert len({round(each.reward, 4) for each in next(Scorer(model).score_turns(items))}) == 3


def test_the_conversation_is_computed_once(model, monkeypatch):
    """The row holds the longest sequence, and for each turn hardly more than its reward token."""
    rows = []
    monkeypatch.setattr(scorer_module, "pack", lambda trees: rows.append(trees) or packing.pack(trees))
    item = ScoreItem(PROMPT, REFERENCE, said(*(f"the quick brown fox {n}" for n in range(21))))
    [rewards] = Scorer(model).score_turns([item])
    [trees] = rows
    assert len(rewards) == 11
    # The chat template shows a single message without its role, so that the first turn is no beginning of the others.
    assert trees[0].n_tokens <= rewards[-1].n_tokens + 3 * 11 + (
        rewards[0].n_tokens if model.encoder.settings.template != "polar" else 0
    )


@pytest.mark.parametrize(("max_length", "max_response_length"), [(70, 30), (200, 12), (130, 60)])
def test_truncated_conversations_too(tmp_path, max_length, max_response_length):
    settings = tiny.EncoderSettings(max_length=max_length, max_response_length=max_response_length)
    model = tiny.reward_model(tmp_path, settings=settings)
    item = ScoreItem("over the river and the bank " * 6, "the dog", TALK)
    [rewards] = Scorer(model).score_turns([item])
    expected = alone(model, item)
    assert [each.reward for each in rewards] == pytest.approx([each.reward for each in expected], rel=1e-5, abs=1e-5)
    assert [each.cut for each in rewards] == [each.cut for each in expected] and rewards[-1].truncated


def test_a_string_is_one_turn_and_what_has_none_is_refused(model):
    [[reward]] = Scorer(model).score_turns([ScoreItem("p", "r", "the fox")])
    assert reward.reward == pytest.approx(next(Scorer(model).score([ScoreItem("p", "r", "the fox")])).reward, rel=1e-5, abs=1e-5)
    with pytest.raises(PolarError, match="item 2: field 'output': expected a message of the assistant"):
        list(Scorer(model).score_turns([ScoreItem("p", "r", "a"), ScoreItem("p", "r", [{"role": "user", "content": "x"}])]))


def test_a_turn_without_a_finite_score_is_named(model, monkeypatch):
    monkeypatch.setattr(Scorer, "score_trees", lambda self, trees: [[1.0, float("nan"), 1.0] for _ in trees])
    with pytest.raises(ScoreError, match="item 1, turn 2 has the score nan"):
        list(Scorer(model).score_turns([ScoreItem("p", "r", TALK)]))


def test_nested_trees_hold_the_same_sequences_in_fewer_tokens():
    flat = PrefixTree([1, 2], [[5, 6, 9], [5, 6, 7, 8, 9], [9], [5, 4, 9]], (0, 1, 2, 3))
    nested = flat.nested()
    assert nested == PrefixTree([1, 2, 5, 6, 7, 8], [[9], [9], [9], [4, 9]], (0, 1, 2, 3), shared=(4, 6, 2, 3))
    assert [nested.sequence(i) for i in range(4)] == [flat.sequence(i) for i in range(4)]
    assert [nested.length(i) for i in range(4)] == [5, 7, 3, 5] and nested.n_tokens == 11 < flat.n_tokens
    assert nested.distinct() == (nested, [[0], [1], [2], [3]])  # the same branch at another token is another sequence
    [(first, part), (second, rest)] = nested.split(9)
    assert (first, part.shared, second, rest.shared) == ([0, 1, 2], (4, 6, 2), [3], (3,))
    parts = nested.split(6)  # no part repeats more of the prefix than its branches need
    assert [(indices, part.prefix) for indices, part in parts] == [([0], [1, 2, 5, 6]), ([1], nested.prefix), ([2, 3], [1, 2, 5])]
    assert [part.sequence(n) for _, part in parts for n in range(len(part.branches))] == [flat.sequence(i) for i in range(4)]


def test_a_file_of_conversations_gets_a_reward_for_each_turn(model, tmp_path):
    items = [ScoreItem(PROMPT, REFERENCE, TALK), ScoreItem("p", "r", "the fox")]
    write_records(tmp_path / "talks.jsonl", items)
    assert list(score_file(model, tmp_path / "talks.jsonl", tmp_path / "s.jsonl", identity={}, each_turn=True)) == [2]
    first, second = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [turn["message"] for turn in first["turns"]] == [1, 3, 5] and [turn["message"] for turn in second["turns"]] == [1]
    assert [turn["reward"] for turn in first["turns"]] == pytest.approx(
        [e.reward for e in alone(model, items[0])], rel=1e-5, abs=1e-5
    )
    assert first["reward"] == first["turns"][-1]["reward"] and first["n_tokens"] == first["turns"][-1]["n_tokens"]
    write_records(tmp_path / "silent.jsonl", [items[1], ScoreItem("p", "r", [{"role": "user", "content": "x"}])])
    with pytest.raises(BadRow, match="silent.jsonl: row 2: field 'output': expected a message of the assistant"):
        list(score_file(model, tmp_path / "silent.jsonl", tmp_path / "t.jsonl", identity={}, each_turn=True))
    with pytest.raises(PolarError, match="raw rewards only"):
        list(score_file(model, tmp_path / "talks.jsonl", tmp_path / "t.jsonl", identity={}, each_turn=True, combine="best"))
    write_records(tmp_path / "several.jsonl", [ScoreItem("p", ("r", "s"), "a")])
    with pytest.raises(BadRow, match="one reference|the row has 'references'"):
        list(score_file(model, tmp_path / "several.jsonl", tmp_path / "t.jsonl", identity={}, each_turn=True))
