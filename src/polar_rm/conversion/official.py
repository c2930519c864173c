"""Official POLAR checkpoints where a reward model is named: each is converted once, exactly, into polar's cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from polar_rm.common.files import read_json, sha256, write_json
from polar_rm.common.locks import owned_soon
from polar_rm.common.paths import check_model
from polar_rm.common.sources import cache_folder, is_snapshot, model_name, note
from polar_rm.conversion.layouts import is_official
from polar_rm.errors import PolarError

_VERSION = 1  # counts the changes of the conversion: a folder that an earlier one wrote is not taken


def native_folder(source: str | Path) -> Path:
    """The folder of a reward model by any of its names; an official checkpoint means its conversion in polar's cache.

    The conversion is exact, and keyed by the commit of the Hub or by the contents of the folder. A second process waits for the
    first.

    Raises:
        UnsupportedModel: the official checkpoint can't be converted exactly.
        PolarError: there is no such model, or the disk is full.
    """
    folder = check_model(source)
    if not is_official(folder):
        return folder
    target = cache_folder() / "converted" / f"{model_name(folder)}-{_content_key(folder)}"
    if (target / "config.json").is_file():
        note(f"{source}: an official checkpoint; its conversion in {target} is taken")
        return target
    with owned_soon(target, "convert", note, waiting=f"{source}: waiting for its conversion"):
        if not (target / "config.json").is_file():
            from polar_rm.conversion.convert import convert

            note(f"{source}: an official checkpoint, which is converted once, exactly, into {target}")
            convert(folder, target)
    return target


def _content_key(folder: Path) -> str:
    """A hash of what is converted. A commit of the Hub says it; other folders are read, once for each state of their files."""
    if is_snapshot(folder):
        return f"v{_VERSION}"
    names = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    # The time of the last change of a file's entry can't be set by a program, unlike the time of its content.
    states = [[path.name, *_state(path.stat())] for path in names]
    memo = cache_folder() / "checksums" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]}.json"
    known = read_json(memo) if memo.is_file() else {}
    if known.get("states") != states:
        known = {"states": states, "sha256": sha256(folder)}
        try:
            write_json(memo, known)
        except PolarError as error:
            raise PolarError(f"{folder}: an official checkpoint, whose conversion is cached: {error}") from None
    return f"{str(known['sha256'])[:16]}-v{_VERSION}"


def _state(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
