"""Cleaning as published (paper, App. D.1.1): loops are cut but stay recognisable, unfinished endings are trimmed.

A text is only ever shortened, by whole repeats of a loop and at its end, and never to nothing: the result is a subsequence of the
text's characters, and cleaning it again changes nothing. Time is linear in the text's length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from polar_rm.corpus.config import Cleaning

Ids = NDArray[np.int64]

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
        return max(8, -(-self.span // period))

    def keep(self, period: int) -> int:
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
    rules = rules or Cleaning()
    removed: dict[str, int] = {}
    for _ in range(_ROUNDS):
        before = text
        for name in LOOPS:
            if getattr(rules, name):
                text = _shortened(text, _cut_loops(text, name), name, removed)
        if rules.unfinished_endings:
            text = _shortened(text, _trim_ending(text, finish_reason, rules.guess_unfinished), "unfinished_endings", removed)
        if text == before:
            break
    return Cleaned(text, removed)


def clean_all(texts: Sequence[str], finish_reasons: Sequence[str | None], rules: Cleaning) -> list[Cleaned]:
    """:func:`clean` of many texts. Most have nothing to clean, which is found out for many at a time."""
    suspects: set[int] = set()
    for start, end in _slices(texts):
        for name in LOOPS:
            if getattr(rules, name):
                suspects.update(start + place for place in _with_loops(texts[start:end], name))
    return [
        clean(text, reason, rules)
        if place in suspects
        or (rules.unfinished_endings and _trim_ending(text, reason, rules.guess_unfinished) is not text)
        else Cleaned(text, {})
        for place, (text, reason) in enumerate(zip(texts, finish_reasons, strict=True))
    ]


def _shortened(before: str, after: str, rule: str, removed: dict[str, int]) -> str:
    if len(after) < len(before):
        removed[rule] = removed.get(rule, 0) + len(before) - len(after)
    return after


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
    """Which tokens to delete: whole repeats beyond those kept, and where the loop ends the text also its begun last one."""
    gone = np.zeros(len(ids), bool)
    for start, end in runs[:1] if to_end else runs:
        ends_text = to_end or end + period == len(ids)
        whole = start + (end - start) // period * period + period
        gone[start + loop.keep(period) * period : None if ends_text else whole] = True
    return gone


def _repeats(ids: Ids, loop: Loop) -> Iterator[tuple[int, Ids]]:
    """Periods at which there may be loops, and tokens inside them: a test that misses none, and lets little else through.

    A loop is a run of equalities ``ids[i] == ids[i - period]``, and covers a whole block where the tokens are divided into blocks
    of half its least length. So it is enough to look at blocks, and most differ at one of their first four tokens.
    """
    for period in range(1, loop.longest + 1):
        length = (loop.copies(period) - 1) * period
        if length + period > len(ids):
            continue
        block = (length + 1) // 2
        at = np.arange(-(-period // block) * block, len(ids) - block + 1, block)
        for ahead in range(4):
            at = at[ids[at + ahead] == ids[at + ahead - period]]
        if at.size:
            inside = at[:, None] + np.arange(block)
            at = at[(ids[inside] == ids[inside - period]).all(axis=1)]
        if at.size:
            yield period, at


def _with_loops(texts: Sequence[str], rule: str) -> set[int]:
    """Places of the texts that may have a loop."""
    parts, ends = [], []
    for place, text in enumerate(texts):
        # After each text a token of its own: no run crosses from one into the next.
        parts += [_HASHES[rule](text), np.array([-1 - place])]
        ends.append(len(parts[-2]) + 1)
    repeats = _repeats(np.concatenate(parts), LOOPS[rule])
    ends = np.cumsum(ends)
    return {int(place) for _, at in repeats for place in np.searchsorted(ends, at, side="right")}


def _slices(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    start = size = 0
    for place, text in enumerate(texts):
        size += len(text)
        if size >= _SLICE or place == len(texts) - 1:
            yield start, place + 1
            start, size = place + 1, 0


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

# The same tokens by their hashes: quicker, and enough to see which texts need a closer look.
_HASHES: dict[str, Callable[[str], Ids]] = {
    "repeated_lines": lambda text: np.array([hash(line) for each in text.split("\n") if (line := each.rstrip())], np.int64),
    "repeated_words": lambda text: np.fromiter(map(hash, text.split()), np.int64),
    "repeated_characters": lambda text: _characters(text)[1],
}


# -------------------------------------------------------------------------------------------------------------- endings

# A full stop after a single letter or a digit is more often an initial, an abbreviation or a number of a list.
_SENTENCE_END = re.compile(r"""(?:[!?…]|(?<!\d)(?<!\b\w)\.)["'”’»)\]*_`]*(?=\s)|[。！？][”’」』）]*""")
_CLOSING, _ENDING = """"'”’»)]*_`」』）""", ".!?…。！？"
_NEXT = re.compile(r"\s*(\S?)")


def _trim_ending(text: str, finish_reason: str | None, guess: bool) -> str:
    """Cut an unfinished last sentence, or an unfinished last line where it holds no sentence's end.

    Only where the limit ended the text, or nobody knows and it looks so: a last line with finished sentences whose last one stops
    after a letter or a comma, at least four words in. Who ends the sentences of a paragraph ends the last one too; titles, lists,
    code, answers and signatures have no such sentences before them in the line. Half of a text is the most that is cut.
    """
    stripped = text.rstrip()
    if finish_reason is None:
        if not guess or not stripped or not (stripped[-1].isalpha() or stripped[-1] in ",，、"):
            return text
    elif finish_reason not in CUT_BY_LIMIT:
        return text
    if text.endswith("\n") or stripped.endswith("```") or stripped.rstrip(_CLOSING).endswith(tuple(_ENDING)):
        return text
    line = text.rfind("\n") + 1
    cut = next((end for end in _sentence_ends(text, line)), 0)
    if finish_reason is None:
        # An odd number of fences: the text ends inside a block of code.
        if not cut or len(text[cut:].split()) < 4 or text.count("```") % 2:
            return text
    cut = cut or line
    return text[:cut] if 2 * cut >= len(text) and text[:cut].strip() else text


def _sentence_ends(text: str, start: int) -> Iterator[int]:
    """Ends of sentences from the last one back; what follows an end does not begin with a small letter."""
    for match in reversed(list(_SENTENCE_END.finditer(text, start))):
        following = _NEXT.match(text, match.end())[1]  # type: ignore[index]  # it matches everywhere
        if following and not following.islower():
            yield match.end()
