"""Conversion of rows to records and back: the accepted columns and their checks.

A row maps column names to values. In a table (Parquet, Arrow, CSV, a ``datasets`` object) a column has one type, so a list of
messages may be JSON text there. In JSON a list is a list, and a string is always a string.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

from polar_rm.records.fields import Fields
from polar_rm.records.messages import without_prompt
from polar_rm.records.types import (
    Comparison,
    Message,
    Record,
    Reference,
    ReferencedPrompt,
    Samples,
    ScoreItem,
    Text,
    Trajectory,
    Wrapper,
    as_reference,
    flatten,
)
from polar_rm.records.values import InvalidRecord

R = TypeVar("R", bound=Record)


@dataclass(slots=True)
class RowRules:
    """Options for reading rows.

    is_cell: the rows come from a table. strip_prompt: remove the prompt's messages from the beginning of answers instead of
    raising an error. notes: receives texts about what was dropped, or was read unchanged but may mean something else; rows of one
    kind get equal texts.
    """

    is_cell: bool = False
    strip_prompt: bool = False
    notes: list[str] | None = None


_DEFAULT = RowRules()
_CELLS = RowRules(is_cell=True)


def to_comparison(
    row: Mapping[str, Any], is_cell: bool = False, rules: RowRules | None = None, *, several_references: bool = False
) -> Comparison:
    """A comparison from {prompt, reference, candidates, ranks[, wrapper]}, or from the official row with chosen and rejected.

    ``chosen`` and ``rejected`` may be lists of texts, as in RewardBench 2: all chosen have rank 0, all rejected rank 1. A missing
    or null reference is None. several_references: accept a list ``references`` in place of ``reference``.

    Raises:
        InvalidRecord: the row has neither form.
    """
    rules = _rules(is_cell, rules)
    take = Fields(row, rules.is_cell)
    prompt = take.text("prompt")
    several = _several_references(take, prompt, rules) if several_references else None
    reference = several or take.optional(take.text, "reference")
    if take.has("candidates"):
        candidates = list(take.texts("candidates"))
        ranks, n_chosen = take.ranks("ranks", len(candidates)), None
    elif take.has("chosen") or take.has("rejected"):
        candidates = take.one_or_more("chosen")
        n_chosen = len(candidates)
        candidates += take.one_or_more("rejected")
        ranks = (0,) * n_chosen + (1,) * (len(candidates) - n_chosen)
    else:
        expected = "candidates and ranks, or chosen and rejected, but the row has neither"
        raise InvalidRecord("candidates", f"{expected}; it has {take.columns()}")
    start = flatten(prompt)
    if reference is not None and not isinstance(reference, tuple) and not _is_plain(reference, start):
        reference = _answer("reference", reference, prompt, take, rules)
    for i, text in enumerate(candidates):
        if not _is_plain(text, start):
            candidates[i] = _answer(_names(n_chosen, len(candidates))[i], text, prompt, take, rules)
    texts = [text if isinstance(text, str) else _identity(text) for text in candidates]
    if len(set(texts)) < len(texts):
        raise _equal(_names(n_chosen, len(candidates)), texts)
    if take.notes:
        _pass_notes(take, rules)
    return Comparison(prompt, reference, tuple(candidates), ranks, take.wrapper(), take.metadata())


def to_item(
    row: Mapping[str, Any], is_cell: bool = False, rules: RowRules | None = None, *, several_references: bool = False
) -> ScoreItem:
    """An item from the official inference row {prompt, reference, output[, wrapper]}.

    The reference is required; an empty string scores without a reference. several_references: see :func:`to_comparison`.

    Raises:
        InvalidRecord: the row has another form.
    """
    rules = _rules(is_cell, rules)
    take = Fields(row, rules.is_cell)
    prompt = take.text("prompt")
    several = _several_references(take, prompt, rules) if several_references else None
    reference = several or _answer("reference", take.text("reference"), prompt, take, rules)
    output = take.text("output")
    output = _answer("output", output, prompt, take, rules)
    _pass_notes(take, rules)
    return ScoreItem(prompt, reference, output, take.wrapper(), take.metadata())


def to_trajectory(row: Mapping[str, Any], is_cell: bool = False, rules: RowRules | None = None) -> Trajectory:
    """A trajectory from {source, prompt_id, prompt, policy, sample_id, text} and optional columns about the sampling.

    Raises:
        InvalidRecord: the row has another form.
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
    _pass_notes(take, rules)
    return trajectory


def to_samples(row: Mapping[str, Any], gold: str | None = None, rules: RowRules | None = None) -> Samples:
    """Samples with gold values from {prompt[, reference, policy, wrapper], output, gold}, from lists {outputs, golds}, or from a
    trajectory {prompt, policy, text, gold}.

    gold: name of the column with numbers or booleans; by default ``gold``, or ``golds`` beside ``outputs``. A missing or null
    reference is None; a list ``references`` may take its place.

    ``dup_count`` is how many equal samples a row with a single output stands for.

    Raises:
        InvalidRecord: the row has none of these forms, or a gold value is missing or not finite.
    """
    rules = rules or _DEFAULT
    take = Fields(row, rules.is_cell)
    prompt = take.text("prompt")
    several = _several_references(take, prompt, rules)
    reference = several or take.optional(take.text, "reference")
    if take.has("outputs"):
        outputs, name = list(take.texts("outputs")), gold or "golds"
        golds, copies = take.measures(name, len(outputs)), 1
        names = [f"outputs[{i}]" for i in range(len(outputs))]
    else:
        # A trajectory's text is a string; an output may be a list of messages, too.
        is_trajectory = not take.has("output") and take.has("text")
        outputs, name = [take.string("text") if is_trajectory else take.text("output")], gold or "gold"
        golds, names = [take.measure(name)], ["text" if is_trajectory else "output"]
        given = take.optional(take.integer, "dup_count")
        copies = 1 if given is None else given
        if copies < 1:
            raise InvalidRecord("dup_count", f"an integer >= 1, not {copies}")
    if reference is not None and not isinstance(reference, tuple) and not several:
        reference = _answer("reference", reference, prompt, take, rules)
    outputs = [_answer(each, text, prompt, take, rules) for each, text in zip(names, outputs, strict=True)]
    _pass_notes(take, rules)
    policy = take.optional(take.string, "policy")
    return Samples(prompt, reference, tuple(outputs), tuple(golds), copies, policy, take.wrapper(), take.metadata())


def to_prompt(row: Mapping[str, Any], is_cell: bool = False, rules: RowRules | None = None) -> tuple[str, Text]:
    """A prompt's id and text from {prompt_id, prompt}.

    Raises:
        InvalidRecord: the row has another form, or the prompt is empty.
    """
    rules = _rules(is_cell, rules)
    take = Fields(row, rules.is_cell)
    prompt_id, prompt = take.string("prompt_id"), take.filled("prompt")
    _pass_notes(take, rules)
    return prompt_id, prompt


def to_referenced_prompt(
    row: Mapping[str, Any], is_cell: bool = False, rules: RowRules | None = None
) -> tuple[Text, Text, Wrapper | None]:
    """Prompt, reference and wrapper (None where missing) from {prompt, reference[, wrapper]}.

    Raises:
        InvalidRecord: the row has another form, or the prompt or the reference is empty.
    """
    prompt, [reference, *_], wrapper = _referenced(row, _rules(is_cell, rules), several=False)
    return prompt, reference, wrapper


def to_prompt_and_references(
    row: Mapping[str, Any], rules: RowRules | None = None
) -> tuple[Text, tuple[Text, ...], Wrapper | None]:
    """As :func:`to_referenced_prompt`, with all references of a row that has a list ``references`` in place of ``reference``."""
    return _referenced(row, _rules(False, rules), several=True)


def _referenced(row: Mapping[str, Any], rules: RowRules, *, several: bool) -> tuple[Text, tuple[Text, ...], Wrapper | None]:
    take = Fields(row, rules.is_cell)
    prompt = take.filled("prompt")
    found = _several_references(take, prompt, rules) if several else None
    if found is None:
        references: tuple[Text, ...] = (_answer("reference", take.filled("reference"), prompt, take, rules),)
    else:
        references = found if isinstance(found, tuple) else (found,)
    _pass_notes(take, rules)
    return prompt, references, take.wrapper() if take.has("wrapper") else None


def _to_referenced(row: Mapping[str, Any], rules: RowRules | None = None) -> ReferencedPrompt:
    prompt, reference, wrapper = to_referenced_prompt(row, rules=rules)
    rest = {name: value for name, value in row.items() if name not in ("prompt", "reference", "wrapper")}
    return ReferencedPrompt(prompt, reference, wrapper or "sft", Fields(rest, _rules(False, rules).is_cell).metadata())


def to_string(row: Mapping[str, Any], column: str) -> str:
    """The string in one column.

    Raises:
        InvalidRecord: the column holds no string.
    """
    return Fields(row, is_cell=True).string(column)


def to_prompt_text(row: Mapping[str, Any], is_cell: bool = False, rules: RowRules | None = None) -> Text:
    """The prompt of a row.

    Raises:
        InvalidRecord: the row has no valid prompt.
    """
    rules = _rules(is_cell, rules)
    take = Fields(row, rules.is_cell)
    prompt = take.text("prompt")
    _pass_notes(take, rules)
    return prompt


def check(record: R, *, strip_prompt: bool = False) -> R:
    """The record as its reader would return it: messages with contents that are strings, metadata that files can hold.

    Code that gets records from elsewhere (a trainer, a request) checks them here. strip_prompt: see :class:`RowRules`.

    Raises:
        InvalidRecord: the reader of such records would refuse it.
    """
    _, convert = _CHECKS[type(record)]
    return convert(_columns(record), rules=RowRules(strip_prompt=strip_prompt))  # type: ignore[no-any-return]


def to_row(record: Record) -> dict[str, Any]:
    """The row of this record for JSONL. The record is checked, so that every row that is written can be read.

    Raises:
        InvalidRecord: the reader of such records would refuse it.
    """
    return _columns(check(record))


def _columns(record: Record) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in _CHECKS[type(record)][0]}
    if isinstance(row.get("reference"), tuple):
        row = {"references" if name == "reference" else name: value for name, value in row.items()}
        row["references"] = list(row["references"])
    return row


def _rules(is_cell: bool, rules: RowRules | None) -> RowRules:
    return rules or (_CELLS if is_cell else _DEFAULT)


def _is_plain(text: Text, start: str) -> bool:
    """Whether an answer can't repeat the prompt: a string, or one message of the assistant, with another beginning.

    Nearly all answers are plain; only others need the slower check of :func:`without_prompt`.
    """
    if type(text) is str:
        return not text.startswith(start)
    return len(text) == 1 and text[0]["role"] == "assistant" and not text[0]["content"].startswith(start)  # type: ignore[index]


def _answer(name: str, text: Text, prompt: Text, take: Fields, rules: RowRules) -> Text:
    text, note = without_prompt(name, text, prompt, rules.strip_prompt)
    if note:
        take.notes.append(note)
    return text


def _several_references(take: Fields, prompt: Text, rules: RowRules) -> Reference | None:
    """The column ``references``, each text checked as an answer; None where the row has no such column."""
    texts = take.references()
    if texts is None:
        return None
    return as_reference([_answer(f"references[{i}]", text, prompt, take, rules) for i, text in enumerate(texts)])


def _pass_notes(take: Fields, rules: RowRules) -> None:
    if take.notes and rules.notes is not None:
        rules.notes += dict.fromkeys(take.notes)


def _names(n_chosen: int | None, count: int) -> list[str]:
    """The candidates' names for messages. n_chosen: how many are ``chosen``; None where the row has ``candidates``."""
    if n_chosen is None:
        return [f"candidates[{i}]" for i in range(count)]
    parts = (("chosen", n_chosen), ("rejected", count - n_chosen))
    return [name if number == 1 else f"{name}[{i}]" for name, number in parts for i in range(number)]


def _equal(names: list[str], texts: list[str]) -> InvalidRecord:
    second = next(i for i, text in enumerate(texts) if text in texts[:i])
    same = names[texts.index(texts[second])]
    return InvalidRecord(names[second], f"a text other than that of {same}: equal candidates can't be told apart")


def _identity(text: list[Message]) -> str:
    """What distinguishes two candidates: their texts, and the tools that they call."""
    flat = flatten(text)
    if not any(message.get("tool_calls") for message in text):
        return flat
    return json.dumps([flat, [message.get("tool_calls") for message in text]], sort_keys=True, default=str)


_CHECKS: dict[type, tuple[list[str], Callable[..., Any]]] = {
    kind: ([field.name for field in fields(kind)], convert)
    for kind, convert in (
        (Comparison, partial(to_comparison, several_references=True)),
        (ScoreItem, partial(to_item, several_references=True)),
        (Trajectory, to_trajectory),
        (ReferencedPrompt, _to_referenced),
    )
}
