"""Groups of comparisons by a field of their metadata."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from polar_rm.records import Comparison

NO_GROUP = "(none)"
"""The group of comparisons that lack the field."""


def group_of(comparison: Comparison, by: str | None) -> str:
    """The value of a metadata key as text; ``meta.language`` addresses a key of a nested mapping, which may be JSON text."""
    if by is None:
        return NO_GROUP
    value: Any = comparison.metadata
    path = [by] if by in comparison.metadata else by.split(".")
    for key in path:
        value = _mapping(value).get(key)
    if value is None:
        return NO_GROUP
    return value if isinstance(value, str) else json.dumps(value, default=str)


def field_names(metadata: Mapping[str, Any]) -> Iterator[str]:
    """All keys that :func:`group_of` accepts for this metadata, two levels deep."""
    for key, value in metadata.items():
        yield key
        yield from (f"{key}.{inner}" for inner in _mapping(value))


def suggestion(by: str, known: list[str]) -> str:
    """The end of a message about a field that no comparison has."""
    if close := difflib.get_close_matches(by, known, 1):
        return f": did you mean {close[0]!r}?"
    return f"; there is: {', '.join(sorted(known)[:20])}" if known else "; there is no metadata at all"


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}  # a text that only looks like JSON has no keys
    return value if isinstance(value, Mapping) else {}
