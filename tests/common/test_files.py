"""Writing files and folders: atomic, durable, and standard JSON."""

import errno
import json
import os
import sys

import pytest
import torch
from support.full_disks import InterruptedFile, full_after

from polar_rm.common import files
from polar_rm.common.checksums import check_files, describe_files
from polar_rm.common.extras import needs, require
from polar_rm.common.files import (
    atomic_directory,
    check_target,
    claim_folder,
    differences,
    full_disk_named,
    interruption,
    read_json,
    sha256,
    write_file,
    write_json,
)
from polar_rm.common.text import first_line
from polar_rm.errors import Damaged, MachineFailure, PolarError


def test_json_is_standard_json(tmp_path):
    """B4, B23: NaN is not JSON."""
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [float("inf")], "path": tmp_path})
    refuse = {"parse_constant": lambda name: pytest.fail(name)}
    assert json.loads((tmp_path / "a.json").read_text(), **refuse) == {"x": None, "y": ["inf"], "path": str(tmp_path)}


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_file(tmp_path / "a", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(PolarError, match="a: could not be written: No space left"):
        write_file(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_files_and_folders_are_synced_before_names_change(tmp_path, monkeypatch):
    """F6: a power cut must not leave names without content."""
    events = []
    monkeypatch.setattr(files, "sync", lambda path: events.append(("sync", path.name)))
    real = files._replace_directory
    monkeypatch.setattr(
        files, "_replace_directory", lambda new, target: (events.append(("rename", target.name)), real(new, target))
    )
    with atomic_directory(tmp_path / "m") as folder:
        (folder / "deep").mkdir()
        (folder / "deep/a").write_text("1")
    rename = events.index(("rename", "m"))
    assert {name for kind, name in events[:rename]} >= {"a", "deep", folder.name}
    assert events[rename + 1 :] == [("sync", tmp_path.name)]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    for content in ("one", "two"):
        with atomic_directory(tmp_path / "m") as folder:
            (folder / content).write_text(content)
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "m") as folder:
        (folder / "three").write_text("three")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["m", "two"]


def test_a_files_folder_is_synced_after_the_rename(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync", lambda path: synced.append((path, (tmp_path / "a").read_text())))
    write_file(tmp_path / "a", "new")
    assert synced == [(tmp_path, "new")]


def test_others_may_read_a_folder_that_was_written(tmp_path):
    """safetensors writes files that only their owner can read, and a server may run as another user."""
    with atomic_directory(tmp_path / "m") as folder:
        (folder / "weights").touch(mode=0o600)
    assert (tmp_path / "m/weights").stat().st_mode & 0o777 == 0o644


def test_a_full_disk_is_reported_with_the_target(tmp_path):
    with (
        pytest.raises(PolarError, match=r"m: could not be saved: .*No space left.* MiB are free"),
        atomic_directory(tmp_path / "m"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_inside_torchs_writer_is_an_interrupt(tmp_path):
    """F13: torch reports that its file is too short, as on a full disk."""
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "m") as folder:
        torch.save(torch.zeros(100_000), InterruptedFile(folder / "weights.bin", "wb"))
    with (
        full_after(10_000),
        pytest.raises(PolarError, match="m: could not be saved: .* MiB are free"),
        atomic_directory(tmp_path / "m") as folder,
    ):
        torch.save(torch.zeros(100_000), folder / "weights.bin")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_found_however_deeply_it_is_hidden():
    inner = KeyboardInterrupt()
    middle, outer = RuntimeError("inline_container"), RuntimeError("of all ranks")
    middle.__context__, outer.failures = inner, {1: (middle, "traceback")}
    assert interruption(inner) is interruption(middle) is interruption(outer) is inner
    inner.__context__ = outer  # a circle
    assert interruption(outer) is inner
    assert interruption(RuntimeError("inline_container")) is None


def test_a_full_disk_is_reported_with_the_file_that_stays_open(tmp_path):
    """F13. The error of an open file has no name, and its closing raises the error once more."""
    with (
        full_after(100),
        pytest.raises(MachineFailure, match="a: could not be written: .*File too large.* and the same command continues"),
        full_disk_named(tmp_path / "a"),
        (tmp_path / "a").open("wb") as file,
    ):
        file.write(b"x" * 60)
        file.flush()
        file.write(b"y" * 60)
        file.flush()
    assert (tmp_path / "a").read_bytes().startswith(b"x" * 60)
    with pytest.raises(IsADirectoryError), full_disk_named(tmp_path / "a"):
        tmp_path.open("wb")


def test_a_failed_sync_names_its_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="Input/output error") as caught:
        files.sync(tmp_path)
    assert caught.value.filename == str(tmp_path)


def test_damage_is_named(tmp_path):
    """F6, F8."""
    for name in ("a", "b/c"):
        write_file(tmp_path / name, "content of " + name)
    facts = describe_files(tmp_path)
    assert sorted(facts) == ["a", "b/c"] and facts["a"]["bytes"] == 12
    check_files(tmp_path, facts, full=True)
    (tmp_path / "a").write_text("content oF a")
    check_files(tmp_path, facts)
    with pytest.raises(Damaged, match="a: the content is not what was written"):
        check_files(tmp_path, facts, full=True)
    (tmp_path / "a").write_text("cut")
    with pytest.raises(Damaged, match="a: the file has 3 bytes, but 12 were written"):
        check_files(tmp_path, facts)
    (tmp_path / "a").unlink()
    with pytest.raises(Damaged, match="a: the file is missing"):
        check_files(tmp_path, facts)


def test_a_missing_package_is_reported_with_the_command_that_installs_it():
    with (
        pytest.raises(PolarError, match=r"polar fly needs the package no_such_wings: pip install no_such_wings$"),
        needs("fly", "polar fly"),
    ):
        import no_such_wings.feathers  # noqa: F401
    with pytest.raises(ModuleNotFoundError), needs("fly", "polar fly"):
        import polar_rm.no_such_module  # noqa: F401


def test_a_missing_package_is_reported_before_the_work_that_needs_it(monkeypatch):
    require("fly", "polar fly", "json")
    with pytest.raises(PolarError, match=r"polar fly needs the package no_such_wings: pip install no_such_wings$"):
        require("fly", "polar fly", "no_such_wings")
    lines = ["torch>=2.6", "kites[tail]>=1.2,<3; extra == 'fly'", "wings; extra == 'fly'", "fins>=1; extra == 'swim'"]
    monkeypatch.setattr("polar_rm.common.extras.requires", lambda name: lines)
    lines.append("pytest>=7; extra == 'fly'")  # it is installed, and need not be named
    monkeypatch.setitem(sys.modules, "json", None)
    with pytest.raises(PolarError, match=r"polar fly needs the package json: pip install 'kites\[tail\]<3,>=1.2' wings$"):
        require("fly", "polar fly", "json")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\nb"), "a"),
        (KeyError(), "KeyError"),
        (OSError(" \n"), "OSError"),
        (ValueError("field 'x':\n    expected a text\nmore"), "field 'x': expected a text"),
        (ValueError("field 'x':"), "field 'x':"),
    ],
)
def test_an_error_without_a_message_has_a_first_line(error, line):
    """B16. A line that only announces the next one has it."""
    assert first_line(error) == line


def test_targets_are_checked_before_the_work(tmp_path):
    check_target(tmp_path / "new/deep/a.jsonl", (".jsonl",))
    for target, message in (
        (tmp_path, "it is a folder"),
        (tmp_path / "a.txt", "unknown kind"),
        (tmp_path / "f/a.jsonl", "f is not a folder"),
    ):
        (tmp_path / "f").write_text("")
        with pytest.raises(PolarError, match=message):
            check_target(target, (".jsonl",))


def test_settings_with_nothing_beside_them_are_replaced_where_no_other_process_works(tmp_path):
    """A command failed before it made anything: other settings may have the folder."""
    claim_folder(tmp_path / "o", {"a": 1}, "policies", alone=True)
    claim_folder(tmp_path / "o", {"a": 2}, "policies", alone=True)
    with pytest.raises(PolarError, match="it holds policies of other settings"):
        claim_folder(tmp_path / "o", {"a": 1}, "policies")
    write_file(tmp_path / "o/metrics.jsonl", "{}")
    with pytest.raises(PolarError, match="it holds policies of other settings"):
        claim_folder(tmp_path / "o", {"a": 1}, "policies", alone=True)


def test_a_folder_is_claimed_by_one_set_of_settings(tmp_path):
    claim_folder(tmp_path / "o", {"a": 1, "b": {"c": 2}}, "shards")
    claim_folder(tmp_path / "o", {"a": 1, "b": {"c": 2}}, "shards")
    with pytest.raises(PolarError, match=r"holds shards of other settings \(b.c: 2 there, 3 now\)"):
        claim_folder(tmp_path / "o", {"a": 1, "b": {"c": 3}}, "shards")
    (tmp_path / "u").mkdir()
    (tmp_path / "u/mine").write_text("")
    with pytest.raises(PolarError, match="not empty and holds no shards"):
        claim_folder(tmp_path / "u", {}, "shards")


def test_differences_are_five_by_name():
    assert differences({str(n): n for n in range(9)}, {}).endswith("and 4 more")


@pytest.mark.parametrize(("content", "message"), [("", "not JSON"), ("[1]", "not a JSON object"), ("[" * 100_000, "not JSON")])
def test_files_that_are_not_json_objects(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(PolarError, match=message):
        read_json(tmp_path / "a.json")


def test_a_folders_hash_changes_with_names_and_contents(tmp_path):
    write_file(tmp_path / "d/a", "1")
    first = sha256(tmp_path / "d")
    (tmp_path / "d/a").rename(tmp_path / "d/b")
    second = sha256(tmp_path / "d")
    write_file(tmp_path / "d/b", "2")
    third = sha256(tmp_path / "d")
    assert len({first, second, third}) == 3
    write_file(tmp_path / "d/README.md", "a card")
    assert sha256(tmp_path / "d") == third
