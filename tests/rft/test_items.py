"""A framework's texts become the intended item, or a clear error."""

import numpy as np
import pytest

from polar_rm.errors import PolarError
from polar_rm.records import ScoreItem
from polar_rm.rewards.outcomes import Reward
from polar_rm.rft.items import client_options, score_item, transformed, without_thinking


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("plain text ", "plain text "),
        ("<think>so\nwell</think>\n\nParis.", "Paris."),
        ("so well</think>\nParis.", "Paris."),  # the template opened the tag
        ("<think>without an end", ""),
        ("Paris.\n<think>wait", "Paris."),
        ("One <think>a</think>two<think>b</think>.", "One two."),
        ("<think>a <think>b</think> c</think>Paris.", "Paris."),
        ("<think></think>", ""),
        ("", ""),
    ],
)
def test_only_the_answer_is_left(text: str, answer: str) -> None:
    assert without_thinking(text) == answer


def test_messages_strings_and_arrays_make_one_item() -> None:
    prompt, completion = [{"role": "user", "content": "Why?"}], [{"role": "assistant", "content": "<think>hm</think>So."}]
    assert score_item("Why?", "So.", "Because.") == ScoreItem("Why?", "Because.", "So.")
    assert score_item("Why", "So.", "?", wrapper="pretrain").wrapper == "pretrain"
    stripped = score_item(np.array(prompt, dtype=object), completion, "<think>x</think>Because.", strip_thinking=True)
    assert stripped == ScoreItem(prompt, "Because.", [{"role": "assistant", "content": "So."}])
    assert score_item(prompt, completion, "Because.").output == completion


def test_a_list_of_texts_is_several_references() -> None:
    told = [{"role": "assistant", "content": "<think>x</think>Dark red."}]
    item = score_item("p", "c", np.array(["Blue.", told], dtype=object), strip_thinking=True)
    assert item.reference == ("Blue.", [{"role": "assistant", "content": "Dark red."}])
    assert score_item("p", "c", ["Blue."]).reference == "Blue."
    assert score_item("p", "c", told).reference == told  # messages are one reference
    for bad, field in ((["a", " "], r"'references\[1\]'"), (["a", 3], r"'references\[1\]'"), (["a", "<think>x"], "'reference'")):
        with pytest.raises(PolarError, match=f"field {field}: expected"):
            score_item("p", "c", bad, strip_thinking=True)


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        (("p", "c", None), "'reference'"),
        (("p", "c", ""), "'reference'"),
        (("p", "c", " \n"), "'reference'"),
        (("p", "c", []), "'reference'"),
        (("p", "c", [{"role": "assistant", "content": ""}]), "'reference'"),
        (("p", "c", 4), "'reference'"),
        (("p", "c", float("nan")), "'reference'"),
        (("p", None, "r"), "'completion'"),
        (("p", [{"role": "assistant"}], "r"), r"'completion\[0\].content'"),
        (({}, "c", "r"), "'prompt'"),
    ],
)
def test_values_that_are_no_text_are_refused_by_name(texts: tuple[object, object, object], field: str) -> None:
    with pytest.raises(PolarError, match=f"field {field}: expected"):
        score_item(*texts)


@pytest.mark.parametrize("reference", ["<think>cut off", [{"role": "assistant", "content": "<think>x</think>\n"}]])
def test_a_reference_that_holds_only_thinking_is_refused(reference: object) -> None:
    assert score_item("p", "c", reference).reference == reference
    with pytest.raises(PolarError, match="field 'reference': .* only thinking"):
        score_item("p", "c", reference, strip_thinking=True)


def test_client_options_come_from_the_environment() -> None:
    assert client_options({"POLAR_URL": "http://h:1", "POLAR_API_KEY": "k"}) == {
        "url": "http://h:1",
        "model": None,
        "api_key": "k",
    }
    with pytest.raises(PolarError, match="POLAR_URL"):
        client_options({"POLAR_URL": ""})
    with pytest.raises(PolarError, match="not a server's address"):
        client_options({"POLAR_URL": "http://h:1/get_reward"})
    with pytest.raises(PolarError, match="POLAR_API_KEY is set, but it is empty"):
        client_options({"POLAR_URL": "h:1", "POLAR_API_KEY": ""})


def test_items_with_one_prompt_and_reference_are_a_group() -> None:
    items = [score_item(prompt, output, "r") for prompt, output in [("a", "1"), ("b", "1"), ("a", "2"), ("b", "2")]]
    rewards = [Reward(value, 1, anchor=anchor) for value, anchor in [(1.0, 5.0), (10.0, 9.0), (3.0, 5.0), (10.0, 9.0)]]
    assert transformed("group_zscore", items, rewards) == [-1.0, 0.0, 1.0, 0.0]
    assert transformed("raw", items, rewards) == [1.0, 10.0, 3.0, 10.0]
    assert transformed("anchored", items, rewards) == [-4.0, 1.0, -2.0, 1.0]


def test_a_completion_that_repeats_the_prompt_is_refused() -> None:
    """H4."""
    prompt = [{"role": "user", "content": "Why?"}]
    with pytest.raises(PolarError, match="field 'completion': expected the answer alone, but it begins with the prompt"):
        score_item(prompt, [*prompt, {"role": "assistant", "content": "So."}], "Because.")
    with pytest.raises(PolarError, match="field 'reference': expected the answer alone"):
        score_item("Why?", "So.", [*prompt, {"role": "assistant", "content": "So."}])


def test_messages_as_json_text_are_messages_except_in_completions() -> None:
    """H5: trainers read prompts and references from tables."""
    text = '[{"content": "Why?", "role": "user"}]'
    item = score_item(text, text, '[{"content": "So.", "role": "assistant"}]')
    assert item.prompt == [{"content": "Why?", "role": "user"}]
    assert item.reference == [{"content": "So.", "role": "assistant"}]
    assert item.output == text
