"""Readers of text files: JSON lines, JSON arrays and CSV, plain or compressed. One row is in memory at a time."""

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
"""Pairs of a row number, counted from 1, and the row's content: a mapping, or :class:`Unreadable`."""

_BUFFER = 1 << 20
_KEPT_CHARACTERS = 1000  # of a line that is too long, for the side file
_TOO_LONG = f"at most {MAX_ROW_BYTES:,} bytes a row"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A line that can't be parsed as a row, and what was expected."""

    expected: str
    content: str


def json_line_rows(path: Path, start: int = 0, stop: int | None = None, first: int = 1) -> Rows:
    """Read JSON lines; a row's number is its line number, and blank lines are skipped.

    start, stop: the bytes of a plain file to read, where lines begin; by default all. first: the number of the line at ``start``.

    Raises:
        PolarError: the file can't be read, or its compression is damaged.
    """
    number = first - 1
    with _opened(path, lambda: f"line {number}", start, stop) as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_ROW_BYTES + 1), b""), first):
            if len(line) > MAX_ROW_BYTES:
                _skip_line(file, line)
                yield number, Unreadable(_TOO_LONG, line[:_KEPT_CHARACTERS].decode("utf-8", "backslashreplace") + "...")
            elif not line.isspace():
                yield number, _json_row(line, number)


def json_rows(path: Path) -> Rows:
    """Read a ``.json`` file: an array of rows, or JSON lines, which often have this suffix.

    Raises:
        PolarError: the file is neither, or can't be read.
    """
    with _opened(path, lambda: "its beginning") as file:
        first = _first_byte(file)
        if first == b"{":
            lines = [line for line in (file.readline(MAX_ROW_BYTES), file.readline(MAX_ROW_BYTES)) if line.strip()]
            if len(lines) < 2 or isinstance(_json_row(b"{" + lines[0], 1), Unreadable):
                raise PolarError(
                    f"{path}: it holds one JSON object; expected an array of objects, or one object a line (as in .jsonl)"
                )
        elif first not in (b"[", b""):
            raise PolarError(f"{path}: it is neither an array of rows nor JSON lines")
    return _array_rows(path) if first == b"[" else json_line_rows(path)


def csv_rows(path: Path, delimiter: str) -> Rows:
    """Read CSV with a header line; rows are counted after the header. An empty cell is a missing value.

    Raises:
        PolarError: the file can't be read, the header has a duplicate or empty name, or a quotation mark is not closed.
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
                    expected = f"{len(names)} cells, one for each column of the header, not {len(cells)}"
                    yield number, Unreadable(expected, delimiter.join(cells)[:_KEPT_CHARACTERS])
                else:
                    yield number, {name: cell or None for name, cell in zip(names, cells, strict=True)}
        except csv.Error as error:
            raise PolarError(f"{path}: unreadable after row {number}: {error}") from error


def check_names(path: Path, names: list[str]) -> None:
    """Check that a table has at most :data:`MAX_COLUMNS` columns, with different and non-empty names.

    Raises:
        PolarError: names the column at fault.
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
"""The maximum number of columns in a table. Every row keeps all columns that it does not use as metadata."""


def _array_rows(path: Path) -> Rows:
    """Read the elements of an array one by one from a buffer that holds little more than one element."""
    number, decoder = 0, json.JSONDecoder()
    with _opened(path, lambda: f"row {number}") as file:
        text, start, at_end = "", 0, False
        decode = codecs.getincrementaldecoder("utf-8-sig")()
        separator = "["
        while True:
            try:
                start = _skip_blanks(text, start)
                if start < len(text) and text[start] == "]" and separator != "[":
                    break
                if not text[start:].startswith(separator):
                    raise json.JSONDecodeError(f"Expecting {separator!r}", text, start)
                begin = _skip_blanks(text, start + 1)
                if separator == "[" and text[begin : begin + 1] == "]":
                    break
                value, end = decoder.raw_decode(text, begin)
                if _skip_blanks(text, end) >= len(text) and not at_end:
                    raise json.JSONDecodeError("more text is needed", text, end)
            except RecursionError:
                raise PolarError(f"{path}: row {number + 1}: it is nested too deeply") from None
            except json.JSONDecodeError as error:
                if at_end or _is_damaged(error, text):
                    raise PolarError(f"{path}: unreadable after row {number}: {error.msg}") from None
                if len(text) - start > MAX_ROW_BYTES:
                    raise PolarError(f"{path}: row {number + 1}: expected {_TOO_LONG}") from None
                try:
                    # Double the buffer, so that a row is decoded a few times at most, however long it is.
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
    """Whether reading more text can't help: the error lies well before the end of the text read so far."""
    return error.pos < len(text) - 64 and "Unterminated" not in error.msg


def _skip_blanks(text: str, start: int) -> int:
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
            expected = "one JSON object a line, but the file begins with an array; name a file with one array of rows .json"
        elif number == 1 and line.strip() == b"{":
            expected = "one JSON object a line, but this one spans several lines"
    except RecursionError:
        expected = "JSON, but it is nested too deeply"
    except ValueError:
        expected = f"integers of at most {sys.get_int_max_str_digits():,} digits"
    else:
        if number == 1 and isinstance(row, list):
            expected = "an object with named fields, but this is an array; name a file with one array of rows .json"
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
    """A raw stream over a function ``read(n)``, of at most ``size`` bytes."""

    def __init__(self, read: Callable[[int], bytes], size: int | None = None) -> None:
        self._read, self._remaining = read, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n_bytes = len(buffer) if self._remaining is None else min(len(buffer), self._remaining)
        data = self._read(n_bytes) if n_bytes else b""
        buffer[: len(data)] = data
        if self._remaining is not None:
            self._remaining -= len(data)
        return len(data)


@contextmanager
def _opened(path: Path, position: Callable[[], str], start: int = 0, stop: int | None = None) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed by its suffix.

    It is read up to its current size: a run that appends to the file which it reads would never end. position: describes how far
    reading has come, for the message. start, stop: the bytes of a plain file to read.

    Raises:
        PolarError: the file can't be read, or its compression is damaged.
    """
    try:
        with path.open("rb", buffering=0) as raw:
            size = os.fstat(raw.fileno()).st_size
            if start or stop is not None:
                raw.seek(start)
                size = (size if stop is None else min(size, stop)) - start
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
        raise PolarError(f"{path}: unreadable after {position()}: {error}") from error
