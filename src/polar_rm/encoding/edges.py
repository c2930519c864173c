"""Finds the first or the last tokens of a long text without tokenising all of it.

A text of megabytes has far more tokens than any limit, and tokenising it takes seconds. The first tokens depend only on the
beginning of the text, except for a few tokens at the end of the part that is read. The last tokens depend on the tokenizer's
state at the start of the part. This dependence ends after some words: if a text is tokenised from each of several neighbouring
starts, the tokens are the same from some position on. From there they are also the tokens of the whole text.
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

# Estimated characters of a token, for the size of the first part that is read. A wrong estimate costs time and changes no id.
CHARACTERS_PER_TOKEN = 8
# Characters that the first part has beyond that estimate. Shorter texts are read whole.
MARGIN = 4096
# The number of neighbouring starts (or ends) that must agree, and the number of characters that are compared at first.
STARTS = 8
ZONE = 2048
# The largest part that is read. A longer text is taken for its first or last MAX_CHARACTERS characters only if its tokenizer can
# never begin anew, as in half a megabyte of digits, or if its tokens are longer than any that people write.
MAX_CHARACTERS = 1 << 19


@dataclass(frozen=True, slots=True)
class EdgeRequest:
    """A request for more than ``n_tokens`` tokens of one side of a text, or for all tokens if it has no more."""

    text: str
    n_tokens: int
    side: Side


@dataclass(frozen=True, slots=True)
class Edge:
    """The tokens of one side of a text.

    text: the part that was read. offsets: (first character, character after the last) of each token, as indices into ``text``.
    omitted: the estimated number of the whole text's tokens that ``offsets`` lacks.
    """

    text: str
    offsets: list[tuple[int, int]]
    omitted: int = 0

    def __len__(self) -> int:
        """The number of tokens of the whole text."""
        return len(self.offsets) + self.omitted

    def first(self, n_tokens: int) -> str:
        """The text of the first tokens.

        A character of several byte tokens is kept whole or not at all, because half of one would decode to a U+FFFD.
        """
        if n_tokens >= len(self.offsets):
            return self.text
        return self.text[: min(self.offsets[n_tokens - 1][1], self.offsets[n_tokens][0])] if n_tokens else ""

    def last(self, n_tokens: int) -> str:
        """The text of the last tokens, with whole characters as in :meth:`first`."""
        if n_tokens >= len(self.offsets):
            return self.text
        start = len(self.offsets) - n_tokens
        return self.text[max(self.offsets[start][0], self.offsets[start - 1][1]) :] if n_tokens else ""


@dataclass(frozen=True, slots=True)
class _Part:
    """The part of a text that is read.

    text: the part without special tokens. unread: the number of characters of the text outside it. final: no larger part will be
    read.
    """

    text: str
    unread: int
    final: bool


def edges(
    requests: Sequence[EdgeRequest], tokenise: Tokenise, drop: Callable[[str], str], special: AbstractSet[str]
) -> list[Edge]:
    """One edge for each request. Parts that are read in one round are tokenised as one batch.

    tokenise: converts texts to encodings. drop: removes special tokens from a text. special: all characters of special tokens.
    """
    results: dict[int, Edge] = {}
    sizes = {index: CHARACTERS_PER_TOKEN * request.n_tokens + MARGIN for index, request in enumerate(requests)}
    while sizes:
        parts = {index: _read_part(requests[index], size, drop, special) for index, size in sizes.items()}
        encodings = tokenise([part.text for part in parts.values()])
        for (index, part), encoding in zip(parts.items(), encodings, strict=True):
            edge = _edge(part, encoding.offsets, requests[index].side, tokenise)
            if part.final or len(edge.offsets) > requests[index].n_tokens:
                results[index] = edge
                del sizes[index]
            else:
                sizes[index] *= 4
    return [results[index] for index in range(len(requests))]


def _read_part(request: EdgeRequest, size: int, drop: Callable[[str], str], special: AbstractSet[str]) -> _Part:
    if len(request.text) <= size:
        return _Part(drop(request.text), 0, True)
    final = size >= MAX_CHARACTERS
    size = min(size, MAX_CHARACTERS)
    part = request.text[:size] if request.side == "first" else request.text[-size:]
    # The part ends at a character that no special token contains. So no special token crosses the cut or arises across it.
    inner = part[: -MARGIN - 1 : -1] if request.side == "first" else part[:MARGIN]
    skipped = next((index for index, character in enumerate(inner) if character not in special), None)
    if skipped is None and not final:
        return _read_part(request, 4 * size, drop, special)
    skipped = skipped or 0
    part = part[: size - skipped] if request.side == "first" else part[skipped:]
    return _Part(drop(part), len(request.text) - len(part), final)


def _edge(part: _Part, offsets: list[tuple[int, int]], side: Side, tokenise: Tokenise) -> Edge:
    reliable = offsets
    if not part.final:
        distance = _unreliable_characters(part.text, side, tokenise)
        if side == "first":
            reliable = [span for span in offsets if span[1] <= len(part.text) - distance]
        else:
            reliable = [span for span in offsets if span[0] >= distance]
    if len(reliable) == len(offsets) and not part.unread:
        return Edge(part.text, offsets)
    omitted = len(offsets) - len(reliable) + round(part.unread * len(offsets) / max(1, len(part.text)))
    return Edge(part.text, reliable, max(1, omitted))


def _unreliable_characters(text: str, side: Side, tokenise: Tokenise) -> int:
    """The number of characters at the inner end of a part whose tokens may depend on text that was not read.

    It is the whole part if no agreement is found.
    """
    zone = ZONE
    while 8 * zone <= max(len(text), 8 * ZONE) and len(text) > 2 * STARTS:
        inner = text[-zone:] if side == "first" else text[:zone]
        if side == "first":
            chains = [_tokens(encoding) for encoding in tokenise([inner[: len(inner) - shift] for shift in range(STARTS)])]
        else:
            encodings = tokenise([inner[shift:] for shift in range(STARTS)])
            chains = [_reversed(_tokens(encoding), len(inner) - shift) for shift, encoding in enumerate(encodings)]
        common = commonprefix(chains)
        if common and common[-1][1] >= len(inner) // 2:
            return len(inner) - len(inner) // 2
        zone *= 4
    return len(text)


def _tokens(encoding: Encoding) -> list[tuple[int, int, bool]]:
    """(first character, character after the last, whether the token begins a word of the pre-tokenizer) of each token.

    Two encodings of a long number may have equal tokens but different words, and then the tokens differ at its other end.
    """
    words = encoding.word_ids
    begins = [number == 0 or word != words[number - 1] for number, word in enumerate(words)]
    return [(start, end, new) for (start, end), new in zip(encoding.offsets, begins, strict=True)]


def _reversed(tokens: list[tuple[int, int, bool]], length: int) -> list[tuple[int, int, bool]]:
    """The tokens from the last to the first, with characters counted from the end."""
    return [(length - end, length - start, new) for start, end, new in reversed(tokens)]
