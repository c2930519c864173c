"""Scores a file of items into a file of rewards; an interrupted run can be continued."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from polar_rm.common.files import check_target, full_disk_named, read_json, sync, write_json
from polar_rm.common.iteration import windows
from polar_rm.common.locks import owned
from polar_rm.errors import PolarError
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import OnBadRow, ScoreItem, read_numbered_items
from polar_rm.records.finding import suffix_of
from polar_rm.rewards.combining import Combine
from polar_rm.rewards.outcomes import Unread
from polar_rm.rewards.scale import Scale
from polar_rm.rewards.transforms import ItemTransform
from polar_rm.scoring.lines import RowOptions, WindowLines, check_items, check_rows, score_lines
from polar_rm.scoring.remote import RemoteModel
from polar_rm.scoring.scorer import WINDOW, Scorer


def score_file(
    model: RewardModel | RemoteModel,
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

    The generator yields the number of rows written so far. A :class:`RemoteModel` computes windows on a Ray cluster; reading and
    writing stay here, and rows and errors come in the same order.

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
    noted, unread = Counter[str](), Unread()
    with owned(target, "score"):
        _continue_only(partial, state, identity)
        with full_disk_named(partial), partial.open("ab+") as file:
            file.seek(0)
            done = 0
            items = read_numbered_items(source, on_bad_row, several_references=not each_turn)
            for n_rows, scored in _results(model, items, str(source), file, row_tokens, scale, options):
                if scored is not None:
                    _append(file, scored)
                    noted += scored.noted
                    unread.merge(scored.unread)
                done += n_rows
                yield done
            file.truncate()
        partial.rename(target)
        sync(target.parent)
        state.unlink()
    for caveat in _caveats(noted, unread):
        warnings.warn(caveat, stacklevel=2)


def _results(
    model: RewardModel | RemoteModel,
    items: Iterable[tuple[int, ScoreItem]],
    source: str,
    file: BinaryIO,
    row_tokens: int,
    scale: Scale | None,
    options: RowOptions,
) -> Iterator[tuple[int, WindowLines | None]]:
    """The number of rows and the lines of each window, in order. Lines are None if the file holds them already."""
    remaining = windows(items, WINDOW)
    for window in remaining:
        if not _has_rows(file, [number for number, _ in window]):
            break
        yield len(window), None
    else:
        return
    todo = check_items(chain([window], remaining), source, options)
    scored: Iterable[WindowLines]
    if isinstance(model, RemoteModel):
        scored = model.lines(todo, source=source, row_tokens=row_tokens, scale=scale, options=options)
    else:
        scorer = Scorer(model, row_tokens=row_tokens, scale=scale)
        scored = (score_lines(scorer, each, source, options) for each in todo)
    for lines in scored:
        yield len(lines.lines), lines


def _append(file: BinaryIO, scored: WindowLines) -> None:
    file.writelines(scored.lines)
    file.flush()
    os.fsync(file.fileno())
    if scored.error is not None:
        raise scored.error


def _caveats(noted: Mapping[str, int], unread: Unread) -> Iterator[str]:
    """A line about each limitation of the rewards that this call computed."""
    if unread.sequences:
        yield f"{unread.sequences:,} items were truncated to the encoder's limits: {unread} (noted as truncated)"
    if count := noted.get("beyond_positions"):
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


def check_paths(source: str | Path, target: str | Path) -> None:
    """Check that the scores of ``source`` can be written to ``target``.

    Raises:
        PolarError: the source is a folder; the target is the source, a folder or not JSONL.
    """
    source, target = Path(source), Path(target)
    if source.is_dir():
        raise PolarError(f"{source}: it is a folder; rows of several files have equal numbers, so each gets a file of scores")
    if target.exists() and source.exists() and target.samefile(source):
        raise PolarError(f"{target}: it is the input itself")
    check_target(target, (".jsonl",))


def targets_of(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """A file of scores in ``folder`` for each input file, by its path beside the others: ``a/b.parquet`` gets ``a/b.jsonl``.

    Raises:
        PolarError: the output is no folder, or two files of scores would have one name.
    """
    if folder.suffix == ".jsonl" or folder.is_file():
        raise PolarError(f"{folder}: the input means {len(files):,} files; name a folder, which gets a file of scores for each")
    root = Path(os.path.commonpath([file.absolute().parent for file in files]))
    targets: dict[Path, Path] = {}
    for file in files:
        inner = file.absolute().relative_to(root)
        target = folder / inner.with_name(inner.name.removesuffix(suffix_of(file)) + ".jsonl")
        if other := next((source for source, taken in targets.items() if taken == target), None):
            raise PolarError(f"{other}, {file}: the scores of both would be called {target}; rename one of them")
        targets[file] = target
    return targets


def _continue_only(partial: Path, state: Path, identity: dict[str, Any]) -> None:
    """Begin a partial file with this identity, or check that an existing one with rows has it."""
    if not partial.exists() or not partial.stat().st_size:
        write_json(state, identity)
        return
    saved = read_json(state) if state.exists() else {}
    changed = [key for key in identity if saved.get(key) != identity[key]]
    if changed:
        raise PolarError(
            f"{state.with_suffix('')}: it is unfinished and has another {', '.join(changed)}; remove it or use another output"
        )
