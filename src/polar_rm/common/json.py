"""The one JSON writer: standard JSON for any value, for every file and line of JSON."""

from __future__ import annotations

import json
import math
from typing import Any


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """The value as standard JSON, on one line or indented.

    NaN becomes null. Other values that JSON can't express (infinities, dates) become strings. Half a surrogate pair, which UTF-8
    can't encode, is written as its escape (``\\ud800``).

    Raises:
        RecursionError: the value is nested too deeply, or contains itself.
    """
    encoder = _ENCODER if indent is None else _encoder(indent)
    try:
        text = encoder.encode(value)
    except (TypeError, ValueError):  # a key or a number, for which the encoder doesn't call ``default``
        text = encoder.encode(_plain(value))
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def _plain(value: Any) -> Any:
    """The value with its keys and numbers replaced by ones that JSON can express."""
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
        except ValueError:  # more digits than Python's limit for integers and strings
            return hex(value)
    return value


def _as_text(value: Any) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text.encode("utf-8", "backslashreplace").decode()


def _encoder(indent: int | None) -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_as_text, indent=indent)


_ENCODER = _encoder(None)
