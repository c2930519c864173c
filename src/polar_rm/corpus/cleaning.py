"""Cleaning as published (paper, App. D.1.1): loops are shortened but stay recognisable, unfinished endings are trimmed.

Cleaning only removes text: whole repeats of a loop, and text at the end. It never removes everything. The result is a
subsequence of the text's characters, and cleaning it again changes nothing. Time is linear in the text's length.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polar_rm.corpus.config import Cleaning

Ids = NDArray[np.int64]
Hashes = NDArray[np.integer[Any]]

LENGTH_REASONS = frozenset({"length", "max_tokens", "max_length"})
"""Values of ``finish_reason`` for texts that the limit on new tokens ended."""

_BATCH_CHARACTERS = 1 << 20
_ROUNDS = 8  # shortening one loop can create another; only texts constructed for it need more rounds


@dataclass(frozen=True, slots=True)
class Loop:
    """The definition of a loop: a unit of at most ``max_period`` tokens with at least eight repeats and ``min_tokens`` tokens.

    Three repeats are kept, or as many as ``kept_tokens`` tokens need. The thresholds are far above what people write on purpose
    (rules of dashes, tables, refrains, the grids of puzzles) and far below what a model in a loop writes until its limit.
    """

    max_period: int
    min_tokens: int
    kept_tokens: int

    def min_repeats(self, period: int) -> int:
        """The number of repeats of a unit of ``period`` tokens that makes a loop."""
        return max(8, -(-self.min_tokens // period))

    def kept_repeats(self, period: int) -> int:
        """The number of repeats of a unit of ``period`` tokens that are kept of a loop."""
        return max(3, -(-self.kept_tokens // period))


LOOPS = {
    "repeated_lines": Loop(max_period=16, min_tokens=8, kept_tokens=3),
    "repeated_words": Loop(max_period=64, min_tokens=32, kept_tokens=8),
    "repeated_characters": Loop(max_period=64, min_tokens=96, kept_tokens=16),
}


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned text. removed: rule -> number of characters that it removed; empty if nothing changed."""

    text: str
    removed: dict[str, int]


def clean(text: str, finish_reason: str | None = None, rules: Cleaning | None = None) -> Cleaned:
    """Apply the rules to one text until none changes it.

    finish_reason: as the policy's engine reported it; None if unknown. rules: by default all.
    """
    [cleaned] = clean_all([text], [finish_reason], rules or Cleaning())
    return cleaned


def clean_all(texts: Sequence[str], finish_reasons: Sequence[str | None], rules: Cleaning) -> list[Cleaned]:
    """:func:`clean` for many texts. Most have nothing to clean, which one test of many texts at a time shows."""
    current, removed = list(texts), [dict[str, int]() for _ in texts]
    remaining = list(range(len(texts)))
    for _ in range(_ROUNDS):
        changed: set[int] = set()

        def shorten(index: int, text: str, rule: str, changed: set[int] = changed) -> None:
            if n_removed := len(current[index]) - len(text):
                removed[index][rule] = removed[index].get(rule, 0) + n_removed
                current[index] = text
                changed.add(index)

        for rule in LOOPS:
            if getattr(rules, rule):
                for indices in _batches(current, remaining):
                    for number in _with_loops([current[index] for index in indices], rule):
                        shorten(indices[number], _shorten_loops(current[indices[number]], rule), rule)
        if rules.unfinished_endings:
            for index in remaining:
                text = _trim_ending(current[index], finish_reasons[index], rules.guess_unfinished)
                shorten(index, text, "unfinished_endings")
        remaining = sorted(changed)
        if not remaining:
            break
    return [Cleaned(text, each) for text, each in zip(current, removed, strict=True)]


# ---------------------------------------------------------------------------------------------------------------- loops


def _shorten_loops(text: str, rule: str) -> str:
    """Shorten every loop of a rule, the smallest unit first, as a reader sees it."""
    starts, ids = _TOKENS[rule](text)
    kept = np.arange(len(ids))
    for attempt in count():
        loops = _first_period(ids[kept], LOOPS[rule])
        if loops is None:
            break
        # Shortening one loop can create another one, in texts constructed for it again and again. After some rounds everything
        # after a loop is removed with it: then no period occurs twice, and the time stays linear.
        kept = kept[~_excess(ids[kept], *loops, LOOPS[rule], to_end=attempt >= _ROUNDS)]
    if len(kept) == len(ids):
        return text
    ends = np.append(starts[1:], len(text))
    breaks = np.flatnonzero(np.diff(kept) > 1)
    first, last = kept[np.append(0, breaks + 1)], kept[np.append(breaks, len(kept) - 1)]
    return text[: starts[0]] + "".join(text[starts[a] : ends[b]] for a, b in zip(first, last, strict=True))


def _first_period(ids: Ids, loop: Loop) -> tuple[int, Ids] | None:
    """The smallest period with loops, and its runs of equalities ``ids[i] == ids[i + period]``: [n, 2], start and end."""
    for period, _ in _repeats(ids, loop):
        same = np.concatenate([[False], ids[period:] == ids[:-period], [False]])
        runs = np.flatnonzero(same[1:] != same[:-1]).reshape(-1, 2)
        runs = runs[runs[:, 1] - runs[:, 0] >= (loop.min_repeats(period) - 1) * period]
        if len(runs):
            return period, runs
    return None


def _excess(ids: Ids, period: int, runs: Ids, loop: Loop, *, to_end: bool) -> NDArray[np.bool_]:
    """bool [tokens]: the tokens to delete, which are the whole repeats beyond those that are kept.

    They are deleted from the middle of a loop, so that the following text still follows the last repeat. At the end of the text
    an unfinished last repeat is deleted, too.
    """
    deleted = np.zeros(len(ids), bool)
    for start, end in runs[:1] if to_end else runs:
        kept = loop.kept_repeats(period) * period
        if to_end or end + period == len(ids):
            deleted[start + kept :] = True
        else:
            deleted[start + kept - period : start + (end - start) // period * period] = True
    return deleted


def _repeats(ids: Hashes, loop: Loop) -> Iterator[tuple[int, Ids]]:
    """Periods that may have loops, and tokens inside these: a fast test that misses no loop and has few false positives.

    A loop is a run of equalities ``ids[i] == ids[i - period]``. If the tokens are divided into blocks of half the minimum
    length of a loop, every loop covers a whole block. So only whole blocks are compared, and most differ in one of their first
    four tokens.
    """
    for period in range(1, loop.max_period + 1):
        length = (loop.min_repeats(period) - 1) * period
        if length + period > len(ids):
            continue
        block = (length + 1) // 2
        first, last = -(-period // block) * block, len(ids) - block + 1
        starts = first + block * np.flatnonzero(ids[first:last:block] == ids[first - period : last - period : block])
        for offset in range(1, min(4, block)):
            starts = starts[ids[starts + offset] == ids[starts + offset - period]]
        if starts.size:
            inside = starts[:, None] + np.arange(block)
            starts = starts[(ids[inside] == ids[inside - period]).all(axis=1)]
        if starts.size:
            yield period, starts


def _with_loops(texts: Sequence[str], rule: str) -> set[int]:
    """Indices of the texts that may have a loop."""
    ids, ends = _HASHES[rule](texts)
    return {int(index) for _, tokens in _repeats(ids, LOOPS[rule]) for index in np.searchsorted(ends, tokens, side="right")}


def _batches(texts: Sequence[str], indices: Sequence[int]) -> Iterator[list[int]]:
    """The indices in batches whose texts have about a million characters."""
    batch: list[int] = []
    size = 0
    for index in indices:
        batch.append(index)
        size += len(texts[index])
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


Tokens = tuple[Ids, Ids]
"""The start of each token in the text, and an id that equal tokens share: int64 [n]. A token ends where the next one starts."""


def _characters(text: str) -> Tokens:
    ids = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    return np.arange(len(ids)), ids


def _words(text: str) -> Tokens:
    matches = list(_WORD.finditer(text))
    return _numbered([match.start() for match in matches], [match[0] for match in matches])


def _lines(text: str) -> Tokens:
    """Lines that are not blank. White space at the end of a line is ignored, its indentation is not."""
    starts, tokens, position = [], [], 0
    for line in text.split("\n"):
        if stripped := line.rstrip():
            starts.append(position)
            tokens.append(stripped)
        position += len(line) + 1
    return _numbered(starts, tokens)


def _numbered(starts: list[int], tokens: list[str]) -> Tokens:
    numbers: dict[str, int] = {}
    ids = [numbers.setdefault(token, len(numbers)) for token in tokens]
    return np.array(starts, np.int64), np.array(ids, np.int64)


_WORD = re.compile(r"\S+")
_TOKENS: dict[str, Callable[[str], Tokens]] = {
    "repeated_lines": _lines,
    "repeated_words": _words,
    "repeated_characters": _characters,
}

# The tokens of many texts as hashes, which is faster and suffices to find the texts that may have loops. Each text ends with a
# unique token, so that no run crosses into the next text. The functions return the tokens, and the end position of each text's
# tokens.


def _hashed_characters(texts: Sequence[str]) -> tuple[Hashes, Ids]:
    ids = np.frombuffer("\0".join([*texts, ""]).encode("utf-32-le", "surrogatepass"), np.uint32).copy()
    ends = np.cumsum([len(text) + 1 for text in texts])
    ids[ends - 1] = sys.maxunicode + 1 + np.arange(len(texts), dtype=np.uint32)
    return ids, ends


def _hashed_words(texts: Sequence[str]) -> tuple[Hashes, Ids]:
    min_characters = 2 * LOOPS["repeated_words"].min_tokens - 1  # of a text with this many words
    return _hashed(map(hash, text.split()) if len(text) >= min_characters else () for text in texts)


def _hashed_lines(texts: Sequence[str]) -> tuple[Hashes, Ids]:
    min_newlines = LOOPS["repeated_lines"].min_tokens - 1
    lines = (text.split("\n") if text.count("\n") >= min_newlines else () for text in texts)
    return _hashed([hash(line) for each in of_text if (line := each.rstrip())] for of_text in lines)


def _hashed(hashes: Iterable[Iterable[int]]) -> tuple[Hashes, Ids]:
    ids: list[int] = []
    ends = []
    for index, of_text in enumerate(hashes):
        ids.extend(of_text)
        ids.append(-1 - index)
        ends.append(len(ids))
    return np.array(ids, np.int64), np.array(ends)


_HASHES: dict[str, Callable[[Sequence[str]], tuple[Hashes, Ids]]] = {
    "repeated_lines": _hashed_lines,
    "repeated_words": _hashed_words,
    "repeated_characters": _hashed_characters,
}


# -------------------------------------------------------------------------------------------------------------- endings

# A full stop after a single letter, a title or a digit usually belongs to an abbreviation or a number in a list, and ends no
# sentence. The escapes are curly quotes and guillemets, and the closing brackets, full stop, exclamation and question mark of
# Chinese and Japanese.
_CLOSING = "\"')*_`]\u201d\u2019\u00bb\u300d\u300f\uff09"
_WIDE = "\u3002\uff01\uff1f"
_NO_END = "".join(rf"(?<!\b{title})" for title in (r"\w", "Mr", "Ms", "Mrs", "Dr", "Prof", "St", "vs"))
_SENTENCE_END = re.compile(rf"(?:[!?\u2026]|(?<!\d){_NO_END}\.)[{re.escape(_CLOSING)}]*(?=\s)|[{_WIDE}][{re.escape(_CLOSING)}]*")
_NEXT = re.compile(r"\s*(\S?)")


def _trim_ending(text: str, finish_reason: str | None, guess: bool) -> str:
    """Remove an unfinished last sentence, or an unfinished last line if it has no end of a sentence.

    This applies only if the limit ended the text, or if the finish reason is unknown and the text looks unfinished: its last line
    has finished sentences, and after them at least four words that end with a letter or a comma. An author who ends the
    sentences of a paragraph ends the last one, too; titles, lists, code, answers and signatures have no finished sentences
    before them in the line. At most half of a text is removed.
    """
    stripped = text.rstrip()
    if finish_reason is None:
        if not guess or not stripped or not (stripped[-1].isalpha() or stripped[-1] in ",\uff0c\u3001"):
            return text
    elif finish_reason not in LENGTH_REASONS:
        return text
    if text.endswith("\n") or stripped.endswith("```") or stripped.rstrip(_CLOSING).endswith((".", "!", "?", "\u2026", *_WIDE)):
        return text
    line = text.rfind("\n") + 1
    end = next(_sentence_ends(text, line), 0)
    # With an odd number of fences the text ends inside a block of code.
    if finish_reason is None and (not end or len(text[end:].split()) < 4 or text.count("```") % 2):
        return text
    end = end or line
    return text[:end] if 2 * end >= len(text) and text[:end].strip() else text


def _sentence_ends(text: str, start: int) -> Iterator[int]:
    """End positions of sentences, the last one first. The text after an end does not begin with a lower-case letter."""
    for match in reversed(list(_SENTENCE_END.finditer(text, start))):
        following = _NEXT.match(text, match.end())[1]  # type: ignore[index]  # it matches everywhere
        if following and not following.islower():
            yield match.end()
