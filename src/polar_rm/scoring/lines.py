"""The lines of an output file for windows of items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from polar_rm.errors import BadRow, PolarError
from polar_rm.records import InvalidRecord, ScoreItem, dump_json
from polar_rm.rewards.anchors import has_anchor
from polar_rm.rewards.combining import Combine, check_combine
from polar_rm.rewards.outcomes import Reward, Unread
from polar_rm.rewards.scale import Scale
from polar_rm.rewards.transforms import ITEM_TRANSFORMS, ItemTransform, check_transform, needs_anchors, transform_one
from polar_rm.rewards.turns import turn_ends, turns_of
from polar_rm.scoring.scorer import Scorer, check_finite

Window = Sequence[tuple[int, ScoreItem]]
"""Items that are scored together, with the numbers of their rows."""


@dataclass(frozen=True, slots=True)
class RowOptions:
    """What rows hold, see :func:`polar_rm.scoring.files.score_file`."""

    transform: ItemTransform
    combine: Combine
    each_turn: bool


def check_rows(scale: Scale | None, *, transform: ItemTransform, combine: Combine, each_turn: bool) -> RowOptions:
    """Check, before a model is loaded, that rows can hold what is asked for; the options of
    :func:`polar_rm.scoring.files.score_file`.

    Raises:
        PolarError: the transform needs a calibration that the scale lacks, or the options exclude each other.
    """
    check_transform(transform, scale.calibration if scale else None, known=ITEM_TRANSFORMS)
    check_combine(combine, transform)
    if each_turn and (transform, combine) != ("raw", "mean"):
        raise PolarError("the turns of a conversation have raw rewards only: leave out transform and combine")
    return RowOptions(transform, combine, each_turn)


def check_items(windows: Iterable[Window], source: str, options: RowOptions) -> Iterator[Window]:
    """The same windows.

    Raises:
        BadRow: an item lacks a field that its row needs.
    """
    for window in windows:
        for number, item in window:
            if lack := _what_lacks(item, options):
                raise BadRow(source, number, *lack)
        yield window


def _what_lacks(item: ScoreItem, options: RowOptions) -> tuple[str, str] | None:
    """The field that is missing for these rows, and what is expected there."""
    if (needs_anchors(options.transform) or options.combine == "best") and not has_anchor(item):
        reason = f"the transform {options.transform}" if options.combine == "mean" else "the best of several references"
        return "reference", f"a text, because {reason} needs its own score; it is empty"
    if options.each_turn:
        try:
            turns_of(item.output)
        except InvalidRecord as error:
            return error.field, error.expected
    return None


@dataclass(frozen=True, slots=True)
class WindowLines:
    """The lines of one window, which end before the first item without a score. error: the reason why it has none.
    noted, unread: as in :class:`Scorer`, of this window alone."""

    lines: list[bytes]
    error: PolarError | None
    noted: Counter[str]
    unread: Unread


def score_lines(scorer: Scorer, window: Window, source: str, options: RowOptions) -> WindowLines:
    """Score a window of checked items. source: the file's name, for messages."""
    scorer.noted, scorer.unread = Counter(), Unread()
    lines: list[bytes] = []
    error = None
    try:
        for line in _lines(scorer, window, source, options):
            lines.append(line)
    except PolarError as caught:
        error = caught
    return WindowLines(lines, error, scorer.noted, scorer.unread)


def _lines(scorer: Scorer, window: Window, source: str, options: RowOptions) -> Iterator[bytes]:
    items = [item for _, item in window]
    if options.each_turn:
        results = scorer.score_turns_window(items)
    else:
        anchored = needs_anchors(options.transform)
        results = [[reward] for reward in scorer.score_window(items, anchored=anchored, combine=options.combine)]
    for (number, item), rewards in zip(window, results, strict=True):
        for turn, reward in enumerate(rewards, 1):
            check_finite(reward, f"{source}: row {number}{f', turn {turn}' if options.each_turn else ''}")
        row = {"row": number, **_fields(rewards[-1])}
        if options.transform != "raw":
            row["score"] = transform_one(options.transform, rewards[-1], scorer.scale.calibration)
        row |= rewards[-1].anchor_fields()
        if options.each_turn:
            ends = turn_ends(item.output)
            row["turns"] = [{"message": end, **_fields(reward)} for end, reward in zip(ends, rewards, strict=True)]
        yield (dump_json(row | {"metadata": item.metadata}) + "\n").encode()


def _fields(reward: Reward) -> dict[str, Any]:
    return {
        "reward": reward.reward,
        "n_tokens": reward.n_tokens,
        "truncated": reward.truncated,
        "notes": list(reward.notes),
    }
