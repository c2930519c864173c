"""Finds one reference for each row, from each kind of source."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polar_rm.common.files import atomic_file
from polar_rm.common.progress import Progress
from polar_rm.errors import BadRow, PolarError
from polar_rm.records import Comparison, InvalidRecord, Text, dump_json, flatten, is_copy, one_reference, read_trajectories
from polar_rm.references.answers import Answers
from polar_rm.references.config import FromColumn, FromPolicy, FromSibling, ReferencesConfig
from polar_rm.references.rows import Referenced, Row, Rows, answers_of
from polar_rm.sampling.config import SamplingConfig
from polar_rm.sampling.prompts import PromptRows
from polar_rm.sampling.runner import run_sampling


@dataclass(slots=True)
class Counts:
    """The numbers of rows by outcome.

    made, kept: rows with a new reference, and with their existing one. refused: rows without a possible reference. copies: rows
    whose reference is equal, or nearly, to one of their answers. unfinished: references truncated by the limit on new tokens.
    from_row: siblings that were candidates of the same row.
    """

    rows: int = 0
    made: int = 0
    kept: int = 0
    refused: int = 0
    copies: int = 0
    unfinished: int = 0
    from_row: int = 0


Find = Callable[[Row], Referenced | str]
"""Returns the record of a row with its reference; without a possible reference, a description of what was expected."""


def referenced(rows: Rows, config: ReferencesConfig, find: Find, counts: Counts) -> Iterator[Referenced]:
    """Every row with its reference. A row without a possible reference is refused like a bad row."""
    for row in rows:
        counts.rows += 1
        try:
            record = row.record if row.is_done else find(row)
        except InvalidRecord as error:
            rows.bad.refuse(BadRow(row.file, row.number, error.field, error.expected), row.content)
            counts.refused += 1
            continue
        if isinstance(record, str):
            rows.bad.refuse(BadRow(row.file, row.number, "prompt", record), row.content)
            counts.refused += 1
            continue
        is_kept = row.is_done and not isinstance(config.reference, FromColumn)
        counts.kept += is_kept
        counts.made += not is_kept
        reference, answers = flatten(one_reference(record)), answers_of(row.judged or record)
        counts.copies += any(is_copy(reference, flatten(text)) for text in answers)
        yield record
    if counts.refused and not counts.made + counts.kept:
        raise PolarError(f"all {counts.refused:,} rows were refused, see {rows.bad.side_file}")


@contextmanager
def finder(rows: Rows, config: ReferencesConfig, work: Path, counts: Counts, progress: Progress) -> Iterator[Find]:
    """The function that finds the reference of a row. work: a folder for temporary files."""
    match config.reference:
        case FromColumn():
            yield lambda row: row.record
        case FromSibling():
            with Answers.open(work / "answers.sqlite") as answers:
                collect_answers(rows, answers)
                yield lambda row: sibling(row, answers, counts)
        case FromPolicy() as source:
            with Answers.open(work / "answers.sqlite") as answers:
                if write_prompts(rows, work / "prompts.jsonl", source):
                    draw(config, source, work, answers, progress)
                yield lambda row: sampled(row, source, answers, counts)


def collect_answers(rows: Rows, answers: Answers) -> None:
    """Collect all answers that may become a reference: those of the best rank in comparisons, and all of items, by score."""
    for row in rows:
        if row.score is not None:
            answers.add(row.key, row.answers, penalty=-row.score)
        elif isinstance(record := row.judged or row.record, Comparison):
            best = [text for text, rank in zip(record.candidates, record.ranks, strict=True) if rank == min(record.ranks)]
            answers.add(row.key, best, penalty=0)


def sibling(row: Row, answers: Answers, counts: Counts) -> Referenced | str:
    """The row with the best answer of another row to the same prompt that is not nearly equal to one of its own answers.

    If there is none, the best candidate of the row becomes the reference and is removed from the candidates, as in the paper:
    rank 1 is the reference of ranks 2 and 3.
    """
    for text in answers.of(row.key):  # includes the row's own answers, which are skipped as copies
        if _is_other(text, row.answers):
            return row.with_reference(text, "sibling")
    record = row.record
    if isinstance(record, Comparison):
        best = record.ranks.index(min(record.ranks))
        others = [index for index in range(len(record.candidates)) if index != best]
        ranks = tuple(record.ranks[index] for index in others)
        candidates = tuple(record.candidates[index] for index in others)
        if len(set(ranks)) > 1 and _is_other(record.candidates[best], candidates):
            counts.from_row += 1
            smaller = replace(row, record=replace(record, candidates=candidates, ranks=ranks))
            return smaller.with_reference(record.candidates[best], "sibling")
        return "another answer to this prompt of the best rank in another row, or three ranks in this one"
    return "another answer to this prompt in another row"


def _is_other(text: Text, texts: tuple[Text, ...]) -> bool:
    """Whether a text is not blank, and not equal, or nearly, to one of the others."""
    flat = flatten(text)
    return bool(flat.strip()) and not any(is_copy(flat, flatten(other)) for other in texts)


def write_prompts(rows: Rows, path: Path, source: FromPolicy) -> set[str]:
    """Write every prompt that needs a reference once, as ``polar sample`` reads them; returns their ids."""
    keys: set[str] = set()
    wrapper = "pretrain" if source.policy.continues() else "sft"
    with atomic_file(path) as file:
        for row in rows:
            if not row.is_done and row.key not in keys and row.record.wrapper == wrapper and flatten(row.record.prompt).strip():
                keys.add(row.key)
                file.write(dump_json({"prompt_id": row.key, "prompt": row.record.prompt}).encode() + b"\n")
    return keys


def sampling_config(config: ReferencesConfig, source: FromPolicy, work: Path, prompts: Path) -> SamplingConfig:
    """The run of ``polar sample`` that draws the references."""
    return SamplingConfig(
        output=work / "samples",
        prompts=[PromptRows(rows=prompts)],
        source="references",
        policies=[source.policy],
        seed=config.seed,
        engine=source.engine,
        batch_size=source.batch_size,
        precision=source.precision,
        device=source.device,
    )


def draw(config: ReferencesConfig, source: FromPolicy, work: Path, answers: Answers, progress: Progress) -> None:
    """Draw the missing samples, and add all samples to ``answers``.

    Raises:
        PolarError: samples are still missing. The others are kept, and the next run draws the missing ones.
    """
    report = run_sampling(sampling_config(config, source, work, work / "prompts.jsonl"), progress)
    report.check()
    if report.n_trajectories:
        for sample in read_trajectories(report.path):
            answers.add(sample.prompt_id, [json.dumps([sample.text, sample.finish_reason])], penalty=0)


def sampled(row: Row, source: FromPolicy, answers: Answers, counts: Counts) -> Referenced | str:
    """The row with the policy's answer to its prompt."""
    wrapper = "pretrain" if source.policy.continues() else "sft"
    if row.record.wrapper != wrapper:
        return f"a row of wrapper {wrapper}, which this kind of policy answers, not {row.record.wrapper}"
    for answer in answers.of(row.key):
        text, finish_reason = json.loads(str(answer))
        counts.unfinished += finish_reason == "length"
        facts: dict[str, Any] = {"reference_policy": source.policy.name, "reference_finish_reason": finish_reason}
        return row.with_reference(text, source.protocol, **facts)
    return f"a prompt that {source.policy.name} has answered"
