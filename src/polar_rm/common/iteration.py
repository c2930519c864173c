"""Helpers on iterables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def windows(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` consecutive values; the last may be shorter."""
    iterator = iter(values)
    while window := list(islice(iterator, size)):
        yield window
