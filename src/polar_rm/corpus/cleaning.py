"""Cleaning as published (paper, App. D.1.1): loops are cut but stay recognisable, unfinished endings are trimmed.

A text is only ever shortened, by whole repeats of a loop and at its end, and never to nothing: the result is a subsequence of the
text's characters, and cleaning it again changes nothing. Time is linear in the text's length.
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

CUT_BY_LIMIT = frozenset({"length", "max_tokens", "max_length"})
"""Values of ``finish_reason`` that say that the limit on new tokens ended a text."""

_SLICE = 1 << 20  # characters looked at together
_ROUNDS = 8  # cutting one loop can make another; texts that need more rounds are built for the purpose


@dataclass(frozen=True, slots=True)
class Loop:
    """A unit of at most ``longest`` tokens that comes at least eight times in a row and fills at least ``span`` tokens.

    Three repeats stay, or more where ``kept`` tokens hold more. The thresholds are far above what people write on purpose
    (rules of dashes, tables, refrains, the grids of puzzles) and far below what a model in a loop writes until its limit.
    """

    longest: int
    span: int
    kept: int

    def copies(self, period: int) -> int:
        """Repeats of a unit of ``period`` tokens from which on they are a loop."""
        return max(8, -(-self.span // period))

    def keep(self, period: int) -> int:
        """Repeats of a unit of ``period`` tokens that stay of a loop."""
        return max(3, -(-self.kept // period))


LOOPS = {
    "repeated_lines": Loop(longest=16, span=8, kept=3),
    "repeated_words": Loop(longest=64, span=32, kept=8),
    "repeated_characters": Loop(longest=64, span=96, kept=16),
}


@dataclass(frozen=True, slots=True)
class Cleaned:
    """text: what is left. removed: rule -> characters that it took away; empty where nothing changed."""

    text: str
    removed: dict[str, int]


def clean(text: str, finish_reason: str | None = None, rules: Cleaning | None = None) -> Cleaned:
    """Apply the rules to one text until none finds anything.

    finish_reason: as the policy's engine reported it; None where nobody knows. rules: by default all.
    """
    [cleaned] = clean_all([text], [finish_reason], rules or Cleaning())
    return cleaned


def clean_all(texts: Sequence[str], finish_reasons: Sequence[str | None], rules: Cleaning) -> list[Cleaned]:
    """:func:`clean` of many texts. Most have nothing to clean, which is found out for many at a time."""
    now, removed = list(texts), [dict[str, int]() for _ in texts]
    left = list(range(len(texts)))
    for _ in range(_ROUNDS):
        changed: set[int] = set()

        def shorten(index: int, text: str, rule: str, changed: set[int] = changed) -> None:
            if gone := len(now[index]) - len(text):
                removed[index][rule] = removed[index].get(rule, 0) + gone
                now[index] = text
                changed.add(index)

        for rule in LOOPS:
            if getattr(rules, rule):
                for indices in _slices(now, left):
                    for number in _with_loops([now[index] for index in indices], rule):
                        shorten(indices[number], _cut_loops(now[indices[number]], rule), rule)
        if rules.unfinished_endings:
            for index in left:
                shorten(index, _trim_ending(now[index], finish_reasons[index], rules.guess_unfinished), "unfinished_endings")
        left = sorted(changed)
        if not left:
            break
    return [Cleaned(text, each) for text, each in zip(now, removed, strict=True)]


# ---------------------------------------------------------------------------------------------------------------- loops


def _cut_loops(text: str, rule: str) -> str:
    """Shorten every loop of a rule; the smallest unit first, which is how a reader sees it."""
    starts, ids = _TOKENS[rule](text)
    kept = np.arange(len(ids))
    for attempt in count():
        found = _first_period(ids[kept], LOOPS[rule])
        if found is None:
            break
        # Cutting one loop can close another one, in texts made for it again and again. From some round on, what follows a loop
        # is cut off with it: then no period is met twice, and the time stays linear.
        kept = kept[~_excess(ids[kept], *found, LOOPS[rule], to_end=attempt >= _ROUNDS)]
    if len(kept) == len(ids):
        return text
    ends = np.append(starts[1:], len(text))
    breaks = np.flatnonzero(np.diff(kept) > 1)
    first, last = kept[np.append(0, breaks + 1)], kept[np.append(breaks, len(kept) - 1)]
    return text[: starts[0]] + "".join(text[starts[a] : ends[b]] for a, b in zip(first, last, strict=True))


def _first_period(ids: Ids, loop: Loop) -> tuple[int, Ids] | None:
    """The smallest unit that loops, and its runs of equalities ``ids[i] == ids[i + period]``: [n, 2], from and to."""
    for period, _ in _repeats(ids, loop):
        same = np.concatenate([[False], ids[period:] == ids[:-period], [False]])
        runs = np.flatnonzero(same[1:] != same[:-1]).reshape(-1, 2)
        runs = runs[runs[:, 1] - runs[:, 0] >= (loop.copies(period) - 1) * period]
        if len(runs):
            return period, runs
    return None


def _excess(ids: Ids, period: int, runs: Ids, loop: Loop, *, to_end: bool) -> NDArray[np.bool_]:
    """Which tokens to delete: whole repeats beyond those kept, from the middle, so that what follows follows the last one; where
    the loop ends the text also its begun last one."""
    gone = np.zeros(len(ids), bool)
    for start, end in runs[:1] if to_end else runs:
        kept = loop.keep(period) * period
        if to_end or end + period == len(ids):
            gone[start + kept :] = True
        else:
            gone[start + kept - period : start + (end - start) // period * period] = True
    return gone


def _repeats(ids: Hashes, loop: Loop) -> Iterator[tuple[int, Ids]]:
    """Periods at which there may be loops, and tokens inside them: a test that misses none, and lets little else through.

    A loop is a run of equalities ``ids[i] == ids[i - period]``, and covers a whole block where the tokens are divided into blocks
    of half its least length. So it is enough to look at blocks, and most of them differ at one of their first four tokens.
    """
    for period in range(1, loop.longest + 1):
        length = (loop.copies(period) - 1) * period
        if length + period > len(ids):
            continue
        block = (length + 1) // 2
        first, last = -(-period // block) * block, len(ids) - block + 1
        at = first + block * np.flatnonzero(ids[first:last:block] == ids[first - period : last - period : block])
        for ahead in range(1, min(4, block)):
            at = at[ids[at + ahead] == ids[at + ahead - period]]
        if at.size:
            inside = at[:, None] + np.arange(block)
            at = at[(ids[inside] == ids[inside - period]).all(axis=1)]
        if at.size:
            yield period, at


def _with_loops(texts: Sequence[str], rule: str) -> set[int]:
    """Places of the texts that may have a loop."""
    ids, ends = _HASHES[rule](texts)
    return {int(index) for _, at in _repeats(ids, LOOPS[rule]) for index in np.searchsorted(ends, at, side="right")}


def _slices(texts: Sequence[str], indices: Sequence[int]) -> Iterator[list[int]]:
    """The indices in groups whose texts have about a million characters."""
    held: list[int] = []
    size = 0
    for index in indices:
        held.append(index)
        size += len(texts[index])
        if size >= _SLICE:
            yield held
            held, size = [], 0
    if held:
        yield held


Tokens = tuple[Ids, Ids]
"""Where each token starts in the text, and a number that equal tokens share: int64 [n]. A token reaches to the next one."""


def _characters(text: str) -> Tokens:
    ids = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    return np.arange(len(ids)), ids


def _words(text: str) -> Tokens:
    found = list(_WORD.finditer(text))
    return _numbered([match.start() for match in found], [match[0] for match in found])


def _lines(text: str) -> Tokens:
    """Lines that are not blank. The end of a line does not count, its indentation does."""
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

# The same tokens of many texts by their hashes: quicker, and enough to see which texts need a closer look. Each text ends in a
# token of its own, so that no run crosses into the next one. Returned are the tokens, and where those of each text end.


def _hashed_characters(texts: Sequence[str]) -> tuple[Hashes, Ids]:
    ids = np.frombuffer("\0".join([*texts, ""]).encode("utf-32-le", "surrogatepass"), np.uint32).copy()
    ends = np.cumsum([len(text) + 1 for text in texts])
    ids[ends - 1] = sys.maxunicode + 1 + np.arange(len(texts), dtype=np.uint32)
    return ids, ends


def _hashed_words(texts: Sequence[str]) -> tuple[Hashes, Ids]:
    least = 2 * LOOPS["repeated_words"].span - 1  # characters that so many words need at least
    return _hashed(map(hash, text.split()) if len(text) >= least else () for text in texts)


def _hashed_lines(texts: Sequence[str]) -> tuple[Hashes, Ids]:
    least = LOOPS["repeated_lines"].span - 1
    lines = (text.split("\n") if text.count("\n") >= least else () for text in texts)
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

# A full stop after a single letter, a title or a digit is more often one of an abbreviation or of a number in a list.
# The escapes are curly quotes and guillemets, and the closing brackets, full stop, exclamation and question mark of Chinese and
# Japanese.
_CLOSING = "\"')*_`]\u201d\u2019\u00bb\u300d\u300f\uff09"
_WIDE = "\u3002\uff01\uff1f"
_NO_END = "".join(rf"(?<!\b{title})" for title in (r"\w", "Mr", "Ms", "Mrs", "Dr", "Prof", "St", "vs"))
_SENTENCE_END = re.compile(rf"(?:[!?\u2026]|(?<!\d){_NO_END}\.)[{re.escape(_CLOSING)}]*(?=\s)|[{_WIDE}][{re.escape(_CLOSING)}]*")
_NEXT = re.compile(r"\s*(\S?)")


def _trim_ending(text: str, finish_reason: str | None, guess: bool) -> str:
    """Cut an unfinished last sentence, or an unfinished last line where it holds no sentence's end.

    Only where the limit ended the text, or nobody knows and it looks so: a last line with finished sentences whose last one stops
    after a letter or a comma, at least four words in. Who ends the sentences of a paragraph ends the last one too; titles, lists,
    code, answers and signatures have no such sentences before them in the line. Half of a text is the most that is cut.
    """
    stripped = text.rstrip()
    if finish_reason is None:
        if not guess or not stripped or not (stripped[-1].isalpha() or stripped[-1] in ",\uff0c\u3001"):
            return text
    elif finish_reason not in CUT_BY_LIMIT:
        return text
    if text.endswith("\n") or stripped.endswith("```") or stripped.rstrip(_CLOSING).endswith((".", "!", "?", "\u2026", *_WIDE)):
        return text
    line = text.rfind("\n") + 1
    cut = next((end for end in _sentence_ends(text, line)), 0)
    # An odd number of fences: the text ends inside a block of code.
    if finish_reason is None and (not cut or len(text[cut:].split()) < 4 or text.count("```") % 2):
        return text
    cut = cut or line
    return text[:cut] if 2 * cut >= len(text) and text[:cut].strip() else text


def _sentence_ends(text: str, start: int) -> Iterator[int]:
    """Ends of sentences from the last one back; what follows an end does not begin with a small letter."""
    for match in reversed(list(_SENTENCE_END.finditer(text, start))):
        following = _NEXT.match(text, match.end())[1]  # type: ignore[index]  # it matches everywhere
        if following and not following.islower():
            yield match.end()
