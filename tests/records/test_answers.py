"""Answers that repeat their prompt (H4), and messages in all spellings (H5, Missing 23 and 25)."""

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polar_rm.errors import BadRow
from polar_rm.records import (
    Comparison,
    InvalidRecord,
    OnBadRow,
    ScoreItem,
    check,
    from_cell,
    read_comparisons,
    read_items,
    read_prompt_texts,
    read_prompts,
    read_referenced_prompts,
    read_trajectories,
    to_cell,
    to_item,
    write_records,
)

USER = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}
YES, NO = {"role": "assistant", "content": "Because yes."}, {"role": "assistant", "content": "no"}
REPEATS_PROMPT = "expected the answer alone, but it begins with the prompt; remove those messages"


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "prompt",
    ["Why?", " Why?\n", [USER], [SYSTEM, USER], [USER, YES, {"role": "user", "content": "And?"}]],
    ids=["text", "blanks", "message", "system", "turns"],
)
@pytest.mark.parametrize("table", [False, True])
def test_an_answer_that_begins_with_the_prompt_is_refused_or_stripped(tmp_path, prompt, table):
    """H4."""
    whole = [USER, YES, {"role": "user", "content": "And?"}] if isinstance(prompt, list) and len(prompt) == 3 else [USER]
    good = {"prompt": prompt, "reference": "Because.", "chosen": [YES], "rejected": [NO]}
    for field, answer in [("chosen", [*whole, YES]), ("rejected", [SYSTEM, *whole, NO]), ("reference", [*whole, YES, NO])]:
        row = good | {field: answer}
        if table:
            row = {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
            path = tmp_path / "data.parquet"
            pq.write_table(pa.Table.from_pylist([row]), path)
        else:
            path = lines(tmp_path / "data.jsonl", row)
        with pytest.raises(BadRow, match=f"row 1: field '{field}': {REPEATS_PROMPT}.*strip_prompt"):
            list(read_comparisons(path))
        bad = OnBadRow(strip_prompt=True)
        [comparison] = read_comparisons(path, bad)
        rest = answer[answer.index(whole[-1], len(whole) - 1) + 1 :]
        texts = {"chosen": comparison.candidates[0], "rejected": comparison.candidates[1], "reference": comparison.reference}
        assert texts == {**{name: good[name] for name in texts}, field: rest}
        [warning] = bad.warnings()
        assert (
            warning
            == f"1 row: the prompt's messages at the beginning of '{field}' were dropped (strip_prompt) (first: {path}: row 1)"
        )


def test_items_candidates_and_single_records_get_the_same_check(tmp_path):
    """H4: one check for files, requests and trainers."""
    item = {"prompt": "Why?", "reference": "", "output": [USER, YES]}
    with pytest.raises(BadRow, match=f"field 'output': {REPEATS_PROMPT}"):
        list(read_items([item]))
    with pytest.raises(InvalidRecord, match=f"field 'output': {REPEATS_PROMPT}"):
        check(ScoreItem("Why?", "", [USER, YES]))
    assert check(ScoreItem("Why?", "", [USER, YES]), strip_prompt=True).output == [YES]
    with pytest.raises(InvalidRecord, match=rf"field 'candidates\[1\]': {REPEATS_PROMPT}"):
        check(Comparison([USER], None, ("a", [USER, NO]), (0, 1)))
    with pytest.raises(BadRow, match="field 'output': expected an answer, but nothing follows the prompt's messages"):
        list(read_items([item | {"output": [USER]}], OnBadRow(strip_prompt=True)))


def test_a_system_message_that_the_prompts_text_holds_is_part_of_the_prompt():
    """H4: the prompt rendered without roles, the answer as a whole conversation."""
    item = ScoreItem("Be brief.\nWhy?", "", [SYSTEM, USER, YES])
    with pytest.raises(InvalidRecord, match=f"field 'output': {REPEATS_PROMPT}"):
        check(item)
    assert check(item, strip_prompt=True).output == [YES]


@pytest.mark.parametrize(
    "answer",
    [[{"role": "assistant", "content": "Why?"}], [{"role": "user", "content": "Why not?"}, YES], [YES, USER, NO]],
    ids=["echo", "other question", "later"],
)
def test_answers_that_only_resemble_the_prompt_are_accepted(answer):
    """H4."""
    for prompt in ("Why?", [USER]):
        assert check(ScoreItem(prompt, "", answer)).output == answer


def test_texts_that_begin_with_the_prompt_are_counted_and_reported_once(tmp_path, caplog):
    """H4: hh-rlhf has this form; no check can decide whether it is intended."""
    prompt = "Human: Why is the sky blue? Assistant:"
    row = {"prompt": prompt, "reference": "r", "chosen": f"{prompt} scattering", "rejected": f"{prompt} paint"}
    short = {"prompt": "The", "reference": "r", "chosen": "Therefore", "rejected": "b"}
    path = lines(tmp_path / "data.jsonl", short, row, row | {"rejected": "no"})
    bad = OnBadRow()
    assert len(list(read_comparisons(path, bad))) == 3
    text = "begins with the whole text of the prompt, which is then scored as part of the answer"
    assert bad.warnings() == [
        f"2 rows: 'chosen' {text} (first: {path}: row 2)",
        f"1 row: 'rejected' {text} (first: {path}: row 2)",
    ]
    with caplog.at_level(logging.WARNING):
        list(read_comparisons(path))
    assert [record.getMessage() for record in caplog.records] == bad.warnings()


SPELLINGS = [
    json.dumps([USER, YES]),
    json.dumps([{"content": "Why?", "role": "user"}, {"content": "Because yes.", "role": "assistant"}]),
    json.dumps([USER, YES], indent=1),
    f"\n {json.dumps([USER, YES])} ",
    json.dumps([USER, YES], separators=(",", ":")),
]


@pytest.mark.parametrize("cell", SPELLINGS, ids=range(len(SPELLINGS)))
def test_messages_are_recognised_in_tables_however_they_are_spelt(tmp_path, cell):
    """H5."""
    row = {"prompt": cell, "reference": cell, "candidates": [json.dumps([YES]), "b"], "ranks": [0, 1]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "data.parquet")
    bad = OnBadRow(strip_prompt=True)
    assert list(read_prompt_texts(tmp_path / "data.parquet")) == [[USER, YES]]
    row["reference"] = "r"
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "data.parquet")
    [comparison] = read_comparisons(tmp_path / "data.parquet", bad)
    assert comparison == Comparison([USER, YES], "r", ([YES], "b"), (0, 1))


def test_messages_as_text_in_jsonl_stay_text_and_are_reported(tmp_path):
    """H5: in JSON a string is a string."""
    path = lines(tmp_path / "items.jsonl", *({"prompt": cell, "reference": "r", "output": "o"} for cell in SPELLINGS))
    bad = OnBadRow()
    assert [item.prompt for item in read_items(path, bad)] == SPELLINGS
    [warning] = bad.warnings()
    assert warning.startswith("5 rows: 'prompt' is text that spells messages in JSON text; it is read as plain text (first:")
    bad = OnBadRow()
    pq.write_table(pa.Table.from_pylist([{"prompt": str([USER]), "reference": "r", "output": "o"}]), tmp_path / "a.parquet")
    assert next(read_items(tmp_path / "a.parquet", bad)).prompt == str([USER])
    assert "Python's notation" in bad.warnings()[0]


ROW = {"prompt": SPELLINGS[0], "prompt_id": "i", "reference": "r", "output": "o", "chosen": "c", "rejected": "d"}
ROW |= {"source": "s", "policy": "p", "sample_id": 0, "text": "t"}


@pytest.mark.parametrize(
    "read",
    [read_comparisons, read_items, read_prompts, read_referenced_prompts, read_trajectories],
    ids=lambda read: read.__name__,
)
def test_every_kind_of_row_reports_text_that_spells_messages(read):
    bad = OnBadRow()
    assert len(list(read([ROW, ROW | {"prompt_id": "j"}], bad))) == 2
    [warning] = bad.warnings()
    assert warning.startswith("2 rows: 'prompt' is text that spells messages")


pieces = st.sampled_from(
    ['[{"role"', '"content": ""', '[{"content": "x", "role": "user"}]', '["', '"]', "[", "]", " ", "\n", '\\"', "{", "}"]
)


@settings(max_examples=300)
@given(st.text(max_size=12) | st.lists(pieces, max_size=5).map("".join), st.integers(0, 3))
def test_every_string_comes_back_from_a_cell(text, depth):
    """H5: the quoting rule, also for strings that are quoted already."""
    for _ in range(depth):
        text = json.dumps([text])
    if "\ud7ff" < max(text, default="") < "\ue000":
        return
    cell = to_cell(text)
    assert isinstance(cell, str)
    assert from_cell(cell) == text


def test_content_may_be_text_parts_or_null_beside_tool_calls(tmp_path):
    """Missing 23."""
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}]
    calls = [[{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": name}}]}] for name in ("f", "g")]
    row = {"prompt": "p", "reference": parts, "candidates": calls, "ranks": [0, 1]}
    [comparison] = read_comparisons(lines(tmp_path / "data.jsonl", row))
    assert comparison.reference == [{"role": "assistant", "content": "a b"}]
    assert comparison.candidates == tuple([{**message, "content": ""} for message in call] for call in calls)
    for suffix in ("jsonl", "parquet"):
        write_records(tmp_path / f"out.{suffix}", [comparison])
        assert list(read_comparisons(tmp_path / f"out.{suffix}")) == [comparison]
    with pytest.raises(BadRow, match=r"field 'candidates\[1\]': expected a text other than that of candidates\[0\]"):
        list(read_comparisons([row | {"candidates": [calls[0], calls[0]]}]))


@pytest.mark.parametrize(
    ("content", "field", "expected"),
    [
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}], "output[0].content[1]", "type 'image_url'"),
        ([{"type": "text"}], "output[0].content[0]", "one whose text is null"),
        ([], "output[0].content", "not an empty list"),
        (None, "output[0].content", "not null"),
        (["a"], "output[0].content[0]", "not a string"),
    ],
)
def test_other_contents_are_refused_by_name(content, field, expected):
    """Missing 23."""
    with pytest.raises(BadRow, match=expected) as caught:
        list(read_items([{"prompt": "p", "reference": "r", "output": [{"role": "assistant", "content": content}]}]))
    assert caught.value.field == field


@pytest.mark.parametrize("ranks", [[1.0, 2.0], ["1", "2"]])
def test_ranks_may_be_whole_floats_and_digits(ranks):
    """Missing 25."""
    [comparison] = read_comparisons([{"prompt": "p", "reference": "r", "candidates": ["a", "b"], "ranks": ranks}])
    assert comparison.ranks == (1, 2)
    assert all(type(rank) is int for rank in comparison.ranks)


def test_lists_of_chosen_and_rejected_are_ranked(tmp_path):
    """Missing 25: the form of RewardBench 2."""
    row = {"prompt": "p", "reference": "r", "chosen": ["a"], "rejected": ["b", [YES], "d"]}
    [comparison] = read_comparisons(lines(tmp_path / "data.jsonl", row))
    assert (comparison.candidates, comparison.ranks) == (("a", "b", [YES], "d"), (0, 1, 1, 1))
    for wrong, field in [
        ({"rejected": ["b", "a"]}, "rejected[1]"),
        ({"chosen": []}, "chosen"),
        ({"chosen": ["a", 3]}, "chosen[1]"),
    ]:
        with pytest.raises(BadRow) as caught:
            list(read_comparisons([row | wrong]))
        assert caught.value.field == field


def test_a_number_where_a_text_belongs_is_refused_with_its_text_form():
    """Missing 25: only the sender knows whether it was 4 or 4.0."""
    with pytest.raises(
        BadRow, match="field 'reference': expected text or a list of messages, not the number 4; write it as a text"
    ):
        list(read_items([{"prompt": "p", "reference": 4, "output": "o"}]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "p", "good": "a", "bad": "b"},
            "text or a list of messages, but it is missing; the row has 'question', 'good', 'bad'",
        ),
        ({"prompt": "p", "good": "a", "bad": "b"}, "but the row has neither; it has 'prompt', 'good', 'bad'"),
        ({f"{'x' * 60}{i}": 1 for i in range(20)}, f"the row has {', '.join([repr('x' * 40 + '…')] * 12)} and 8 more"),
        ({}, "the row has no columns"),
    ],
)
def test_a_row_under_other_names_is_refused_with_the_names_that_it_has(row, message):
    with pytest.raises(BadRow) as error:
        list(read_comparisons([row]))
    assert str(error.value).endswith(message)


@pytest.mark.parametrize("near", ["references", "Reference"])
def test_a_column_with_nearly_the_right_name_does_not_become_metadata(near):
    """Missing 25: a comparison that loses its reference silently means something else."""
    with pytest.raises(BadRow, match=f"field 'reference': expected .*{near}'; did you mean 'reference'"):
        list(read_comparisons([{"prompt": "p", near: ["r"], "chosen": "a", "rejected": "b"}]))
    with pytest.raises(BadRow, match=f"field 'reference': expected .*{near}'; did you mean 'reference'"):
        list(read_items([{"prompt": "p", near: ["r"], "output": "a"}]))
    row = {"prompt": "p", "reference": "r", near: ["r"], "output": "a"}
    assert next(read_items([row])).metadata == {near: ["r"]}


@pytest.mark.parametrize(
    "text", ['[{"role" is where a list of messages begins', '["[ is how a quoted one does', '[{"role": "user"']
)
def test_strings_that_begin_like_messages_are_always_quoted(text):
    """Earlier versions wrote them so, and can read what is written now."""
    assert to_cell(text) == json.dumps([text]) and from_cell(json.dumps([text])) == text


def test_the_role_is_written_first():
    """Earlier versions take a cell for messages by its beginning alone."""
    messages = [{"content": "Why?", "role": "user"}, {"content": "Because.", "role": "assistant"}]
    cell = to_cell(messages)
    assert cell.startswith('[{"role"') and json.loads(cell) == messages


HINTS = {"reference": "; several references are a column 'references'", "output": "; each output has a row of its own"}


@pytest.mark.parametrize("field", ["reference", "output", "prompt"])
def test_a_list_of_texts_where_one_is_expected_is_told_with_the_way(field):
    """It was "expected a message with role and content"."""
    row = {"prompt": "p", "reference": "r", "output": "o", field: ["4", "four"]}
    with pytest.raises(InvalidRecord) as error:
        to_item(row)
    assert error.value.expected == f"text or a list of messages, not a list of texts{HINTS.get(field, '')}"
