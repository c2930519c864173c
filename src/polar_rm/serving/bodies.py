"""The cost of a request body, which is known before it is parsed, and whose turn it is to be parsed.

JSON is parsed and validated as a whole. In that time the event loop answers nobody, and other threads wait, too. The time depends
on how many values a body holds, rather than on its bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import numpy as np

LARGE_BODY = 1 << 20
"""Bytes of a body that others should not have to wait for. Counting what it holds takes a few milliseconds."""
MAX_VALUES = 1 << 21
"""Values of one body: numbers, texts, lists, objects and keys. The longest request of our client has half of it, 64 sequences of
16,384 ids."""

_KEY = 4  # a key costs as much time as four numbers
# The characters that count, as bits.
_QUOTE, _COMMA, _COLON, _OPENING = 1, 2, 4, 8
_SIGNS = np.zeros(256, np.uint8)
_SIGNS[ord('"')] = _QUOTE
_SIGNS[ord(",")] = _COMMA
_SIGNS[ord(":")] = _COLON
_SIGNS[[ord("["), ord("{")]] = _OPENING
_PIECE = 1 << 17  # bytes that are processed together; they fit into a cache


async def excess(content: bytes, max_lists: int) -> str | None:
    """What a body holds too much of, as a message; None if it can be parsed. max_lists: of lists and objects together."""
    if len(content) <= max_lists:  # it can't hold more values than bytes
        return None
    limits = max(MAX_VALUES, 2 * _KEY * max_lists), max_lists  # so that all objects may have two keys
    large = len(content) > LARGE_BODY
    counts = await asyncio.to_thread(count_json, content, *limits) if large else count_json(content, *limits)
    for name, count, limit in zip(("values", "lists and objects"), counts, limits, strict=True):
        if count > limit:
            return f"more than {limit:,} {name} in one body: send less in one request"
    return None


def count_json(content: bytes, max_values: int, max_lists: int) -> tuple[int, int]:
    """Upper bounds on the values of JSON in UTF-8 (a key counts as four) and on its lists and objects, without parsing it.

    Counting stops beyond a limit. Nearly all of the time is spent in numpy, which lets other threads run.
    """
    if b"\\" in content:
        content = content.replace(b"\\\\", b"").replace(b'\\"', b"")  # each remaining quote begins or ends a text
    values, lists, inside = 1, 0, 0
    for start in range(0, len(content), _PIECE):
        signs = _SIGNS[np.frombuffer(content, np.uint8, min(_PIECE, len(content) - start), start)]
        quotes = signs & _QUOTE
        quotes[0] ^= inside
        within = np.bitwise_xor.accumulate(quotes)
        inside = within[-1]
        signs[within != 0] = 0
        opened = int(np.count_nonzero(signs & _OPENING))
        lists += opened
        values += opened + int(np.count_nonzero(signs & _COMMA)) + _KEY * int(np.count_nonzero(signs & _COLON))
        if values > max_values or lists > max_lists:
            break
    return values, lists


class Turns:
    """Large bodies are parsed one after another, with pauses between them that are as long as the parsing took.

    A small request needs several turns of the event loop. Without the pauses it would wait for another large body in each.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self, n_bytes: int) -> AsyncIterator[Callable[[], None]]:
        """Waits for the turn of a body of so many bytes. The turn ends when the yielded function is called, or with the block."""
        if n_bytes <= LARGE_BODY:
            yield lambda: None
            return
        await self._lock.acquire()
        began, loop, active = time.perf_counter(), asyncio.get_running_loop(), True

        def end() -> None:
            nonlocal active
            if active:
                active = False
                loop.call_later(time.perf_counter() - began, self._lock.release)

        try:
            yield end
        finally:
            end()
