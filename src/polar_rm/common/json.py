"""Standard JSON for any value: the one place that writes it."""

from __future__ import annotations

import json
import math
from typing import Any


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """Standard JSON, by default in one line. NaN becomes null; all else that JSON has no form for (infinities, bytes) text."""
    encoder = _ENCODER if indent is None else _encoder(indent)
    try:
        return encoder.encode(value)
    except (TypeError, ValueError):  # a key, or a number that the encoder doesn't ask about
        return encoder.encode(_plain(value))


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


def _encoder(indent: int | None = None) -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_as_text, indent=indent)


_ENCODER = _encoder()
