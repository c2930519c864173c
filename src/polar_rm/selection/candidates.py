"""Rows of the inputs as candidates with scores: rows that hold their scores, or items whose scores are rows of another file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polar_rm.errors import BadRow, PolarError
from polar_rm.records import (
    InvalidRecord,
    OnBadRow,
    RowRules,
    Text,
    dump_json,
    flatten,
    from_cell,
    read_rows,
    to_item,
    to_samples,
)
from polar_rm.records.fields import Fields
from polar_rm.selection.config import SelectConfig

SCORE_COLUMNS = ("score", "reward")
"""Columns that hold the score of a row if the settings name none; the output of ``polar score`` has one of them."""

_ROW_MISSING = "a score, but the file of scores has no row {} (polar score may have skipped it)"


@dataclass(frozen=True, slots=True)
class Row:
    """The candidates of one row of an input.

    prompt_id: None if the row has none, or if rows are joined by text. reference: one, several, or None. outputs: the candidates.
    scores, probabilities: one for each candidate; probabilities are empty if they are not used. score_name: the column of the
    scores, in the singular. group: the name of the row's group, or empty. columns: the row's other columns as they were read.
    """

    prompt: Text
    prompt_id: str | None
    reference: Text | tuple[Text, ...] | None
    outputs: tuple[Text, ...]
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    score_name: str
    group: str
    columns: Mapping[str, Any]

    @property
    def prompt_key(self) -> int:
        """Hash of what joins rows of one prompt: the id, or the text."""
        return hash64(["text", flatten(self.prompt)] if self.prompt_id is None else ["id", self.prompt_id])


def hash64(value: Any) -> int:
    """A hash of 64 bits of a JSON value, equal on every machine."""
    return int.from_bytes(hashlib.blake2b(dump_json(value).encode("utf-8", "surrogatepass"), digest_size=8).digest())


def read_scored(config: SelectConfig, file: Path, scores: Path | None, bad: OnBadRow) -> Iterator[tuple[int, Row]]:
    """Read the rows of a file with their numbers. scores: the file with their scores; None: the rows hold them.

    Raises:
        BadRow: a row is invalid, or a score is missing or not finite, unless bad rows are skipped.
        PolarError: a file can't be read, or there are scores of rows that the input lacks.
    """
    if scores is None:
        yield from read_rows(file, lambda row, rules: to_scored(config, row, rules), bad)
        return
    stored = _Scores(config, scores)
    for number, row in read_rows(file, lambda row, rules: to_unscored(config, row, rules), bad):
        try:
            name, score, probability = stored.of_row(number)
        except InvalidRecord as error:
            bad.refuse(BadRow(str(file), number, error.field, error.expected), dict(row.columns))
            continue
        yield number, replace(row, scores=(score,), probabilities=probability, score_name=name)
    stored.finish(file)


def read_raw(file: Path) -> Iterator[tuple[int, tuple[Mapping[str, Any], bool]]]:
    """The rows of a file as they are, with their numbers, and whether they are rows of a table. Unreadable rows are left out."""
    return read_rows(file, lambda row, rules: (row, rules.is_cell), OnBadRow("skip", os.devnull))


def to_scored(config: SelectConfig, row: Mapping[str, Any], rules: RowRules) -> Row:
    """The candidates of a row that holds their scores.

    Raises:
        InvalidRecord: the row has another form, or a score is missing or not finite.
    """
    name = _score_column(config, row)
    samples = to_samples(row, name, rules)
    _check_answers(samples.wrapper)
    is_list = len(samples.outputs) > 1
    probabilities: tuple[float, ...] = ()
    if config.uses_probability:
        probabilities = _probabilities(row, rules, len(samples.outputs), is_list)
    identity = _prompt_id(config, samples.metadata)
    columns = _other_columns(config, row, name)
    group = _group(config, row, samples.metadata)
    kind = name.removesuffix("s") if is_list and config.score is None else name
    return Row(samples.prompt, identity, samples.reference, samples.outputs, samples.golds, probabilities, kind, group, columns)


def to_unscored(config: SelectConfig, row: Mapping[str, Any], rules: RowRules) -> Row:
    """The candidate of an item {prompt, reference, output}, without its score.

    Raises:
        InvalidRecord: the row has another form.
    """
    item = to_item(row, rules=rules)
    _check_answers(item.wrapper)
    columns = _other_columns(config, row)
    group = _group(config, row, item.metadata)
    return Row(item.prompt, _prompt_id(config, item.metadata), item.reference, (item.output,), (), (), "", group, columns)


class _Scores:
    """The rows of a file that ``polar score`` wrote, which come in the order of the scored file."""

    def __init__(self, config: SelectConfig, file: Path) -> None:
        self._config, self._file = config, file
        self._rows = read_rows(file, self._convert)
        self._next = next(self._rows, None)
        self._last = 0

    def of_row(self, number: int) -> tuple[str, float, tuple[float, ...]]:
        """Column, score and probability (empty if it is not used) of a row of the scored file. Rows that were refused since are
        passed over.

        Raises:
            InvalidRecord: it has no score.
        """
        while self._next is not None and self._next[1][0] < number:
            self._advance()
        if self._next is None or self._next[1][0] != number:
            raise InvalidRecord("score", _ROW_MISSING.format(number))
        _, name, score, probability = self._next[1]
        self._last = number
        self._advance()
        return name, score, probability

    def finish(self, scored: Path) -> None:
        """Check that no scores are left.

        Raises:
            PolarError: there are scores of rows behind the last one of the scored file.
        """
        if self._next is not None and self._next[1][0] > self._last:
            raise PolarError(
                f"{self._file}: row {self._next[0]}: it is the score of row {self._next[1][0]}, but {scored} ends before it: "
                "the scores are of another file"
            )

    def _advance(self) -> None:
        before = self._next
        self._next = next(self._rows, None)
        if before and self._next and self._next[1][0] <= before[1][0]:
            raise BadRow(str(self._file), self._next[0], "row", f"a row behind {before[1][0]}, not {self._next[1][0]}")

    def _convert(self, row: Mapping[str, Any], rules: RowRules) -> tuple[int, str, float, tuple[float, ...]]:
        name = _score_column(self._config, row)
        take = Fields(row, rules.is_cell)
        number, score = take.integer("row"), take.number(name)
        return number, name, score, _probabilities(row, rules, 1, False) if self._config.uses_probability else ()


def _score_column(config: SelectConfig, row: Mapping[str, Any]) -> str:
    if config.model:  # polar score adds a column for every transform but raw
        return "reward" if config.transform == "raw" else "score"
    if config.score:
        return config.score
    suffix = "s" if row.get("outputs") is not None else ""
    names = [f"{name}{suffix}" for name in SCORE_COLUMNS]
    name = next((name for name in names if name in row), None)
    if name is None:
        numbers = [str(key) for key, value in row.items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
        columns = f" (columns with numbers: {', '.join(numbers[:20])})" if numbers else ""
        ways = "the key score names its column; the keys scores and model bring scores of items"
        raise InvalidRecord(names[0], f"a number, but it is missing; {ways}{columns}")
    return name


def _probabilities(row: Mapping[str, Any], rules: RowRules, count: int, is_list: bool) -> tuple[float, ...]:
    name = "probabilities" if is_list else "probability"
    if row.get(name) is None:
        raise InvalidRecord(
            name,
            "a probability, which needs the model's calibration card: polar calibrate writes the card, and polar score "
            "--transform probability the probabilities",
        )
    take = Fields(row, rules.is_cell)
    values = take.measures(name, count) if is_list else [take.number(name)]
    for value in values:
        if not 0 <= value <= 1:
            raise InvalidRecord(name, f"a probability between 0 and 1, not {value}")
    return tuple(values)


def _prompt_id(config: SelectConfig, metadata: Mapping[str, Any]) -> str | None:
    value = metadata.get("prompt_id") if config.prompt_by == "id" else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InvalidRecord("prompt_id", f"a string or an integer, not {type(value).__name__}")
    return str(value)


def _group(config: SelectConfig, row: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """The name of a row's group, from a column or from the row's metadata."""
    if config.group_by is None:
        return ""
    value = row.get(config.group_by)
    value = metadata.get(config.group_by) if value is None else value
    if isinstance(value, float) and value.is_integer():  # a data frame's column with missing values
        value = int(value)
    if not isinstance(value, (str, int)):
        kind = "but it is missing" if value is None else f"not {type(value).__name__}"
        raise InvalidRecord(config.group_by, f"the name of the row's group, {kind}")
    return str(value)


def _check_answers(wrapper: str) -> None:
    if wrapper != "sft":
        raise InvalidRecord("wrapper", f"sft: a continuation ({wrapper}) has no messages, so it can't be written for SFT or DPO")


def as_messages(text: Text, role: str) -> list[dict[str, Any]]:
    """A text as messages: a string as one message of ``role``."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _other_columns(config: SelectConfig, row: Mapping[str, Any], *written: str) -> dict[str, Any]:
    """The columns that are written neither as messages nor as scores."""
    answer = next((name for name in ("outputs", "output", "text") if row.get(name) is not None), "output")
    columns = {name: value for name, value in row.items() if name not in ("prompt", answer, *written)}
    if not isinstance(config.keep_columns, str):
        for name in config.keep_columns:
            if name not in columns:
                raise InvalidRecord(name, "a column to keep (keep_columns), but it is missing")
    return columns


def kept_columns(config: SelectConfig, row: Row, is_cell: bool) -> dict[str, Any]:
    """The columns that are written as metadata."""
    if config.keep_columns == "none":
        return {}
    names = row.columns if config.keep_columns == "all" else config.keep_columns
    values = {name: row.columns[name] for name in names}
    return {name: from_cell(value) if is_cell and isinstance(value, str) else value for name, value in values.items()}
