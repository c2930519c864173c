"""Conversion between texts and the cells of a table. A table's column has one type, so a list of messages is stored as JSON text.

Any JSON text that is a list of messages is read as these messages, whatever its whitespace and key order. A plain string that
would be read as messages is stored as the only element of a JSON list of strings, and so is a string that looks like such a
list. So every string is read back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from polar_rm.common.json import dump_json
from polar_rm.records.types import Text

# Strings that begin with one of these are always quoted, because earlier versions recognised only these.
_QUOTED = ('[{"role"', '["[')


def to_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The result of :func:`to_row` as a table's row: texts and metadata as strings."""
    cells = dict(row)
    for name in cells.keys() & {"prompt", "reference", "output"}:
        cells[name] = to_cell(cells[name])
    for name in cells.keys() & {"candidates", "references"}:
        cells[name] = [to_cell(text) for text in cells[name]]
    cells["metadata"] = dump_json(cells["metadata"])
    return cells


def to_cell(text: Text | None) -> str | None:
    """A text as a table's cell: messages, and strings that look like messages, as JSON."""
    if isinstance(text, list):
        return dump_json([{"role": message["role"], **message} for message in text])
    if isinstance(text, str) and _needs_quotes(text):
        return dump_json([text])
    return text


def from_cell(cell: str) -> Text:
    """The text that a table's cell represents; the inverse of :func:`to_cell`."""
    if not cell.startswith("[") and not cell.lstrip().startswith("["):  # nearly all cells
        return cell
    if '"role"' not in cell and not cell[1:].lstrip(" \t\r\n[").startswith('"'):  # neither messages nor a quoted string
        return cell
    value = parsed(cell)
    if _are_messages(value):
        return value  # type: ignore[no-any-return]
    match value:
        case [str(text)] if _needs_quotes(text):
            return text
    return cell


def looks_like_messages(text: str) -> str | None:
    """The notation, JSON text or Python's, in which a plain string spells a list of messages; None where it does not."""
    start = text[:64].lstrip()
    if start[1:].lstrip().startswith(("{'role'", "{'content'")):
        return "Python's notation"
    return "JSON text" if '"role"' in text and _are_messages(parsed(text)) else None


def parsed(text: str) -> Any:
    """The parsed JSON value, or the text itself where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def parsed_structure(text: str) -> Any:
    """The parsed JSON object or list, or the text itself where it is neither, so that a text of digits stays a text."""
    value = parsed(text)
    return value if isinstance(value, (dict, list)) else text


def _needs_quotes(text: str) -> bool:
    return text.startswith(_QUOTED) or from_cell(text) is not text


def _are_messages(value: Any) -> bool:
    """Whether the value looks like messages: objects with a role, at least one of them with content or tool calls.

    Errors in single messages are reported later, when the messages are checked.
    """
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in value)
        and any("content" in message or "tool_calls" in message for message in value)
    )
