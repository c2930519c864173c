"""Continuations: dividing a text into a beginning and its continuation, and drawing the continuations of other texts.

Both depend on the texts and the seed only, not on their order. A text is divided at a place that its own random numbers choose.
For the negatives, all texts of a split form a ring in the order of their hashes; a text's negatives are the first that the
settings allow among those that follow it. So one walk along the ring, which holds a few hundred texts at a time, draws them all.
"""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from math import ceil, floor
from typing import Any, Literal

from polar_rm.corpus.config import Beginning, Continuations
from polar_rm.encoding.tokenizers import whole_tokenizer
from polar_rm.records import prompt_key

Undivided = Literal["too_short", "without_border"]
"""Why a text can't be divided: it is too short for the minimum lengths and the range, or the range holds no word border."""

_WINDOW = 256  # texts after a text that may give negatives; four times the negatives if that is more
_CHARACTERS_PER_TOKEN = 64  # upper bound: the rest of a text can't be part of its beginning and is not tokenised


# ------------------------------------------------------------------------------------------------------------- division


def is_border(text: str, index: int) -> bool:
    """Whether ``text[:index]`` ends with a word: white space follows, or the border is between Chinese or Japanese characters.

    White space begins the continuation, because byte-level tokenizers join it with the next word. No border is inside a combining
    sequence or a Windows line end: white space begins a new character, and the Chinese and Japanese characters here include no
    combining mark.
    """
    if not 0 < index < len(text):
        return False
    before, after = text[index - 1], text[index]
    if after.isspace():
        return not before.isspace()
    return _is_ideographic(before) and _is_ideographic(after)


def nearest_border(text: str, target: int, low: int, high: int) -> int | None:
    """The border nearest to ``target`` in [low, high], the first of two equally near ones; None if there is none.

    ``target`` is in [low, high].
    """
    for distance in range(max(target - low, high - target) + 1):
        for index in (target - distance, target + distance):
            if low <= index <= high and is_border(text, index):
                return index
    return None


def first_characters(text: str, count: int) -> str:
    """The text up to the last border within its first ``count`` characters; empty if there is none."""
    if len(text) <= count:
        return text
    return text[: nearest_border(text, count, 1, count) or 0] if count else ""


class Divider:
    """Divides texts by the settings of ``pairing``.

    Raises:
        PolarError: the folder of the tokenizer has no valid ``tokenizer.json``.
    """

    def __init__(self, pairing: Continuations, seed: int) -> None:
        self._pairing, self._seed = pairing, seed
        folder = pairing.beginning.tokenizer
        self._tokenizer: Any = whole_tokenizer(folder) if folder else None

    def __call__(self, text: str, text_id: str) -> tuple[str, str] | Undivided:
        """The beginning and its continuation, which together are the text, or why there are none. text_id: seeds the choice."""
        limits = self._range(text)
        if limits is None:
            return "too_short"
        low = max(limits[0], self._pairing.min_beginning)
        high = min(limits[1], len(text) - self._pairing.min_continuation)
        if low > high:
            return "too_short"
        target = random.Random(f"{self._seed} {text_id}").randint(low, high)
        index = nearest_border(text, target, low, high)
        return "without_border" if index is None else (text[:index], text[index:])

    def _range(self, text: str) -> tuple[int, int] | None:
        """The shortest and the longest beginning in characters; None for a text that is shorter than both."""
        beginning: Beginning = self._pairing.beginning
        if beginning.unit == "fraction":
            return ceil(beginning.low * len(text)), floor(beginning.high * len(text))
        low, high = int(beginning.low), int(beginning.high)
        if beginning.unit == "characters":
            return low, high
        start = text[: _CHARACTERS_PER_TOKEN * high]
        ends = [end for _, end in self._tokenizer.encode(start, add_special_tokens=False).offsets]
        return (ends[low - 1], ends[min(high, len(ends)) - 1]) if len(ends) >= low else None


def _is_ideographic(character: str) -> bool:
    """Whether a character is written without spaces between words: Chinese characters and kana. Combining marks are not."""
    code = ord(character)
    known = 0x3041 <= code <= 0x30FF or 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF
    return known and unicodedata.category(character)[0] != "M"


# ------------------------------------------------------------------------------------------------------------ negatives


def copy_key(continuation: str) -> int:
    """A hash that copies of a continuation share, whatever their case and white space: 63 bits."""
    return int.from_bytes(hashlib.blake2b(prompt_key(continuation).encode(), digest_size=8).digest()) >> 1


@dataclass(slots=True, eq=False)
class Candidate:
    """A text in the ring.

    bucket, row: where it is. pool: only texts of one pool are compared. copy: see :func:`copy_key`. length: of its continuation,
    in characters. uses: how often it is a negative so far.
    """

    bucket: int
    row: int
    pool: str
    copy: int
    length: int
    uses: int = 0


Drawn = tuple[Candidate, list[Candidate]]
"""A text and the texts whose continuations are its negatives."""


def draw_negatives(texts: Iterable[Candidate], pairing: Continuations) -> Iterator[Drawn]:
    """Draw the negatives of every text. texts: in the order of their hashes, without copies.

    A text is yielded when the texts after it are known: nothing but these, and the first of each pool, is held. A copy of the
    true continuation, or of another negative, is never a negative.
    """
    rings: dict[str, _Ring] = {}
    for text in texts:
        ring = rings.setdefault(text.pool, _Ring(pairing))
        yield from ring.add(text)
    for ring in rings.values():
        yield from ring.close()


class _Ring:
    def __init__(self, pairing: Continuations) -> None:
        self._pairing = pairing
        self._uses = pairing.uses or pairing.negatives
        self._window = max(_WINDOW, 4 * pairing.negatives)
        self._first: list[Candidate] = []  # they follow the last ones
        self._waiting: deque[Candidate] = deque()

    def add(self, text: Candidate) -> Iterator[Drawn]:
        if len(self._first) < self._window:
            self._first.append(text)
        self._waiting.append(text)
        if len(self._waiting) > self._window:
            first = self._waiting.popleft()
            yield first, self._choose(first, self._waiting)

    def close(self) -> Iterator[Drawn]:
        while self._waiting:
            text = self._waiting.popleft()
            wrapped = islice(self._first, self._window - len(self._waiting))
            # In a small ring the first ones end at the text itself.
            following = [*self._waiting, *takewhile(lambda other, text=text: other is not text, wrapped)]  # type: ignore[misc]
            yield text, self._choose(text, following)

    def _choose(self, text: Candidate, following: Iterable[Candidate]) -> list[Candidate]:
        chosen: list[Candidate] = []
        copies = {text.copy}
        for other in following:
            if len(chosen) == self._pairing.negatives:
                break
            if other.uses < self._uses and other.copy not in copies and self._is_near(text.length, other.length):
                other.uses += 1
                copies.add(other.copy)
                chosen.append(other)
        return chosen

    def _is_near(self, length: int, other: int) -> bool:
        factor = self._pairing.near_length
        return factor is None or (1 + length <= factor * (1 + other) and 1 + other <= factor * (1 + length))


def draw(lengths: Sequence[int], copies: Sequence[int], pools: Sequence[str], pairing: Continuations) -> list[list[int]]:
    """The indices of the negatives of each text of a list in memory, which is in the order of the ring."""
    texts = [Candidate(0, row, pool, copy, n) for row, (n, copy, pool) in enumerate(zip(lengths, copies, pools, strict=True))]
    negatives: list[list[int]] = [[] for _ in texts]
    for text, chosen in draw_negatives(texts, pairing):
        negatives[text.row] = [other.row for other in chosen]
    return negatives
