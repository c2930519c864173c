"""A file of items in, a file of rewards out, resumable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from polar_rm.common.files import check_target, read_json, write_json
from polar_rm.common.iteration import windows
from polar_rm.errors import PolarError
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import OnBadRow, dump_json, read_numbered_items
from polar_rm.scoring.scorer import Scorer, check_finite


def score_file(
    model: RewardModel,
    source: str | Path,
    target: str | Path,
    *,
    identity: dict[str, Any],
    token_budget: int = 8192,
    on_bad_row: OnBadRow | None = None,
) -> Iterator[int]:
    """Score a file of items into JSONL rows {row, reward, n_tokens, truncated, metadata}; yields the count of rows written.

    Rows go to ``target.partial``, which becomes ``target`` at the end. Run again after an interruption, it continues behind the
    last complete row. ``identity`` (model, encoder, input) is saved beside it: another identity is refused, not mixed in.

    Raises:
        PolarError: the target can't be what it should, or what is wrong with the file. BadRow: a row is no item.
        ScoreError: a score is not finite; the message names file and row.
    """
    target = Path(target)
    check_places(source, target)
    partial = target.with_name(target.name + ".partial")
    state = target.with_name(target.name + ".partial.json")
    if partial.exists():
        _check_identity(state, identity)
    else:
        write_json(state, identity)
    done = _complete_rows(partial)
    scorer = Scorer(model, token_budget=token_budget)
    items = islice(read_numbered_items(source, on_bad_row), done, None)
    with partial.open("a", encoding="utf-8") as file:
        yield done
        for window in windows(items, scorer.window):
            for (number, item), scored in zip(window, scorer._score([item for _, item in window]), strict=True):
                check_finite(scored, f"{source}: row {number}")
                done += 1
                row = {
                    "row": number,
                    "reward": scored.reward,
                    "n_tokens": scored.n_tokens,
                    "truncated": scored.truncated,
                }
                file.write(dump_json(row | {"metadata": item.metadata}) + "\n")
            file.flush()
            os.fsync(file.fileno())
            yield done
    partial.rename(target)
    state.unlink()


def check_places(source: str | Path, target: str | Path) -> None:
    """Whether scores of a file can be written there.

    Raises:
        PolarError: the source is a folder, the target is the source, a folder or not JSONL.
    """
    source, target = Path(source), Path(target)
    if source.is_dir():
        raise PolarError(f"{source}: it is a folder; score one file at a time, or rows of several would have equal numbers")
    if target.exists() and source.exists() and target.samefile(source):
        raise PolarError(f"{target}: it is the input itself")
    check_target(target, (".jsonl",))


def _check_identity(state: Path, identity: dict[str, Any]) -> None:
    saved = read_json(state) if state.exists() else {}
    changed = [key for key in identity if saved.get(key) != identity[key]]
    if changed:
        raise PolarError(
            f"{state.with_suffix('')}: unfinished, but with another {', '.join(changed)}; remove it or use another output"
        )


def _complete_rows(partial: Path) -> int:
    """Rows already written; a last line without its newline was cut by the interruption and is removed."""
    if not partial.exists():
        return 0
    rows, end = 0, 0
    with partial.open("rb+") as file:
        for line in file:
            if line.endswith(b"\n"):
                rows += 1
                end += len(line)
        file.truncate(end)
    return rows
