"""Rows to records and back: the accepted columns, and what is refused.

A row is a mapping of column names to values. In a table (Parquet, Arrow, CSV, a ``datasets`` object) a column has one type, so
there a list of messages may be JSON text; in JSON a list is a list and a string is always a string.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from polar_rm.records.fields import Fields
from polar_rm.records.messages import without_prompt
from polar_rm.records.types import Comparison, Message, Record, ScoreItem, Text, Trajectory, Wrapper, flatten
from polar_rm.records.values import InvalidRecord

R = TypeVar("R", bound=Record)


@dataclass(slots=True)
class RowRules:
    """How rows are read.

    is_cell: they are rows of a table. strip_prompt: answers that begin with the prompt's messages lose these, instead of being
    refused. notes: receives what was dropped, or taken as it is but may be meant otherwise, in words equal for alike rows.
    """

    is_cell: bool = False
    strip_prompt: bool = False
    notes: list[str] | None = None


_DEFAULT = RowRules()
_CELLS = RowRules(is_cell=True)


def to_comparison(row: Mapping[str, Any], is_cell: bool = False, rules: RowRules | None = None) -> Comparison:
    """{prompt, reference, candidates, ranks[, wrapper]} or the official {prompt, reference, chosen, rejected[, wrapper]}.

    ``chosen`` and ``rejected`` may be lists of texts, as in RewardBench 2: all chosen have rank 0, all rejected 1.

    Raises:
        InvalidRecord: the row is neither. A missing or null reference is None.
    """
    rules = _rules(is_cell, rules)
    take = Fields(row, rules.is_cell)
    prompt, reference = take.text("prompt"), take.optional(take.text, "reference")
    if take.has("candidates"):
        candidates = list(take.texts("candidates"))
        ranks, n_chosen = take.ranks("ranks", len(candidates)), None
    elif take.has("chosen") or take.has("rejected"):
        candidates = take.one_or_more("chosen")
        n_chosen = len(candidates)
        candidates += take.one_or_more("rejected")
        ranks = (0,) * n_chosen + (1,) * (len(candidates) - n_chosen)
    else:
        raise InvalidRecord("candidates", "candidates and ranks, or chosen and rejected: the row has neither")
    start = flatten(prompt)
    if reference is not None and not _is_plain(reference, start):
        reference = _answer("reference", reference, prompt, take, rules)
    for i, text in enumerate(candidates):
        if not _is_plain(text, start):
            candidates[i] = _answer(_names(n_chosen, len(candidates))[i], text, prompt, take, rules)
    texts = [text if isinstance(text, str) else _identity(text) for text in candidates]
    if len(set(texts)) < len(texts):
        raise _equal(_names(n_chosen, len(candidates)), texts)
    if take.notes:
        _hand_over(take, rules)
    return Comparison(prompt, reference, tuple(candidates), ranks, take.wrapper(), take.metadata())


def to_item(row: Mapping[str, Any], is_cell: bool = False, rules: RowRules | None = None) -> ScoreItem:
    """The official inference row {prompt, reference, output[, wrapper]}.

    Raises:
        InvalidRecord: it is not one. The reference must be there: an empty string scores without.
    """
    rules = _rules(is_cell, rules)
    take = Fields(row, rules.is_cell)
    prompt, reference, output = take.text("prompt"), take.text("reference"), take.text("output")
    reference = _answer("reference", reference, prompt, take, rules)
    output = _answer("output", output, prompt, take, rules)
    _hand_over(take, rules)
    return ScoreItem(prompt, reference, output, take.wrapper(), take.metadata())


def to_trajectory(row: Mapping[str, Any], is_cell: bool = False, rules: RowRules | None = None) -> Trajectory:
    """{source, prompt_id, prompt, policy, sample_id, text} and what is known about the sampling.

    Raises:
        InvalidRecord: it is not one.
    """
    rules = _rules(is_cell, rules)
    take = Fields(row, rules.is_cell)
    trajectory = Trajectory(
        source=take.string("source"),
        prompt_id=take.string("prompt_id"),
        prompt=take.text("prompt"),
        policy=take.string("policy"),
        sample_id=take.integer("sample_id"),
        text=take.string("text"),
        temperature=take.optional(take.number, "temperature"),
        top_p=take.optional(take.number, "top_p"),
        top_k=take.optional(take.integer, "top_k"),
        seed=take.optional(take.integer, "seed"),
        finish_reason=take.optional(take.string, "finish_reason"),
        n_tokens=take.optional(take.integer, "n_tokens"),
        metadata=take.metadata(),
    )
    _hand_over(take, rules)
    return trajectory


def to_prompt(row: Mapping[str, Any], is_cell: bool = False, rules: RowRules | None = None) -> tuple[str, Text]:
    """{prompt_id, prompt}.

    Raises:
        InvalidRecord: it is not one, or the prompt is empty.
    """
    rules = _rules(is_cell, rules)
    take = Fields(row, rules.is_cell)
    found = take.string("prompt_id"), take.filled("prompt")
    _hand_over(take, rules)
    return found


def to_referenced_prompt(
    row: Mapping[str, Any], is_cell: bool = False, rules: RowRules | None = None
) -> tuple[Text, Text, Wrapper | None]:
    """{prompt, reference[, wrapper]}.

    Raises:
        InvalidRecord: it is not one, or one of them is empty.
    """
    rules = _rules(is_cell, rules)
    take = Fields(row, rules.is_cell)
    prompt, reference = take.filled("prompt"), take.filled("reference")
    reference = _answer("reference", reference, prompt, take, rules)
    _hand_over(take, rules)
    return prompt, reference, take.wrapper() if take.has("wrapper") else None


def to_string(row: Mapping[str, Any], column: str) -> str:
    """One string.

    Raises:
        InvalidRecord: the column holds something else.
    """
    return Fields(row, is_cell=True).string(column)


def to_prompt_text(row: Mapping[str, Any], is_cell: bool = False, rules: RowRules | None = None) -> Text:
    """{prompt}.

    Raises:
        InvalidRecord: it is not one.
    """
    rules = _rules(is_cell, rules)
    take = Fields(row, rules.is_cell)
    prompt = take.text("prompt")
    _hand_over(take, rules)
    return prompt


def check(record: R, *, strip_prompt: bool = False) -> R:
    """The record as its reader would give it: contents of messages that are strings, metadata that files can hold.

    Whoever takes records from elsewhere (a trainer, a request) checks them here. strip_prompt: see :class:`RowRules`.

    Raises:
        InvalidRecord: its reader would refuse it.
    """
    names, convert = _CHECKS[type(record)]
    row = {name: getattr(record, name) for name in names}
    return convert(row, rules=RowRules(strip_prompt=strip_prompt))  # type: ignore[no-any-return]


def to_row(record: Record) -> dict[str, Any]:
    """The row that reads back as this record, for JSONL. Checked: what is written can be read.

    Raises:
        InvalidRecord: the record would be refused by its reader.
    """
    checked = check(record)
    return {name: getattr(checked, name) for name in _CHECKS[type(record)][0]}


def _rules(is_cell: bool, rules: RowRules | None) -> RowRules:
    return rules or (_CELLS if is_cell else _DEFAULT)


def _is_plain(text: Text, start: str) -> bool:
    """Nearly all answers: a string, or one message of the assistant, that does not begin as the prompt does."""
    if type(text) is str:
        return not text.startswith(start)
    return len(text) == 1 and text[0]["role"] == "assistant" and not text[0]["content"].startswith(start)  # type: ignore[index]


def _answer(name: str, text: Text, prompt: Text, take: Fields, rules: RowRules) -> Text:
    text, note = without_prompt(name, text, prompt, rules.strip_prompt)
    if note:
        take.notes.append(note)
    return text


def _hand_over(take: Fields, rules: RowRules) -> None:
    if take.notes and rules.notes is not None:
        rules.notes += dict.fromkeys(take.notes)


def _names(n_chosen: int | None, count: int) -> list[str]:
    """Of candidates, for messages. n_chosen: how many of them are ``chosen``; None where they stand in ``candidates``."""
    if n_chosen is None:
        return [f"candidates[{i}]" for i in range(count)]
    parts = (("chosen", n_chosen), ("rejected", count - n_chosen))
    return [name if number == 1 else f"{name}[{i}]" for name, number in parts for i in range(number)]


def _equal(names: list[str], texts: list[str]) -> InvalidRecord:
    second = next(i for i, text in enumerate(texts) if text in texts[:i])
    same = names[texts.index(texts[second])]
    return InvalidRecord(names[second], f"a text other than that of {same}: equal candidates can't be told apart")


def _identity(text: list[Message]) -> str:
    """What tells two candidates apart: their text, and the tools that they call."""
    flat = flatten(text)
    if not any(message.get("tool_calls") for message in text):
        return flat
    return json.dumps([flat, [message.get("tool_calls") for message in text]], sort_keys=True, default=str)


_CHECKS: dict[type, tuple[list[str], Callable[..., Any]]] = {
    kind: ([field.name for field in fields(kind)], convert)
    for kind, convert in ((Comparison, to_comparison), (ScoreItem, to_item), (Trajectory, to_trajectory))
}
