"""Checks of single values of a row (characters, depth, numbers), and the name of a value's kind for messages."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any


class InvalidRecord(Exception):
    """A row or a record is invalid: ``field`` was expected to be ``expected``.

    Code that knows file and row number raises :class:`polar_rm.errors.BadRow` with them. field: ``""`` where the whole row is at
    fault.
    """

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"field {field!r}: expected {expected}" if field else f"expected {expected}")
        self.field, self.expected = field, expected


MAX_TEXT_CHARACTERS = 32 << 20
"""The maximum number of characters in one text, and of bytes in one row of a text file. Models read 16,384 tokens; a longer text
comes from a damaged or hostile file."""

MAX_DEPTH = 100
"""The maximum nesting of lists and objects, so that every later reader of a row can parse it."""

_NO_TEXT = {int, float, bool, type(None)}
_NEVER_NAN = {str, int, bool, type(None)}


def check_unicode(name: str, value: Any, depth: int = 0) -> None:
    """Check that all texts in a value are Unicode and that the nesting is no deeper than :data:`MAX_DEPTH`.

    JSON can spell half a surrogate pair, which is not a character: no tokenizer and no UTF-8 file accepts it.

    Raises:
        InvalidRecord: names the field and the position.
    """
    # The check before each recursive call avoids formatting names for ASCII texts, which need none.
    if _is_ascii(value):
        return
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            expected = f"Unicode text, but character {error.start + 1} is the lone surrogate U+{ord(value[error.start]):04X}"
            raise InvalidRecord(name, expected) from None
    elif isinstance(value, (dict, list, tuple)):
        if depth == MAX_DEPTH:
            raise InvalidRecord(name.partition(".")[0].partition("[")[0], f"values that are nested less deeply than {MAX_DEPTH}")
        if isinstance(value, dict):
            for key, inner in value.items():
                if not _is_ascii(key):
                    check_unicode(f"{name}, a key", key, depth + 1)
                if type(inner) not in _NO_TEXT and not _is_ascii(inner):
                    check_unicode(f"{name}.{key}", inner, depth + 1)
        else:
            for i, inner in enumerate(value):
                if not _is_ascii(inner):
                    check_unicode(f"{name}[{i}]", inner, depth + 1)


def without_nan(value: Any) -> Any:
    """The value with NaN replaced by None at any depth, because data frames write missing values as NaN.

    A value without NaN is returned as the same object. Types are checked before each recursive call, because most metadata is a
    few strings and integers.
    """
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if not isinstance(value, (dict, list, tuple)):
        return value
    result: Any = value
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if type(inner) not in _NEVER_NAN and (clean := without_nan(inner)) is not inner:
            if result is value:
                result = dict(value) if isinstance(value, dict) else list(value)
            result[key] = clean
    return result


def is_integer(value: Any) -> bool:
    """Whether the value is an integer of 64 bits, which is what Parquet can hold, and not a boolean."""
    return (type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))) and _has_64_bits(value)


def is_finite(value: Any) -> bool:
    """Whether a real number is finite as a float; an integer beyond the range of floats is not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def kind_of(value: Any) -> str:
    """The kind of a value, for the end of ``expected ..., not ...``; a number is shown itself."""
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


def _is_ascii(value: Any) -> bool:
    """Whether the value is an ASCII string. Most are, and Python answers without reading the characters."""
    return type(value) is str and value.isascii()


def _has_64_bits(value: Any) -> bool:
    return -(2**63) <= int(value) < 2**63
