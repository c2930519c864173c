"""Rows out of text files: JSON lines, JSON arrays, CSV; plain or compressed. One row is in memory at a time."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from polar_rm.errors import PolarError
from polar_rm.records.values import MAX_TEXT_CHARACTERS as MAX_ROW_BYTES

Rows = Iterator[tuple[int, Any]]
"""Row numbers, counted from 1, with what stands there: a mapping, or :class:`Unreadable`."""

_BUFFER = 1 << 20
_SHOWN = 1000  # characters of a line that is too long, in the side file
_TOO_LONG = f"at most {MAX_ROW_BYTES:,} bytes a row"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A line that is no row at all, and what it should be."""

    expected: str
    content: str


def json_line_rows(path: Path) -> Rows:
    """Of JSON lines; the number is the line's. Blank lines are passed over.

    Raises:
        PolarError: the file can't be read, or its compression is damaged.
    """
    number = 0
    with _opened(path, lambda: f"line {number}") as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_ROW_BYTES + 1), b""), 1):
            if len(line) > MAX_ROW_BYTES:
                _skip_line(file, line)
                yield number, Unreadable(_TOO_LONG, line[:_SHOWN].decode("utf-8", "backslashreplace") + "...")
            elif not line.isspace():
                yield number, _json_row(line, number)


def json_rows(path: Path) -> Rows:
    """Of a ``.json`` file: an array of rows, counted in it; or JSON lines, which often bear this suffix.

    Raises:
        PolarError: it is neither, or can't be read.
    """
    with _opened(path, lambda: "its beginning") as file:
        first = _first_byte(file)
        if first == b"{":
            lines = [line for line in (file.readline(MAX_ROW_BYTES), file.readline(MAX_ROW_BYTES)) if line.strip()]
            if len(lines) < 2 or isinstance(_json_row(b"{" + lines[0], 1), Unreadable):
                raise PolarError(
                    f"{path}: it holds one JSON object; a .json file of rows is an array of them, or has one a line (as .jsonl)"
                )
        elif first not in (b"[", b""):
            raise PolarError(f"{path}: it is neither an array of rows nor JSON lines")
    return _array_rows(path) if first == b"[" else json_line_rows(path)


def csv_rows(path: Path, delimiter: str) -> Rows:
    """Of CSV with a line of names; rows are counted behind it. An empty cell is a missing value.

    Raises:
        PolarError: it can't be read, names a column twice or not at all, or its quotes do not end.
    """
    number = 0
    csv.field_size_limit(MAX_ROW_BYTES)
    with _opened(path, lambda: f"row {number}") as file:
        reader = csv.reader(_text_lines(file, path), delimiter=delimiter, strict=True)
        try:
            names = next(reader, [])
            check_names(path, names)
            for number, cells in enumerate(reader, 1):
                if not cells:
                    continue
                if len(cells) != len(names):
                    found = f"{len(names)} cells, as the first line names, not {len(cells)}"
                    yield number, Unreadable(found, delimiter.join(cells)[:_SHOWN])
                else:
                    yield number, {name: cell or None for name, cell in zip(names, cells, strict=True)}
        except csv.Error as error:
            raise PolarError(f"{path}: unreadable after row {number}: {error}") from error


def check_names(path: Path, names: list[str]) -> None:
    """Whether the columns of a table have names of their own, and are not too many.

    Raises:
        PolarError: they are not.
    """
    if len(names) > MAX_COLUMNS:
        raise PolarError(f"{path}: it has {len(names):,} columns; at most {MAX_COLUMNS:,} are read")
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        if not name:
            raise PolarError(f"{path}: column {number} has no name")
        if name in seen:
            raise PolarError(f"{path}: two columns have the name {name!r}")
        seen.add(name)


MAX_COLUMNS = 10_000
"""Of a table. Each row keeps all columns that it does not use as metadata."""


def _array_rows(path: Path) -> Rows:
    """The elements of an array, decoded one by one out of a buffer that holds little more than one."""
    number, decoder = 0, json.JSONDecoder()
    with _opened(path, lambda: f"row {number}") as file:
        text, start, at_end = "", 0, False
        decode = codecs.getincrementaldecoder("utf-8-sig")()
        separator = "["
        while True:
            try:
                start = _behind_blanks(text, start)
                if start < len(text) and text[start] == "]" and separator != "[":
                    break
                if not text[start:].startswith(separator):
                    raise json.JSONDecodeError(f"Expecting {separator!r}", text, start)
                begin = _behind_blanks(text, start + 1)
                if separator == "[" and text[begin : begin + 1] == "]":
                    break
                value, end = decoder.raw_decode(text, begin)
                if _behind_blanks(text, end) >= len(text) and not at_end:
                    raise json.JSONDecodeError("cut", text, end)
            except RecursionError:
                raise PolarError(f"{path}: row {number + 1}: it is nested too deeply") from None
            except json.JSONDecodeError as error:
                if at_end or _is_damaged(error, text):
                    raise PolarError(f"{path}: unreadable after row {number}: {error.msg}") from None
                if len(text) - start > MAX_ROW_BYTES:
                    raise PolarError(f"{path}: row {number + 1}: expected {_TOO_LONG}") from None
                try:
                    # As much again as is held: a row is decoded a few times at most, however long it is.
                    read = file.read(max(_BUFFER, len(text) - start))
                    text, start, at_end = text[start:] + decode.decode(read, final=not read), 0, not read
                except UnicodeDecodeError as failure:
                    raise PolarError(f"{path}: unreadable after row {number}: not UTF-8 text") from failure
            except ValueError:
                digits = sys.get_int_max_str_digits()
                raise PolarError(f"{path}: row {number + 1}: expected integers of at most {digits:,} digits") from None
            else:
                number += 1
                start, separator = end, ","
                yield number, value


def _is_damaged(error: json.JSONDecodeError, text: str) -> bool:
    """Whether more text could not help: the error lies well before the end of what was read."""
    return error.pos < len(text) - 64 and "Unterminated" not in error.msg


def _behind_blanks(text: str, start: int) -> int:
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start


def _json_row(line: bytes, number: int) -> Any:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        expected = f"UTF-8 text, but byte {error.start + 1} of the line is not"
    except json.JSONDecodeError as error:
        expected = f"one JSON object a line, but at column {error.colno}: {error.msg}"
        if number == 1 and line.lstrip().startswith(b"["):
            expected = "one JSON object a line, but here an array begins; a file that holds one array of rows is named .json"
        elif number == 1 and line.strip() == b"{":
            expected = "one JSON object a line, but this one goes over several lines"
    except RecursionError:
        expected = "JSON, but it is nested too deeply"
    except ValueError:
        expected = f"integers of at most {sys.get_int_max_str_digits():,} digits"
    else:
        if number == 1 and isinstance(row, list):
            expected = "an object with named fields, but this is an array; a file that holds one array of rows is named .json"
        else:
            return row
    return Unreadable(expected, line.decode("utf-8", "backslashreplace").rstrip("\n"))


def _text_lines(file: IO[bytes], path: Path) -> Iterator[str]:
    for number, line in enumerate(iter(partial(file.readline, MAX_ROW_BYTES + 1), b""), 1):
        if len(line) > MAX_ROW_BYTES:
            raise PolarError(f"{path}: line {number}: expected {_TOO_LONG}")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise PolarError(f"{path}: line {number}: expected UTF-8 text, but byte {error.start + 1} is not") from error


def _skip_line(file: IO[bytes], line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(_BUFFER)


def _first_byte(file: IO[bytes]) -> bytes:
    byte = file.read(1)
    if byte == b"\xef":  # a byte order mark
        file.read(2)
        byte = file.read(1)
    while byte.isspace():
        byte = file.read(1)
    return byte


class _Stream(io.RawIOBase):
    """Raw bytes from a ``read(n)``, at most ``size`` of them."""

    def __init__(self, read: Callable[[int], bytes], size: int | None = None) -> None:
        self._read, self._left = read, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = len(buffer) if self._left is None else min(len(buffer), self._left)
        data = self._read(wanted) if wanted else b""
        buffer[: len(data)] = data
        if self._left is not None:
            self._left -= len(data)
        return len(data)


@contextmanager
def _opened(path: Path, place: Callable[[], str]) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed by its suffix. It is read to the size that it has now: what a writer adds to it meanwhile,
    such as this very run, would never end. place: how far reading has come, for the message.

    Raises:
        PolarError: the file can't be read, or its compression is damaged.
    """
    try:
        with path.open("rb", buffering=0) as raw:
            size = os.fstat(raw.fileno()).st_size
            plain = io.BufferedReader(_Stream(raw.read, size if path.is_file() else None), _BUFFER)
            match path.suffix.lower():
                case ".gz":
                    yield io.BufferedReader(gzip.GzipFile(fileobj=plain, mode="rb"), _BUFFER)
                case ".zst":
                    import pyarrow as pa

                    stream = pa.CompressedInputStream(pa.PythonFile(plain, mode="r"), "zstd")
                    yield io.BufferedReader(_Stream(stream.read), _BUFFER)
                case _:
                    yield plain
    except (OSError, EOFError, zlib.error) as error:
        raise PolarError(f"{path}: unreadable after {place()}: {error}") from error
