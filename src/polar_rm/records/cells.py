"""Texts and records as a table's cells hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from polar_rm.common.json import dump_json
from polar_rm.records.types import Text

MESSAGES_START = '[{"role"'
# A plain string that would be read as messages is stored in a table as the only element of a JSON list of strings, and so is a
# string that looks like such a list. Every string then comes back as it was.
QUOTED_START = '["['


def to_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of :func:`to_row` for a table: texts and metadata as strings."""
    cells = dict(row)
    for name in cells.keys() & {"prompt", "reference", "output"}:
        cells[name] = to_cell(cells[name])
    if "candidates" in cells:
        cells["candidates"] = [to_cell(candidate) for candidate in cells["candidates"]]
    cells["metadata"] = dump_json(cells["metadata"])
    return cells


def to_cell(text: Text | None) -> str | None:
    """A text as a table holds it: messages, and strings that look like them, as JSON."""
    if isinstance(text, list):
        return dump_json([{"role": message["role"], **message} for message in text])
    if isinstance(text, str) and text.startswith((MESSAGES_START, QUOTED_START)):
        return dump_json([text])
    return text


def from_cell(cell: str) -> Text:
    """The text that a cell of a table stands for."""
    if not cell.startswith((MESSAGES_START, QUOTED_START)):
        return cell
    value = parsed(cell)
    if isinstance(value, list) and cell.startswith(MESSAGES_START):
        return value
    match value:
        case [str(text)] if text.startswith((MESSAGES_START, QUOTED_START)):
            return text
    return cell


def parsed(text: str) -> Any:
    """The JSON value, or the text itself where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
