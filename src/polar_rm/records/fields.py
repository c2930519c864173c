"""Checked fields of one row: what a column may hold, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar, get_args

from polar_rm.records.cells import from_cell, parsed
from polar_rm.records.types import Text, Wrapper, flatten

T = TypeVar("T")
_WRAPPERS: tuple[Wrapper, ...] = get_args(Wrapper)
_TEXT = "text or a list of messages"


class Refused(Exception):
    """A row is no record: ``field`` was expected to be ``expected``. The reader adds file and row number."""

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"field {field!r}: expected {expected}")
        self.field, self.expected = field, expected


class Fields:
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
