"""The rows that get a reference: comparisons, items {prompt, output}, or prompts alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from polar_rm.errors import BadRow, PolarError
from polar_rm.records import (
    PROTOCOL_FIELD,
    Comparison,
    InvalidRecord,
    OnBadRow,
    ReferencedPrompt,
    RowRules,
    ScoreItem,
    Text,
    check,
    flatten,
    one_reference,
    parsed,
    read_rows,
    survey_files,
    to_comparison,
    to_item,
)
from polar_rm.records.fields import Fields
from polar_rm.references.config import FromColumn, FromSibling, ReferencesConfig, benchmark

_HAS_REFERENCE = ("reference", "none, because this command makes references; existing=keep or replace accepts such rows")

Referenced = Comparison | ScoreItem | ReferencedPrompt
"""The records that are written. An item or a prompt without a reference has a blank one."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input.

    file, number: its position. content: the fields as they were read. record: the row as a record; it has a reference only if an
    existing one is kept or a column is the reference. is_done: whether the record has its final reference. score: the score of an
    item, if siblings are ordered by scores. judged: the comparison of a benchmark; its record is only the prompt, because the
    benchmark's rule needs the unchanged candidates.
    """

    file: str
    number: int
    content: Mapping[str, Any]
    record: Referenced
    is_done: bool
    score: float | None = None
    judged: Comparison | None = None

    @property
    def key(self) -> str:
        """The key of prompt and wrapper: 32 hexadecimal digits."""
        return hashlib.sha256(json.dumps([self.record.prompt, self.record.wrapper], sort_keys=True).encode()).hexdigest()[:32]

    @property
    def answers(self) -> tuple[Text, ...]:
        """The answers that should differ from the reference."""
        return answers_of(self.judged or self.record)

    def with_reference(self, reference: Text, protocol: str, **facts: Any) -> Referenced:
        """The record with a reference. facts: more metadata about the reference.

        Raises:
            InvalidRecord: the result is not a valid record, for example because the reference repeats the prompt's messages.
        """
        metadata = {**self.record.metadata, PROTOCOL_FIELD: protocol, **facts}
        return check(replace(self.record, reference=reference, metadata=metadata))


def answers_of(record: Referenced) -> tuple[Text, ...]:
    """The answers of a record that should differ from its reference."""
    match record:
        case Comparison():
            return record.candidates
        case ScoreItem():
            return (record.output,)
    return ()


class Rows:
    """The rows of all inputs. They can be read several times; only the first pass reports bad rows."""

    def __init__(self, config: ReferencesConfig, bad: OnBadRow) -> None:
        self._config, self.bad = config, bad
        # A benchmark selects its own files in its folder.
        self.files = [Path(config.inputs[0])] if config.suite else list(survey_files(config.inputs, [config.output]).files)
        self._passes = 0

    def __iter__(self) -> Iterator[Row]:
        return islice(self._all(), self._config.limit)

    def _all(self) -> Iterator[Row]:
        return self._of_suite(self._config.suite) if self._config.suite else self._of_files()

    def _of_suite(self, name: str) -> Iterator[Row]:
        for number, comparison in enumerate(benchmark(name).read(self.files[0]), 1):
            given = one_reference(comparison)
            has_reference = not is_blank(given)
            if has_reference and self._config.existing == "error":
                raise BadRow(str(self.files[0]), number, *_HAS_REFERENCE)
            keeps = has_reference and self._config.existing == "keep"
            record = ReferencedPrompt(comparison.prompt, given if keeps else "", comparison.wrapper, comparison.metadata)
            content = {"prompt": comparison.prompt, **comparison.metadata}
            yield Row(str(self.files[0]), number, content, record, keeps, judged=comparison)

    def _of_files(self) -> Iterator[Row]:
        bad = self.bad if self._passes == 0 else OnBadRow(self._config.on_bad_row, os.devnull)
        self._passes += 1
        kind: type | None = None
        for file in self.files:
            for number, row in read_rows(file, partial(_convert, self._config), bad):
                kind = kind or type(row[1])
                if type(row[1]) is not kind:
                    raise PolarError(f"{file}: row {number}: a {type(row[1]).__name__}, but the first row is a {kind.__name__}")
                yield Row(str(file), number, *row)


def _convert(
    config: ReferencesConfig, row: Mapping[str, Any], rules: RowRules
) -> tuple[Mapping[str, Any], Referenced, bool, float | None]:
    """The unchanged row, the record, whether it has its final reference, and its score."""
    source, has_reference = config.reference, Fields(row, rules.is_cell).has("reference")
    if has_reference and config.existing == "error":
        raise InvalidRecord(*_HAS_REFERENCE)
    plain = dict(row)
    keeps = has_reference and config.existing == "keep"
    if not keeps:
        plain["reference"] = _column(source.column, row, rules) if isinstance(source, FromColumn) else None
    record = _record(plain, rules)
    if not keeps and isinstance(source, FromColumn):
        record = replace(record, metadata={**record.metadata, PROTOCOL_FIELD: source.protocol})
    score = None
    if isinstance(source, FromSibling) and not keeps:
        if isinstance(record, ReferencedPrompt):
            raise InvalidRecord("output", "an answer, or candidates: a sibling is another answer to the same prompt")
        if isinstance(record, ScoreItem):
            if source.score is None:
                raise InvalidRecord(
                    "output", "candidates with ranks; for items {prompt, output} set reference.score to the field of the score"
                )
            score = Fields(row, rules.is_cell).number(source.score)
    return row, record, keeps or isinstance(source, FromColumn), score


def _record(row: dict[str, Any], rules: RowRules) -> Referenced:
    """The row as a record. A missing reference is None in a comparison, and blank in an item or a prompt."""
    has = Fields(row, rules.is_cell).has
    if has("candidates") or has("chosen") or has("rejected"):
        return to_comparison(row, rules=rules)
    if has("output"):
        return to_item({**row, "reference": row.get("reference") or ""}, rules=rules)
    take = Fields(row, rules.is_cell)
    prompt = take.filled("prompt")
    reference = take.optional(take.text, "reference")
    return ReferencedPrompt(prompt, "" if reference is None else reference, take.wrapper(), take.metadata())


def _column(name: str, row: Mapping[str, Any], rules: RowRules) -> Text:
    """The text of a field, which may be nested and must not be blank."""
    if name in row or "." not in name:
        return Fields(row, rules.is_cell).filled(name)
    value: Any = row
    for key in name.split("."):
        value = parsed(value) if isinstance(value, str) else value
        value = value.get(key) if isinstance(value, Mapping) else None
    try:
        return Fields({"value": value}, rules.is_cell).filled("value")
    except InvalidRecord as error:
        raise InvalidRecord(name, error.expected.replace("a value", "a text")) from None


def is_blank(text: Text | None) -> bool:
    """Whether a reference is missing or blank."""
    return text is None or not flatten(text).strip()
