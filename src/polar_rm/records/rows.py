"""Rows to records and back: the accepted columns, and what is refused.

A row is a mapping of column names to values. In a table (Parquet, a ``datasets`` object) a column has one type, so there a list
of messages is JSON text that starts with ``[{"role"``; in JSONL a list is a list and a string is always a string.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, TypeVar, get_args

from polar_rm.records.types import Comparison, Record, ScoreItem, Text, Trajectory, Wrapper, flatten

T = TypeVar("T")

_WRAPPERS: tuple[Wrapper, ...] = get_args(Wrapper)
_TEXT = "text or a list of messages"
_MESSAGES = '[{"role"'
# A plain string that would be read as messages is stored in a table as the only element of a JSON list of strings, and so is a
# string that looks like such a list. Every string then comes back as it was.
_QUOTED = '["['


class Refused(Exception):
    """A row is no record: ``field`` was expected to be ``expected``. The reader adds file and row number."""

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"field {field!r}: expected {expected}")
        self.field, self.expected = field, expected


class _Fields:
    """Takes checked fields out of one row; the columns that nobody took are the record's metadata."""

    def __init__(self, row: Mapping[str, Any], is_cell: bool) -> None:
        # Data frames write missing values as NaN.
        self._left = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
        self._missing = object()
        self._is_cell = is_cell

    def has(self, name: str) -> bool:
        return self._left.get(name) is not None

    def text(self, name: str) -> Text:
        return self._text(name, self._pop(name, _TEXT))

    def filled(self, name: str) -> Text:
        """A text that is not blank."""
        value = self.text(name)
        if not flatten(value).strip():
            raise Refused(name, f"a {name}, but it is empty")
        return value

    def optional(self, take: Callable[[str], T], name: str) -> T | None:
        """``take(name)``, or None where the column is missing or null."""
        if self.has(name):
            return take(name)
        self._left.pop(name, None)
        return None

    def texts(self, name: str) -> tuple[Text, ...]:
        expected = "a list of at least two texts"
        values = self._pop(name, expected)
        if not isinstance(values, (list, tuple)):
            raise Refused(name, f"{expected}, not {_kind(values)}")
        if len(values) < 2:
            raise Refused(name, f"{expected}, not {len(values)}")
        return tuple(self._text(f"{name}[{i}]", value) for i, value in enumerate(values))

    def ranks(self, name: str, count: int) -> tuple[int, ...]:
        expected = "a list of integers >= 0, one for each candidate"
        values = self._pop(name, expected)
        if not isinstance(values, (list, tuple)):
            raise Refused(name, f"{expected}, not {_kind(values)}")
        if len(values) != count:
            raise Refused(name, f"{count} ranks, one for each candidate, not {len(values)}")
        for value in values:
            if not _is_integer(value) or value < 0:
                raise Refused(name, f"{expected}, not {_kind(value)}")
        if len(set(values)) == 1:
            raise Refused(name, "at least two different ranks: with equal ones there is nothing to compare")
        return tuple(map(int, values))

    def wrapper(self) -> Wrapper:
        value = self.optional(self.string, "wrapper") or "sft"
        for known in _WRAPPERS:
            if value == known:
                return known
        raise Refused("wrapper", f"one of {', '.join(_WRAPPERS)}, not {value!r}")

    def string(self, name: str) -> str:
        value = self._pop(name, "a string")
        if not isinstance(value, str):
            raise Refused(name, f"a string, not {_kind(value)}")
        _check_unicode(name, value)
        return value

    def integer(self, name: str) -> int:
        value = self._pop(name, "an integer")
        if not _is_integer(value):
            raise Refused(name, f"an integer, not {_kind(value)}")
        return int(value)

    def number(self, name: str) -> float:
        value = self._pop(name, "a number")
        if isinstance(value, bool) or not isinstance(value, Real) or not _is_finite(value):
            raise Refused(name, f"a finite number, not {_kind(value)}")
        return float(value)

    def metadata(self) -> dict[str, Any]:
        """The column ``metadata`` with all columns left. ``meta`` may be JSON text (so may ``metadata``); other text stays.

        Raises:
            Refused: a column differs from the value of its name in ``metadata``, a text is no Unicode, or the nesting too deep.
        """
        left = self._left
        if isinstance(meta := left.get("meta"), str):
            left["meta"] = parsed(meta)
        own = left.pop("metadata", None)
        own = parsed(own) if isinstance(own, str) else own
        if not isinstance(own, dict):
            own = {} if own is None else {"metadata": own}
        left = {name: value for name, value in left.items() if value is not None or name not in own}  # null contradicts nothing
        metadata: dict[str, Any] = {**own, **left}
        _check_unicode("metadata", metadata)
        metadata = _without_nan(metadata)
        for name in left:
            if name in own and _without_nan(own[name]) != metadata[name]:
                raise Refused(name, "one value, but the row's metadata has another of this name")
        return metadata

    def _pop(self, name: str, expected: str) -> Any:
        value = self._left.pop(name, self._missing)
        if value is self._missing:
            raise Refused(name, f"{expected}, but it is missing")
        if value is None:
            raise Refused(name, f"{expected}, not null")
        return value

    def _text(self, name: str, value: Any) -> Text:
        if self._is_cell and isinstance(value, str):
            value = from_cell(value)
        if not isinstance(value, (str, list)):
            raise Refused(name, f"{_TEXT}, not {_kind(value)}")
        if isinstance(value, list):
            _check_messages(name, value)
        _check_unicode(name, value)
        return value


def to_comparison(row: Mapping[str, Any], is_cell: bool = False) -> Comparison:
    """{prompt, reference, candidates, ranks[, wrapper]} or the official {prompt, reference, chosen, rejected[, wrapper]}.

    Raises:
        Refused: the row is neither. A missing or null reference is None.
    """
    take = _Fields(row, is_cell)
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
    take = _Fields(row, is_cell)
    prompt, reference, output = take.text("prompt"), take.text("reference"), take.text("output")
    return ScoreItem(prompt, reference, output, take.wrapper(), take.metadata())


def to_trajectory(row: Mapping[str, Any], is_cell: bool = False) -> Trajectory:
    """{source, prompt_id, prompt, policy, sample_id, text} and what is known about the sampling.

    Raises:
        Refused: it is not one.
    """
    take = _Fields(row, is_cell)
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
    take = _Fields(row, is_cell)
    return take.string("prompt_id"), take.filled("prompt")


def to_referenced_prompt(row: Mapping[str, Any], is_cell: bool = False) -> tuple[Text, Text, Wrapper | None]:
    """{prompt, reference[, wrapper]}.

    Raises:
        Refused: it is not one, or one of them is empty.
    """
    take = _Fields(row, is_cell)
    return take.filled("prompt"), take.filled("reference"), take.wrapper() if take.has("wrapper") else None


def to_string(row: Mapping[str, Any], column: str) -> str:
    """One string.

    Raises:
        Refused: the column holds something else.
    """
    return _Fields(row, is_cell=True).string(column)


def to_prompt_text(row: Mapping[str, Any], is_cell: bool = False) -> Text:
    """{prompt}.

    Raises:
        Refused: it is not one.
    """
    return _Fields(row, is_cell).text("prompt")


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


def to_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of :func:`to_row` for a table: texts and metadata as strings."""
    cells = dict(row)
    for name in cells.keys() & {"prompt", "reference", "output"}:
        cells[name] = to_cell(cells[name])
    if "candidates" in cells:
        cells["candidates"] = [to_cell(candidate) for candidate in cells["candidates"]]
    cells["metadata"] = dump_json(cells["metadata"])
    return cells


def dump_json(value: Any) -> str:
    """One line of standard JSON. NaN becomes null; all else that JSON has no form for (infinities, bytes, dates) text."""
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError):  # a key, or a number that the encoder doesn't ask about
        return _ENCODER.encode(_plain(value))


def _plain(value: Any) -> Any:
    """The value with numbers and keys that JSON has a form for."""
    if isinstance(value, dict):
        keys = (_plain(key) if isinstance(key, (str, int, float, type(None))) else _as_text(key) for key in value)
        return dict(zip(keys, map(_plain, value.values()), strict=True))
    if isinstance(value, (list, tuple)):
        return list(map(_plain, value))
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, int):
        try:
            str(value)
        except ValueError:  # more digits than Python writes, or reads
            return hex(value)
    return value


def _as_text(value: Any) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text.encode("utf-8", "backslashreplace").decode()


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_as_text)


def to_cell(text: Text | None) -> str | None:
    """A text as a table holds it: messages, and strings that look like them, as JSON."""
    if isinstance(text, list):
        return dump_json([{"role": message["role"], **message} for message in text])
    if isinstance(text, str) and text.startswith((_MESSAGES, _QUOTED)):
        return dump_json([text])
    return text


def from_cell(cell: str) -> Text:
    """The text that a cell of a table stands for."""
    if not cell.startswith((_MESSAGES, _QUOTED)):
        return cell
    value = parsed(cell)
    if isinstance(value, list) and cell.startswith(_MESSAGES):
        return value
    match value:
        case [str(text)] if text.startswith((_MESSAGES, _QUOTED)):
            return text
    return cell


def parsed(text: str) -> Any:
    """The JSON value, or the text itself where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _check_messages(name: str, messages: list[Any]) -> None:
    if not messages:
        raise Refused(name, f"{_TEXT}, not an empty list")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise Refused(f"{name}[{i}]", f"a message with role and content, not {_kind(message)}")
        for key in ("role", "content"):
            if key not in message:
                raise Refused(f"{name}[{i}].{key}", "a string, but it is missing")
            if not isinstance(message[key], str):
                raise Refused(f"{name}[{i}].{key}", f"a string, not {_kind(message[key])}")


def _without_nan(value: Any) -> Any:
    """None in place of NaN, at any depth; what holds none stays the same object.

    Types are asked for before each call inside: most metadata is a few strings and integers.
    """
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if not isinstance(value, (dict, list, tuple)):
        return value
    result: Any = value
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if type(inner) not in _NEVER_NAN and (clean := _without_nan(inner)) is not inner:
            if result is value:
                result = dict(value) if isinstance(value, dict) else list(value)
            result[key] = clean
    return result


_NEVER_NAN = {str, int, bool, type(None)}


def _check_unicode(name: str, value: Any) -> None:
    """JSON can spell half a surrogate pair, which is no character: no tokenizer and no UTF-8 file takes it."""
    if _is_ascii(value):
        return
    try:
        _check_characters(name, value)
    except RecursionError:
        raise Refused(name, "values that are nested less deeply") from None


def _check_characters(name: str, value: Any) -> None:
    """The same question before each call inside keeps names from being put together for texts that need none."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            expected = f"Unicode text, but character {error.start + 1} is the lone surrogate U+{ord(value[error.start]):04X}"
            raise Refused(name, expected) from None
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not _is_ascii(key):
                _check_characters(f"{name}, a key", key)
            if not _is_ascii(inner):
                _check_characters(f"{name}.{key}", inner)
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            if not _is_ascii(inner):
                _check_characters(f"{name}[{i}]", inner)


def _is_ascii(value: Any) -> bool:
    """A string knows it without a look at its characters, and most are."""
    return type(value) is str and value.isascii()


def _is_integer(value: Any) -> bool:
    """An integer of 64 bits: a Parquet file holds no other."""
    return (type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))) and _has_64_bits(value)


def _has_64_bits(value: Any) -> bool:
    return -(2**63) <= int(value) < 2**63


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case Integral() if not _has_64_bits(value):
            return "an integer of more than 64 bits"
        case Integral() | float():
            return str(value)
        case str():
            return "a string"
        case bytes():
            return "bytes (a binary column)"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
    return f"a {type(value).__name__}"
