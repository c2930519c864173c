"""The second pass: reads the texts of the selected candidates, and writes the rows for SFT or DPO."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from polar_rm.common.files import atomic_file, full_disk_named
from polar_rm.errors import PolarError
from polar_rm.records import InvalidRecord, RowRules, Text, dump_json
from polar_rm.selection.candidates import Row, as_messages, hash64, kept_columns, read_raw, to_scored, to_unscored
from polar_rm.selection.parts import Job
from polar_rm.selection.rules import Selection
from polar_rm.selection.table import Ints, Table


@dataclass(frozen=True, slots=True)
class Answer:
    """A candidate with its texts. index: its place in the table. is_cell: its row comes from a table."""

    index: int
    row: Row
    output: Text
    is_cell: bool


def read_answers(job: Job, table: Table, wanted: Ints) -> Iterator[Answer]:
    """Read the texts of candidates. wanted: their indices in ascending order.

    Raises:
        PolarError: a file has changed since its numbers were read.
    """
    for number, file in enumerate(job.inputs):
        indices = wanted[table.files[wanted] == number]
        position = 0
        for row_number, (content, is_cell) in read_raw(file) if len(indices) else ():
            if table.rows[indices[position]] != row_number:
                continue
            row = _converted(job, number, content, is_cell)
            while position < len(indices) and table.rows[indices[position]] == row_number:
                index = int(indices[position])
                outputs = row.outputs if row else ()
                place = int(table.places[index])
                if row is None or place >= len(outputs) or hash64([row.prompt_key, outputs[place]]) != table.texts[index]:
                    raise PolarError(f"{file}: row {row_number}: the file has changed since this run read it; run it again")
                yield Answer(index, row, outputs[place], is_cell)
                position += 1
            if position == len(indices):
                break
        if position < len(indices):
            raise PolarError(f"{file}: the file has changed since this run read it; run it again")


def _converted(job: Job, number: int, content: Any, is_cell: bool) -> Row | None:
    convert = to_scored if job.scores[number] is None else to_unscored
    try:
        return convert(job.config, content, RowRules(is_cell, job.config.strip_prompt))
    except InvalidRecord:  # it was valid before
        return None


def write_rows(job: Job, table: Table, selection: Selection, path: Path, watch: Callable[[Answer], None], also: Ints) -> int:
    """Write the selected rows, atomically and in the order of the input; returns their number.

    watch: gets every answer that is read, once: the selected and rejected ones, and those of ``also`` (indices).

    Raises:
        PolarError: a file has changed since its numbers were read, or the disk is full.
    """
    needed = np.unique(np.concatenate([selection.selected, selection.rejected, also]))
    answers = _watched(read_answers(job, table, needed), watch)
    with atomic_file(path) as file:
        if job.config.kind == "pairs":
            _write_pairs(job, table, selection, _Spool(job, needed, answers), file)
        else:
            _write_messages(job, table, selection, answers, file)
    return len(selection.selected)


def _watched(answers: Iterator[Answer], watch: Callable[[Answer], None]) -> Iterator[Answer]:
    for answer in answers:
        watch(answer)
        yield answer


def _write_messages(job: Job, table: Table, selection: Selection, answers: Iterator[Answer], file: IO[bytes]) -> None:
    for answer in answers:
        if selection.dropped_by[answer.index] < 0:
            messages = as_messages(answer.row.prompt, "user") + as_messages(answer.output, "assistant")
            file.write(_line({"messages": messages, "score": float(table.scores[answer.index]), **_metadata(job, answer)}))


def _write_pairs(job: Job, table: Table, selection: Selection, spool: _Spool, file: IO[bytes]) -> None:
    with spool.opened() as read:
        for index in selection.selected.tolist():
            partner = int(selection.partners[index])
            chosen, rejected = read(index), read(partner)
            scores = {"score_chosen": float(table.scores[index]), "score_rejected": float(table.scores[partner])}
            row = {"prompt": chosen["prompt"], "chosen": chosen["answer"], "rejected": rejected["answer"], **scores}
            file.write(_line(row | ({"metadata": chosen["metadata"]} if "metadata" in chosen else {})))


@dataclass(frozen=True, slots=True)
class _Spool:
    """A file of answers. The two answers of a pair may be far apart in the input, so all are written here first.

    needed: the indices of the answers, in their order.
    """

    job: Job
    needed: Ints
    answers: Iterator[Answer]

    @contextmanager
    def opened(self) -> Iterator[Callable[[int], dict[str, Any]]]:
        """Write the answers; yields the function that reads one by its index."""
        path = self.job.work / "answers.jsonl"
        offsets = np.zeros(len(self.needed), np.int64)
        with full_disk_named(path), path.open("w+b") as stored:
            for number, answer in enumerate(self.answers):
                offsets[number] = stored.tell()
                parts = {"prompt": as_messages(answer.row.prompt, "user"), "answer": as_messages(answer.output, "assistant")}
                stored.write(_line(parts | _metadata(self.job, answer)))

            def read(index: int) -> dict[str, Any]:
                stored.seek(int(offsets[np.searchsorted(self.needed, index)]))
                answer: dict[str, Any] = json.loads(stored.readline())
                return answer

            yield read
        path.unlink()


def _metadata(job: Job, answer: Answer) -> dict[str, Any]:
    columns = kept_columns(job.config, answer.row, answer.is_cell)
    return {"metadata": columns} if job.config.keep_columns != "none" else {}


def _line(row: dict[str, Any]) -> bytes:
    return (dump_json(row) + "\n").encode()
