"""Rows to records and back: the accepted columns, and what is refused.

A row is a mapping of column names to values. In a table (Parquet, a ``datasets`` object) a column has one type, so there a list
of messages is JSON text that starts with ``[{"role"``; in JSONL a list is a list and a string is always a string.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from polar_rm.records.fields import Fields, Refused
from polar_rm.records.types import Comparison, Record, ScoreItem, Text, Trajectory, Wrapper, flatten


def to_comparison(row: Mapping[str, Any], is_cell: bool = False) -> Comparison:
    """{prompt, reference, candidates, ranks[, wrapper]} or the official {prompt, reference, chosen, rejected[, wrapper]}.

    Raises:
        Refused: the row is neither. A missing or null reference is None.
    """
    take = Fields(row, is_cell)
    prompt, reference = take.text("prompt"), take.optional(take.text, "reference")
    official = not take.has("candidates")
    if not official:
        candidates = take.texts("candidates")
        ranks = take.ranks("ranks", len(candidates))
    elif take.has("chosen") or take.has("rejected"):
        candidates, ranks = (take.text("chosen"), take.text("rejected")), (0, 1)
    else:
        raise Refused("candidates", "candidates and ranks, or chosen and rejected: the row has neither")
    texts = [flatten(candidate) for candidate in candidates]
    if len(set(texts)) < len(texts):
        names = ["chosen", "rejected"] if official else [f"candidates[{i}]" for i in range(len(texts))]
        second = next(i for i, text in enumerate(texts) if text in texts[:i])
        same = names[texts.index(texts[second])]
        raise Refused(names[second], f"a text other than that of {same}: equal candidates can't be told apart")
    return Comparison(prompt, reference, candidates, ranks, take.wrapper(), take.metadata())


def to_item(row: Mapping[str, Any], is_cell: bool = False) -> ScoreItem:
    """The official inference row {prompt, reference, output[, wrapper]}.

    Raises:
        Refused: it is not one. The reference must be there: an empty string scores without.
    """
    take = Fields(row, is_cell)
    prompt, reference, output = take.text("prompt"), take.text("reference"), take.text("output")
    return ScoreItem(prompt, reference, output, take.wrapper(), take.metadata())


def to_trajectory(row: Mapping[str, Any], is_cell: bool = False) -> Trajectory:
    """{source, prompt_id, prompt, policy, sample_id, text} and what is known about the sampling.

    Raises:
        Refused: it is not one.
    """
    take = Fields(row, is_cell)
    return Trajectory(
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


def to_prompt(row: Mapping[str, Any], is_cell: bool = False) -> tuple[str, Text]:
    """{prompt_id, prompt}.

    Raises:
        Refused: it is not one, or the prompt is empty.
    """
    take = Fields(row, is_cell)
    return take.string("prompt_id"), take.filled("prompt")


def to_referenced_prompt(row: Mapping[str, Any], is_cell: bool = False) -> tuple[Text, Text, Wrapper | None]:
    """{prompt, reference[, wrapper]}.

    Raises:
        Refused: it is not one, or one of them is empty.
    """
    take = Fields(row, is_cell)
    return take.filled("prompt"), take.filled("reference"), take.wrapper() if take.has("wrapper") else None


def to_string(row: Mapping[str, Any], column: str) -> str:
    """One string.

    Raises:
        Refused: the column holds something else.
    """
    return Fields(row, is_cell=True).string(column)


def to_prompt_text(row: Mapping[str, Any], is_cell: bool = False) -> Text:
    """{prompt}.

    Raises:
        Refused: it is not one.
    """
    return Fields(row, is_cell).text("prompt")


def to_row(record: Record) -> dict[str, Any]:
    """The row that reads back as this record, for JSONL. Checked: what is written can be read.

    Raises:
        Refused: the record would be refused by its reader.
    """
    names, check = _CHECKS[type(record)]
    checked = check({name: getattr(record, name) for name in names})
    return {name: getattr(checked, name) for name in names}


_CHECKS: dict[type, tuple[list[str], Callable[[Mapping[str, Any]], Record]]] = {
    kind: ([field.name for field in fields(kind)], check)
    for kind, check in ((Comparison, to_comparison), (ScoreItem, to_item), (Trajectory, to_trajectory))
}
