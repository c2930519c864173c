"""The data of a run: prompts to train on, and held-out prompts, which are never trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polar_rm.errors import PolarError
from polar_rm.records import (
    InvalidRecord,
    OnBadRow,
    RowRules,
    Text,
    Wrapper,
    as_reference,
    find_files,
    flatten,
    is_held_out,
    near_copies,
    prompt_key,
    read_rows,
)
from polar_rm.records.rows import to_prompt_and_references
from polar_rm.rft.config import RftConfig
from polar_rm.rft.judges import Judge, Task, listed

# With fewer prompts the bootstrap's interval is noticeably too narrow.
FEW_PROMPTS = 30


@dataclass(frozen=True, slots=True)
class RftData:
    """The two sides of the data, which share no prompt.

    train: rows {prompt, reference, wrapper} in TRL's format; prompts of a chat policy are lists of messages, and references are
    lists of texts if a row has several. held_out: prompts
    for the judges. notes: one line for each thing that a user should know about the split.
    """

    train: list[dict[str, Any]]
    held_out: list[Task] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_data(config: RftConfig, judges: Mapping[str, Judge] | None = None, rejected: Path | None = None) -> RftData:
    """Read the data, and hold out the prompts of ``evaluate``.

    judges: they check the held-out rows. rejected: the file for bad rows that are skipped; None writes none.

    Raises:
        PolarError: a row is bad, a column mixes strings and messages, a file lies in the output folder, or no prompt is left on
            one of the two sides.
    """
    settings = config.evaluate
    for source in (*config.data, *(settings.data if settings else ())):
        find_files(source, [config.output])
    bad = OnBadRow(config.on_bad_row, rejected or os.devnull)

    def check(task: Task) -> None:
        for judge in (judges or {}).values():
            judge.check_row(task.row)

    def is_drawn(task: Task) -> bool:
        share = settings.share if settings else None
        return share is not None and is_held_out(task.prompt, share, seed=config.seed)

    wrapper = config.reward.wrapper
    held_out = list(_tasks(settings.data, bad, wrapper, check)) if settings and settings.data else []
    keys = {prompt_key(task.prompt) for task in held_out}
    kept, left_out = [], 0
    for task in _tasks(config.data, bad, wrapper, lambda task: check(task) if is_drawn(task) else None):
        if is_drawn(task):
            held_out.append(task)
        elif prompt_key(task.prompt) in keys:
            left_out += 1
        else:
            kept.append(task)
    if not kept or (settings and not held_out):
        side = "held-out" if kept else "training"
        raise PolarError(
            f"no {side} prompt is left of {len(kept) + len(held_out) + left_out:,} rows; see evaluate.data and .share"
        )
    skipped = [f"{bad.count:,} bad rows were skipped{f', see {rejected}' if rejected else ''}"] if bad.count else []
    several = sum(isinstance(task.reference, tuple) for task in (*kept, *held_out))
    if several:
        how = f"rewards under them are combined ({config.reward.combine}), and a baseline trains on each"
        skipped.append(f"{several:,} rows have several references: {how}")
    notes = [*skipped, *bad.warnings(), *_notes(kept, held_out, left_out)]
    return RftData(_rows(kept, config.policy.kind), held_out, notes)


def _tasks(source: Any, bad: OnBadRow, wrapper: Wrapper, check: Callable[[Task], None]) -> Iterator[Task]:
    def convert(row: Mapping[str, Any], rules: RowRules) -> Task:
        prompt, references, own = to_prompt_and_references(row, rules)
        if not isinstance(prompt, str) and any(message.get("tool_calls") for message in prompt):
            raise InvalidRecord(
                "prompt", "messages of a role and a content: tool_calls would be lost; write them into the content"
            )
        reference = as_reference(references)
        task = Task(prompt, reference, own or wrapper, {**row, "prompt": prompt, "reference": listed(reference)})
        check(task)
        return task

    return (task for _, task in read_rows(source, convert, bad))


def _notes(kept: Sequence[Task], held_out: Sequence[Task], left_out: int) -> list[str]:
    if not held_out:
        return []
    notes = []
    if left_out:
        notes.append(f"{left_out:,} training rows are left out, because their prompts are held out")
    near = dict(near_copies([flatten(task.prompt) for task in held_out], (flatten(task.prompt) for task in kept)))
    if near:
        held, trained = min(near.items())
        first = f"{_short(held_out[held].prompt)} and {_short(kept[trained].prompt)}"
        notes.append(f"{len(near):,} of {len(held_out):,} held-out prompts nearly equal a training prompt, such as {first}")
    if (count := len({prompt_key(task.prompt) for task in held_out})) < FEW_PROMPTS:
        notes.append(f"there are only {count} held-out prompts: the intervals are too narrow, and few differences show")
    return notes


def _rows(tasks: Sequence[Task], kind: str) -> list[dict[str, Any]]:
    prompts = [messages(task.prompt) if kind == "chat" else task.prompt for task in tasks]
    references = [texts_of(task.reference) for task in tasks]
    for column, texts in (("prompt", prompts), ("reference", [text for each in references for text in each])):
        if len({isinstance(text, str) for text in texts}) > 1:
            raise PolarError(
                f"data: field {column!r} is a string in some rows and a list of messages in others; a table needs one"
            )
    several = any(len(each) > 1 for each in references)
    return [
        {"prompt": prompt, "reference": each if several else each[0], "wrapper": task.wrapper}
        for task, prompt, each in zip(tasks, prompts, references, strict=True)
    ]


def texts_of(reference: Any) -> list[Text]:
    """The references of a row: a text, or a list (or tuple) of several texts."""
    is_text = isinstance(reference, str) or (isinstance(reference, list) and isinstance(reference[0], Mapping))
    return [reference] if is_text else list(reference)


def messages(prompt: Text) -> Text:
    """A prompt as messages; a string becomes a user's."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    # In a table all messages get the keys of all other messages, and chat templates would render the missing values.
    return [{"role": message["role"], "content": message["content"]} for message in prompt]


def _short(text: Text) -> str:
    flat = " ".join(flatten(text).split())
    return repr(flat if len(flat) <= 60 else f"{flat[:59]}…")
