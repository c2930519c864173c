"""Messages, tool calls, thinking and the clean-up of texts that another program rendered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny

from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.settings import EncoderSettings
from polar_rm.encoding.texts import without_thinking
from polar_rm.errors import PolarError
from polar_rm.model.native import add_role_tokens
from polar_rm.records import Comparison

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"b": 2, "a": "é"}'}}
CALLING = [{"role": "assistant", "content": None, "tool_calls": [CALL, {"name": "stop", "arguments": {}}]}]


def make(**changes: object) -> Encoder:
    return Encoder(add_role_tokens(tiny.tokenizer()), EncoderSettings(**changes))


def text_of(encoder: Encoder, prompt, reference="r", output="o", wrapper="sft") -> str:
    [(_, tree)] = encoder.encode_outputs(prompt, reference, [output], wrapper)
    return encoder.tokenizer.decode(tree.sequence(0), skip_special_tokens=False)


def test_tool_calls_are_lines_of_canonical_json():
    chat = make(template="polar-chat")
    prompt = [{"role": "user", "content": "2+2?"}, *CALLING, {"role": "tool", "content": "4"}]
    assert text_of(chat, prompt, "4", CALLING) == (
        'user: 2+2?\nassistant: tool_call: {"arguments":{"a":"é","b":2},"name":"add"}\n'
        'tool_call: {"arguments":{},"name":"stop"}\ntool: 4\nassistant: 4<|reward|>'
        'user: 2+2?\nassistant: tool_call: {"arguments":{"a":"é","b":2},"name":"add"}\n'
        'tool_call: {"arguments":{},"name":"stop"}\ntool: 4\nassistant: '
        'tool_call: {"arguments":{"a":"é","b":2},"name":"add"}\ntool_call: {"arguments":{},"name":"stop"}[UNUSED_TOKEN_130]'
    )


def test_only_calls_that_differ_in_spelling_alone_have_equal_ids():
    chat = make(template="polar-chat")
    calls = [
        {"function": {"name": "add", "arguments": '{"a":1,  "b":2}'}},
        {"name": "add", "arguments": {"b": 2, "a": 1}},
        {"name": "add", "arguments": {"b": 2, "a": 3}},
        {"name": "add", "arguments": '{"a": 1'},
    ]
    outputs = [[{"role": "assistant", "content": "Wait.", "tool_calls": [call]}] for call in calls]
    [(_, tree)] = chat.encode_outputs("q", "r", outputs)
    assert tree.branches[0] == tree.branches[1]
    assert len({tuple(branch) for branch in tree.branches}) == 3


@pytest.mark.parametrize("settings", [{}, {"template": "polar-chat", "version": 1}])
@pytest.mark.parametrize("field", ["prompt", "reference", "output"])
def test_tool_calls_that_can_not_be_rendered_are_refused(settings, field):
    with pytest.raises(PolarError, match=r"tool_calls.*template polar-chat \(version 2\)"):
        text_of(make(**settings), **({"prompt": "p"} | {field: CALLING}))


@pytest.mark.parametrize("settings", [{}, {"template": "polar-chat"}])
def test_text_parts_are_one_text_and_images_are_refused_by_name(settings):
    encoder = make(**settings)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Why "}, {"type": "text", "text": "not?"}]}]
    assert text_of(encoder, parts) == text_of(encoder, [{"role": "user", "content": "Why not?"}])
    image = [{"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(PolarError, match="part of type 'image_url': only text"):
        text_of(encoder, image)
    with pytest.raises(PolarError, match="has no content"):
        text_of(encoder, [{"role": "user", "content": None}])


def test_version_2_renders_conversations_without_calls_as_version_1():
    turns = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hi"}]
    first, second = make(template="polar-chat", version=1), make(template="polar-chat")
    assert first.encode_outputs(turns, "a", ["b"]) == second.encode_outputs(turns, "a", ["b"])
    assert first.hash != second.hash


THOUGHT = "<think>a fox?</think>\n\nA dog."


def test_thinking_is_removed_from_reference_and_candidates():
    strip, keep = make(thinking="strip"), make()
    assert text_of(strip, "p", THOUGHT, THOUGHT) == text_of(keep, "p", "A dog.", "A dog.")
    message = [{"role": "assistant", "content": THOUGHT}]
    assert text_of(strip, "p", message, message) == text_of(keep, "p", "A dog.", "A dog.")
    assert "a fox?" in text_of(keep, "p", THOUGHT, "x") and "a fox?" in text_of(keep, "p", "x", THOUGHT)
    assert "a fox?" in text_of(strip, f"Explain {THOUGHT}", "x", "y")  # a prompt is not an answer


def test_removed_and_unfinished_thinking_is_noted():
    outputs = ["A dog.", THOUGHT, "<think>a fox", "  "]
    for thinking, expected in (
        ("keep", ((), (), ("unfinished_thinking",), ("empty",))),
        ("strip", ((), ("thinking_stripped",), ("thinking_stripped", "unfinished_thinking", "empty"), ("empty",))),
    ):
        [(_, tree)] = make(thinking=thinking).encode_outputs("p", "A cat.", outputs)
        assert tree.notes == expected
    [(_, tree)] = make(thinking="strip").encode_outputs("p", THOUGHT, ["A dog."])
    assert tree.notes == (("thinking_stripped",),)
    tree = make().encode(Comparison("p", "r", ("x", "<think>", "y"), (0, 1, 2)))
    assert [part.notes for _, part in tree.split(1)] == [((),), (("unfinished_thinking",),), ((),)]


def test_only_the_last_message_can_have_unfinished_thinking():
    first, ask, last = (
        {"role": role, "content": text} for role, text in (("assistant", "<think>a"), ("user", "b"), ("assistant", "c"))
    )
    outputs = [[first, ask, last], [last, ask, first], [first]]
    trees = make().encode_outputs("p", "r", outputs)
    notes = {index: note for indices, tree in trees for index, note in zip(indices, tree.notes, strict=True)}
    assert notes == {0: (), 1: ("unfinished_thinking",), 2: ("unfinished_thinking",)}


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "\n"]), max_size=12).map("".join))
def test_an_answer_contains_no_thinking(text):
    import re

    answer = re.sub("<think>.*?</think>", "", text, flags=re.DOTALL).rpartition("</think>")[2].partition("<think>")[0]
    assert without_thinking(text) == (answer.strip() if "think>" in text else text)


def test_many_tags_take_no_longer_than_few():
    assert without_thinking("<think>" * 1_000_000) == ""
    assert without_thinking("<think>x</think>" * 300_000 + "y") == "y"


def test_an_unknown_policy_is_refused():
    with pytest.raises(PolarError, match="thinking must be 'keep' or 'strip', not 'drop'"):
        EncoderSettings(thinking="drop")


def rendered(prompt: str, reference: str, output: str) -> str:
    return f"{prompt}\n{reference}<|reward|>{prompt}\n{output}[UNUSED_TOKEN_130]"


@pytest.mark.parametrize("clean_up", [True, False])
@given(st.lists(st.sampled_from(["react", " 'x'", " .", " ,", "if ( !(a", " n't", " 's", "b", " ?"]), max_size=9).map("".join))
def test_texts_that_other_programs_rendered_have_the_ids_of_their_item(clean_up, text):
    """C1. The official client's fast tokenizer decodes without the clean-up that official training does."""
    encoder = make(clean_up=clean_up)
    [(_, tree)] = encoder.encode_outputs(text, text, [text])
    item = rendered(text, text, text) if text else "\n".join([text, text])
    if text:
        assert encoder.ids_of_rendered(item) == tree.sequence(0)
        cleaned = encoder._clean(text)
        assert encoder._clean(cleaned) == cleaned
        assert encoder.ids_of_rendered(rendered(cleaned, cleaned, cleaned)) == tree.sequence(0)


def test_two_candidates_that_the_clean_up_makes_equal_are_tied():
    """C1."""
    [(_, tree)] = make(clean_up=True).encode_outputs("p", "r", ["from 'react' .", "from'react'."])
    assert tree.branches[0] == tree.branches[1]
    [(_, tree)] = make().encode_outputs("p", "r", ["from 'react' .", "from'react'."])
    assert tree.branches[0] != tree.branches[1]
