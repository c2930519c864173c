"""The first or the last tokens of a text, without a look at all of it.

A text of megabytes holds far more tokens than any limit, and tokenising it takes seconds. Its first tokens depend on its
beginning alone, but for a few at the end of what is read; its last tokens depend on where the tokenizer was when it came there.
After some words that is forgotten: tokenised from each of several neighbouring starts, a text has the same tokens from some
place on. From there they are the tokens of the whole text, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from os.path import commonprefix
from typing import Literal

from tokenizers import Encoding

Side = Literal["first", "last"]
Tokenise = Callable[[Sequence[str]], list[Encoding]]

# Read for every token that is asked for, before it is known how long the tokens are. A wrong guess costs time, no id.
CHARACTERS_PER_TOKEN = 8
# A text of no more characters is read whole. Of longer ones the first part read has so many characters more.
MARGIN = 4096
# Neighbouring starts (or ends) that must agree, over this many characters at first.
STARTS = 8
ZONE = 2048
# At most so much is read. Only a longer text that never gives its tokenizer a place to begin anew, such as half a megabyte of
# digits, is taken for its first or last so many characters; so is one whose tokens are longer than any that people write.
MAX_CHARACTERS = 1 << 19


@dataclass(frozen=True, slots=True)
class Wanted:
    """More than ``n_tokens`` of one side of a text, or all that it has."""

    text: str
    n_tokens: int
    side: Side


@dataclass(frozen=True, slots=True)
class Edge:
    """text: the part that was read. offsets: of its tokens, as (first character, character behind the last) in it.
    omitted: tokens of the whole text that are not among them, estimated from the part."""

    text: str
    offsets: list[tuple[int, int]]
    omitted: int = 0

    def __len__(self) -> int:
        """Tokens of the whole text."""
        return len(self.offsets) + self.omitted

    def first(self, n_tokens: int) -> str:
        """The text of the first tokens. A character of several byte tokens is kept whole or not at all; decoding half of it would
        invent a U+FFFD."""
        if n_tokens >= len(self.offsets):
            return self.text
        return self.text[: min(self.offsets[n_tokens - 1][1], self.offsets[n_tokens][0])] if n_tokens else ""

    def last(self, n_tokens: int) -> str:
        """The text of the last tokens, characters whole as in :meth:`first`."""
        if n_tokens >= len(self.offsets):
            return self.text
        start = len(self.offsets) - n_tokens
        return self.text[max(self.offsets[start][0], self.offsets[start - 1][1]) :] if n_tokens else ""


@dataclass(frozen=True, slots=True)
class _Part:
    """text: read, without special tokens. unread: characters of the whole text beside it. final: more will not be read."""

    text: str
    unread: int
    final: bool


def edges(wanted: Sequence[Wanted], tokenise: Tokenise, drop: Callable[[str], str], special: AbstractSet[str]) -> list[Edge]:
    """One edge for each text that is wanted; all parts that are read at one time are one batch.

    tokenise: texts to encodings. drop: takes special tokens out of a text. special: every character that stands in one of them.
    """
    found: dict[int, Edge] = {}
    sizes = {index: CHARACTERS_PER_TOKEN * one.n_tokens + MARGIN for index, one in enumerate(wanted)}
    while sizes:
        parts = {index: _read(wanted[index], size, drop, special) for index, size in sizes.items()}
        encodings = tokenise([part.text for part in parts.values()])
        for (index, part), encoding in zip(parts.items(), encodings, strict=True):
            edge = _edge(part, encoding.offsets, wanted[index].side, tokenise)
            if part.final or len(edge.offsets) > wanted[index].n_tokens:
                found[index] = edge
                del sizes[index]
            else:
                sizes[index] *= 4
    return [found[index] for index in range(len(wanted))]


def _read(one: Wanted, size: int, drop: Callable[[str], str], special: AbstractSet[str]) -> _Part:
    if len(one.text) <= size:
        return _Part(drop(one.text), 0, True)
    final = size >= MAX_CHARACTERS
    size = min(size, MAX_CHARACTERS)
    part = one.text[:size] if one.side == "first" else one.text[-size:]
    # Ends at a character that no special token has, so that none lies across the cut, and none comes about across it.
    inner = part[: -MARGIN - 1 : -1] if one.side == "first" else part[:MARGIN]
    skipped = next((index for index, character in enumerate(inner) if character not in special), None)
    if skipped is None and not final:
        return _read(one, 4 * size, drop, special)
    skipped = skipped or 0
    part = part[: size - skipped] if one.side == "first" else part[skipped:]
    return _Part(drop(part), len(one.text) - len(part), final)


def _edge(part: _Part, offsets: list[tuple[int, int]], side: Side, tokenise: Tokenise) -> Edge:
    reliable = offsets
    if not part.final:
        distance = _unreliable(part.text, side, tokenise)
        if side == "first":
            reliable = [span for span in offsets if span[1] <= len(part.text) - distance]
        else:
            reliable = [span for span in offsets if span[0] >= distance]
    if len(reliable) == len(offsets) and not part.unread:
        return Edge(part.text, offsets)
    omitted = len(offsets) - len(reliable) + round(part.unread * len(offsets) / max(1, len(part.text)))
    return Edge(part.text, reliable, max(1, omitted))


def _unreliable(text: str, side: Side, tokenise: Tokenise) -> int:
    """Characters at the inner end of a part whose tokens may depend on what was not read: all, if that is not found out."""
    zone = ZONE
    while 8 * zone <= max(len(text), 8 * ZONE) and len(text) > 2 * STARTS:
        ends = text[-zone:] if side == "first" else text[:zone]
        if side == "first":
            chains = [_tokens(encoding) for encoding in tokenise([ends[: len(ends) - cut] for cut in range(STARTS)])]
        else:
            starts = tokenise([ends[cut:] for cut in range(STARTS)])
            chains = [_reversed(_tokens(encoding), len(ends) - cut) for cut, encoding in enumerate(starts)]
        agreed = commonprefix(chains)
        if agreed and agreed[-1][1] >= len(ends) // 2:
            return len(ends) - len(ends) // 2
        zone *= 4
    return len(text)


def _tokens(encoding: Encoding) -> list[tuple[int, int, bool]]:
    """First character, character behind the last, and whether the token begins one of the pre-tokenizer's words: the words of a
    long number may differ where its tokens do not, and so decide the tokens at its other end."""
    words = encoding.word_ids
    begins = [number == 0 or word != words[number - 1] for number, word in enumerate(words)]
    return [(start, end, new) for (start, end), new in zip(encoding.offsets, begins, strict=True)]


def _reversed(tokens: list[tuple[int, int, bool]], length: int) -> list[tuple[int, int, bool]]:
    """From the end to the beginning, with characters counted from the end."""
    return [(length - end, length - start, new) for start, end, new in reversed(tokens)]
