"""Text helpers for messages."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the next one where it only announces that; its type where it has none."""
    first, *rest = _lines(error)
    return f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first


def last_line(error: BaseException) -> str:
    """The last line of an error's message; its type where it has none."""
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]
