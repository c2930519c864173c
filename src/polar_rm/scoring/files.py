"""Scores a file of items into a file of rewards; an interrupted run can be continued."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from polar_rm.common.files import check_target, full_disk_named, read_json, sync, write_json
from polar_rm.common.iteration import windows
from polar_rm.common.locks import owned
from polar_rm.errors import BadRow, PolarError
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import InvalidRecord, OnBadRow, ScoreItem, dump_json, read_numbered_items
from polar_rm.rewards.anchors import has_anchor
from polar_rm.rewards.combining import Combine, check_combine
from polar_rm.rewards.outcomes import Reward
from polar_rm.rewards.scale import Scale
from polar_rm.rewards.transforms import ITEM_TRANSFORMS, ItemTransform, check_transform, needs_anchors, transform_one
from polar_rm.rewards.turns import turn_ends, turns_of
from polar_rm.scoring.scorer import Scorer, check_finite


def score_file(
    model: RewardModel,
    source: str | Path,
    target: str | Path,
    *,
    identity: dict[str, Any],
    transform: ItemTransform = "raw",
    combine: Combine = "mean",
    each_turn: bool = False,
    scale: Scale | None = None,
    row_tokens: int = 8192,
    on_bad_row: OnBadRow | None = None,
) -> Iterator[int]:
    """Score a file of items into JSONL rows {row, reward, n_tokens, truncated, notes, metadata}.

    The generator yields the number of rows written so far.

    Items may have several references; combine: see :data:`Combine`. With a transform, rows also have a ``score``. If it needs the
    references' own scores, rows also have an ``anchor``, and ``probability`` and ``deviation`` as far as ``scale`` supports them
    (see :class:`Reward`). With ``each_turn`` rows also have ``turns``: {message (from 1), reward, n_tokens, truncated, notes} of
    every message of the assistant in the output; the last one is that of the whole output.

    Rows are written to ``target.partial``, which is renamed to ``target`` at the end. After an interruption, the same call
    continues after the last window of items (see :class:`Scorer`) that is complete, so that the result has the same bytes as an
    uninterrupted run. ``identity`` (model, encoder, input) is saved beside the partial file. A partial file with another identity
    is refused.

    Raises:
        PolarError: another process writes the target, the target is not a new JSONL file, or the source can't be read; the
            transform can't be applied to one reward, or the model lacks the calibration that it needs; the disk is full.
        BadRow: a row is not an item, or lacks the reference that the transform needs.
        ScoreError: a score is not finite; the message names file and row.
    """
    target = Path(target)
    check_paths(source, target)
    options = check_rows(scale, transform=transform, combine=combine, each_turn=each_turn)
    partial = target.with_name(target.name + ".partial")
    state = target.with_name(target.name + ".partial.json")
    scorer = Scorer(model, row_tokens=row_tokens, scale=scale)
    with owned(target, "score"):
        _continue_only(partial, state, identity)
        with full_disk_named(partial), partial.open("ab+") as file:
            file.seek(0)
            done, resuming = 0, True
            for window in windows(read_numbered_items(source, on_bad_row, several_references=not each_turn), scorer.window):
                if not (resuming := resuming and _has_rows(file, [number for number, _ in window])):
                    file.writelines(_score_window(scorer, window, source, options))
                    file.flush()
                    os.fsync(file.fileno())
                done += len(window)
                yield done
            file.truncate()
        partial.rename(target)
        sync(target.parent)
        state.unlink()
    for caveat in _caveats(scorer):
        warnings.warn(caveat, stacklevel=2)


def _caveats(scorer: Scorer) -> Iterator[str]:
    """A line about each limitation of the rewards that this process computed."""
    if scorer.unread.sequences:
        yield f"{scorer.unread.sequences:,} items were truncated to the encoder's limits: {scorer.unread} (noted as truncated)"
    if count := scorer.noted["beyond_positions"]:
        yield f"{count:,} items are longer than the backbone's positions: their scores are unreliable (noted as beyond_positions)"


def _has_rows(file: BinaryIO, numbers: Sequence[int]) -> bool:
    """Whether the next lines are the results of these rows. If not, the file is truncated where they should begin.

    Every line is checked, not only their number, because a crash of the machine can lose lines and leave zeros at the end.
    """
    start = file.tell()
    if all(_is_row(file.readline(), number) for number in numbers):
        return True
    file.seek(start)
    file.truncate()
    return False


def _is_row(line: bytes, number: int) -> bool:
    try:
        row = json.loads(line)
        return line.endswith(b"\n") and row["row"] == number and math.isfinite(row["reward"])
    except (ValueError, KeyError, TypeError):
        return False


@dataclass(frozen=True, slots=True)
class RowOptions:
    """What rows hold, see :func:`score_file`."""

    transform: ItemTransform
    combine: Combine
    each_turn: bool


def check_rows(scale: Scale | None, *, transform: ItemTransform, combine: Combine, each_turn: bool) -> RowOptions:
    """Check, before a model is loaded, that rows can hold what is asked for; the options of :func:`score_file`.

    Raises:
        PolarError: the transform needs a calibration that the scale lacks, or the options exclude each other.
    """
    check_transform(transform, scale.calibration if scale else None, known=ITEM_TRANSFORMS)
    check_combine(combine, transform)
    if each_turn and (transform, combine) != ("raw", "mean"):
        raise PolarError("the turns of a conversation have raw rewards only: leave out transform and combine")
    return RowOptions(transform, combine, each_turn)


def _score_window(
    scorer: Scorer, window: Sequence[tuple[int, ScoreItem]], source: str | Path, options: RowOptions
) -> Iterator[bytes]:
    """The lines of one window. The lines before an item without a finite score are yielded before the error."""
    for number, item in window:
        if lack := _what_lacks(item, options):
            raise BadRow(str(source), number, *lack)
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


def _fields(reward: Reward) -> dict[str, Any]:
    return {
        "reward": reward.reward,
        "n_tokens": reward.n_tokens,
        "truncated": reward.truncated,
        "notes": list(reward.notes),
    }


def check_paths(source: str | Path, target: str | Path) -> None:
    """Check that the scores of ``source`` can be written to ``target``.

    Raises:
        PolarError: the source is a folder; the target is the source, a folder or not JSONL.
    """
    source, target = Path(source), Path(target)
    if source.is_dir():
        raise PolarError(f"{source}: it is a folder; score one file at a time, because rows of several files have equal numbers")
    if target.exists() and source.exists() and target.samefile(source):
        raise PolarError(f"{target}: it is the input itself")
    check_target(target, (".jsonl",))


def _continue_only(partial: Path, state: Path, identity: dict[str, Any]) -> None:
    """Begin a partial file with this identity, or check that an existing one has it."""
    if not partial.exists():
        write_json(state, identity)
        return
    saved = read_json(state) if state.exists() else {}
    changed = [key for key in identity if saved.get(key) != identity[key]]
    if changed:
        raise PolarError(
            f"{state.with_suffix('')}: it is unfinished and has another {', '.join(changed)}; remove it or use another output"
        )
