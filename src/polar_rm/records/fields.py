"""Checked fields of one row: the values that a column may hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from numbers import Real
from typing import Any, TypeVar, get_args

from polar_rm.records.cells import from_cell, looks_like_messages, parsed_structure
from polar_rm.records.messages import plain_messages
from polar_rm.records.types import Text, Wrapper, flatten
from polar_rm.records.values import (
    MAX_TEXT_CHARACTERS,
    InvalidRecord,
    check_unicode,
    is_finite,
    is_integer,
    kind_of,
    without_nan,
)

T = TypeVar("T")
_WRAPPERS: tuple[Wrapper, ...] = get_args(Wrapper)
_TEXT = "text or a list of messages"
_MAY_BE_MESSAGES = frozenset(("[", " ", "\n", "\t", "\r"))  # first characters; nearly all texts begin with others
# A row without one of these columns is valid but means something else, so a column with a mistyped name must not become metadata.
_NEARLY = {name: (f"{name}s", name.title(), f"{name.title()}s", name.upper()) for name in ("reference", "wrapper")}

# What to do with several texts in a column of one.
_LISTS = {"reference": "; several references are a column 'references'", "output": "; each output has a row of its own"}

_MAX_NAMES = 12  # maximum number of column names in a message


class Fields:
    """Takes checked fields out of one row; the remaining columns are the record's metadata.

    is_cell: the row comes from a table, where messages and lists are JSON text. notes: texts about values that were read
    unchanged but may mean something else, worded for a message about many rows.

    Every method that takes a field raises :class:`InvalidRecord` where the field is missing, null or invalid.
    """

    def __init__(self, row: Mapping[str, Any], is_cell: bool) -> None:
        # Data frames write missing values as NaN.
        self._remaining = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
        self._names = row.keys()
        self._is_cell = is_cell
        self.notes: list[str] = []

    def columns(self) -> str:
        """The names of the row's columns, for messages; of many only the first ones."""
        return _listed(self._names) or "no columns"

    def has(self, name: str) -> bool:
        """Whether the column exists and is not null."""
        return self._remaining.get(name) is not None

    def text(self, name: str) -> Text:
        """A string, or the messages of a conversation with their contents as strings."""
        return self._text(name, self._pop(name, _TEXT))

    def filled(self, name: str) -> Text:
        """A text that is not blank."""
        value = self.text(name)
        if not flatten(value).strip():
            raise InvalidRecord(name, f"a {name}, but it is empty")
        return value

    def optional(self, take: Callable[[str], T], name: str) -> T | None:
        """``take(name)``, or None where the column is missing or null.

        Raises:
            InvalidRecord: also where a reference or a wrapper is missing and another column's name differs from it only by a
                final s or by case, and is not null.
        """
        if self.has(name):
            return take(name)
        if name in _NEARLY and (near := self._near(name)):
            raise InvalidRecord(name, f"one {name} a row, but the row has {near!r}; did you mean {name!r}?")
        self._remaining.pop(name, None)
        return None

    def texts(self, name: str) -> tuple[Text, ...]:
        """A list of at least two texts."""
        expected = "a list of at least two texts"
        values = self._list(name, self._pop(name, expected), expected)
        if len(values) < 2:
            raise InvalidRecord(name, f"{expected}, not {len(values)}")
        return tuple(self._text(f"{name}[{i}]", value) for i, value in enumerate(values))

    def one_or_more(self, name: str) -> list[Text]:
        """A text or a list of texts; RewardBench 2 has several rejected texts in a row."""
        value = self._pop(name, _TEXT)
        if isinstance(value, (list, tuple)) and value and not isinstance(value[0], dict):
            return [self._text(f"{name}[{i}]", each) for i, each in enumerate(value)]
        return [self._text(name, value)]

    def references(self) -> list[Text] | None:
        """The texts of the column ``references``, which takes the place of ``reference``: at least one, none of them blank. None
        where the row has no such column."""
        values = self.optional(lambda name: self.values(name, "a list of at least one text", minimum=1), "references")
        if values is None:
            return None
        if self.optional(self.text, "reference") is not None:
            raise InvalidRecord("references", "one of reference and references, but the row has both")
        texts = [self._text(f"references[{i}]", value) for i, value in enumerate(values)]
        for i, text in enumerate(texts):
            if not flatten(text).strip():
                raise InvalidRecord(f"references[{i}]", "a text, but it is empty")
        return texts

    def strings(self, name: str, minimum: int = 1) -> list[str]:
        """A list of at least ``minimum`` strings. Each stays unchanged; none is read as messages."""
        values = self.values(name, f"a list of at least {minimum} string{'s' if minimum > 1 else ''}", minimum)
        for i, value in enumerate(values):
            _check_string(f"{name}[{i}]", value)
        return values

    def values(self, name: str, expected: str = "a list", minimum: int = 0) -> list[Any]:
        """A list of at least ``minimum`` values of any type. expected: a description of the list, for the message."""
        values = self._list(name, self._pop(name, expected), expected)
        if len(values) < minimum:
            raise InvalidRecord(name, f"{expected}, not {len(values)}")
        return list(values)

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self._pop(name, "true or false")
        if not isinstance(value, bool):
            raise InvalidRecord(name, f"true or false, not {kind_of(value)}")
        return value

    def ranks(self, name: str, count: int) -> tuple[int, ...]:
        """A list of ``count`` integers >= 0, at least two of them different.

        Floats with an integer value, which data frames make of integers in a column with missing values, and texts of digits are
        read as integers.
        """
        expected = "a list of integers >= 0, one for each candidate"
        values = self._list(name, self._pop(name, expected), expected)
        if len(values) != count:
            raise InvalidRecord(name, f"{count} ranks, one for each candidate, not {len(values)}")
        ranks = [_as_integer(value) for value in values]
        for value, rank in zip(values, ranks, strict=True):
            if not is_integer(rank) or rank < 0:
                raise InvalidRecord(name, f"{expected}, not {kind_of(value)}")
        if len(set(ranks)) == 1:
            raise InvalidRecord(name, "at least two different ranks: equal ranks are not compared")
        return tuple(map(int, ranks))

    def wrapper(self) -> Wrapper:
        """The wrapper: ``sft``, which is the default, or ``pretrain``."""
        value = self.optional(self.string, "wrapper") or "sft"
        for known in _WRAPPERS:
            if value == known:
                return known
        raise InvalidRecord("wrapper", f"one of {', '.join(_WRAPPERS)}, not {value!r}")

    def string(self, name: str) -> str:
        """A string, which may be empty."""
        return _check_string(name, self._pop(name, "a string"))

    def integer(self, name: str) -> int:
        """An integer of 64 bits; in tables also a float with an integer value or a text of digits."""
        value = self._pop(name, "an integer")
        integer = _as_integer(value) if self._is_cell else value
        if not is_integer(integer):
            raise InvalidRecord(name, f"an integer, not {kind_of(value)}")
        return int(integer)

    def number(self, name: str) -> float:
        """A finite number; in tables also the text of one."""
        value = self._pop(name, "a number")
        number = _as_number(value) if self._is_cell and isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, Real) or not is_finite(number):
            raise InvalidRecord(name, f"a finite number, not {kind_of(value)}")
        return float(number)

    def measure(self, name: str) -> float:
        """A finite number, or true or false as 1 or 0."""
        value = self._remaining.get(name)
        return float(self.boolean(name)) if isinstance(value, bool) else self.number(name)

    def measures(self, name: str, count: int) -> list[float]:
        """A list of ``count`` finite numbers or booleans, see :meth:`measure`."""
        expected = f"a list of {count} finite numbers, or of true and false"
        values = self.values(name, expected)
        if len(values) != count:
            raise InvalidRecord(name, f"{expected}, not {len(values)} values")
        inner = [f"{name}[{i}]" for i in range(count)]
        fields = Fields(dict(zip(inner, values, strict=True)), self._is_cell)
        return [fields.measure(each) for each in inner]

    def metadata(self) -> dict[str, Any]:
        """The column ``metadata`` merged with all remaining columns.

        In tables ``metadata`` and ``meta`` may be JSON text; other text stays unchanged.

        Raises:
            InvalidRecord: a column and ``metadata`` hold different values under one name, a text is not Unicode, or the nesting
                is too deep.
        """
        columns = self._remaining
        if self._is_cell and isinstance(meta := columns.get("meta"), str):
            columns["meta"] = parsed_structure(meta)
        value = columns.pop("metadata", None)
        value = parsed_structure(value) if self._is_cell and isinstance(value, str) else value
        if not isinstance(value, dict):
            value = {} if value is None else {"metadata": value}
        columns = {name: each for name, each in columns.items() if each is not None or name not in value}  # null is no conflict
        metadata: dict[str, Any] = {**value, **columns}
        if metadata:
            check_unicode("metadata", metadata)
        metadata = without_nan(metadata)
        for name in columns:
            if name in value and without_nan(value[name]) != metadata[name]:
                raise InvalidRecord(name, "one value, but the row's metadata has another one under this name")
        return metadata

    def _pop(self, name: str, expected: str) -> Any:
        value = self._remaining.pop(name, None)
        if value is not None:
            return value
        if name not in self._names:
            near = self._near(name) or next(iter(get_close_matches(name, _strings(self._remaining), n=1, cutoff=0.8)), None)
            hint = f", and the row has {near!r}; did you mean {name!r}?" if near else f"; the row has {self.columns()}"
            raise InvalidRecord(name, f"{expected}, but it is missing{hint}")
        near = self._near(name)
        raise InvalidRecord(name, f"{expected}, not null{f'; the row has {near!r}' if near else ''}")

    def _near(self, name: str) -> str | None:
        """A remaining column that is not null and whose name is nearly this one, such as ``references``."""
        return next((near for near in _NEARLY.get(name, ()) if self.has(near)), None)

    def _list(self, name: str, value: Any, expected: str) -> list[Any] | tuple[Any, ...]:
        value = parsed_structure(value) if self._is_cell and isinstance(value, str) else value
        if not isinstance(value, (list, tuple)):
            raise InvalidRecord(name, f"{expected}, not {kind_of(value)}")
        return value

    def _text(self, name: str, value: Any) -> Text:
        if type(value) is str and value.isascii() and value[:1] not in _MAY_BE_MESSAGES and len(value) <= MAX_TEXT_CHARACTERS:
            return value
        if isinstance(value, str):
            if len(value) > MAX_TEXT_CHARACTERS:
                _check_length(name, value)
            if value[:1] in _MAY_BE_MESSAGES:
                value = self._maybe_messages(name, value)
        if isinstance(value, list):
            if value and isinstance(value[0], str):
                raise InvalidRecord(name, f"{_TEXT}, not a list of texts{_LISTS.get(name, '')}")
            return plain_messages(name, value)
        if not isinstance(value, str):
            if isinstance(value, Real) and not isinstance(value, bool):
                raise InvalidRecord(name, f'{_TEXT}, not the number {kind_of(value)}; write it as a text: "{kind_of(value)}"')
            raise InvalidRecord(name, f"{_TEXT}, not {kind_of(value)}")
        check_unicode(name, value)
        return value

    def _maybe_messages(self, name: str, text: str) -> Text:
        value = from_cell(text) if self._is_cell else text
        if value is text and text[:64].lstrip().startswith("[") and (form := looks_like_messages(text)):
            self.notes.append(f"{_field(name)!r} is text that spells messages in {form}; it is read as plain text")
        return value


def reference_hint(metadata: Mapping[str, Any]) -> str:
    """The end of a message about a record without a reference: the column that may be meant, or its further columns.

    A column whose name is only like ours is no error by itself: ``preference`` may be one of the user's.
    """
    if near := get_close_matches("reference", _strings(metadata), n=1, cutoff=0.8):
        return f" (it has {near[0]!r}: did you mean 'reference'?)"
    return f" (its further columns: {_listed(metadata)})" if metadata else ""


def _listed(columns: Iterable[Any]) -> str:
    """Names of columns for messages; of many only the first ones."""
    names = [repr(name if len(name) <= 40 else f"{name[:40]}…") for name in map(str, columns)]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{', '.join(names[:_MAX_NAMES])}{more}"


def _check_string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRecord(name, f"a string, not {kind_of(value)}")
    _check_length(name, value)
    check_unicode(name, value)
    return value


def _check_length(name: str, text: str) -> None:
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InvalidRecord(name, f"a text of at most {MAX_TEXT_CHARACTERS:,} characters, not of {len(text):,}")


def _as_integer(value: Any) -> Any:
    """A float with an integer value or a text of digits as an integer; any other value unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit() and len(value) < 20:
        return int(value)
    return value


def _as_number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _strings(names: Iterable[Any]) -> list[str]:
    """The names that are strings: the keys of rows may have any type."""
    return [name for name in names if isinstance(name, str)]


def _field(name: str) -> str:
    return name.partition("[")[0]
