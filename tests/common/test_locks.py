"""F1, H2, H12, F7: an output has one owner, others get an error with the owner's name, and a killed owner leaves nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from polar_rm.common import locks
from polar_rm.common.files import atomic_directory, temporary_path, write_file
from polar_rm.common.locks import owned
from polar_rm.errors import InUse, PolarError

HOLD = """
import sys, time
from polar_rm.common.locks import owned
with owned(sys.argv[1], 'score'):
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that owns ``out``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_by_name_and_changes_nothing(tmp_path, holder):
    before = sorted(tmp_path.iterdir())
    message = rf"out: in use by polar score on .+, process {holder.pid}, since 20\d\d-"
    with pytest.raises(InUse, match=message), owned(tmp_path / "out", "score"):
        pytest.fail("two owners")
    assert sorted(tmp_path.iterdir()) == before


def test_a_killed_owner_holds_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with owned(tmp_path / "out", "score"):
        assert json.loads((tmp_path / ".out.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_one_of_many_that_start_together_owns_it(tmp_path):
    code = "import sys; from polar_rm.common.locks import owned\nimport time\nwith owned(sys.argv[1], 'x'): time.sleep(1.5)"
    many = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stderr=subprocess.PIPE) for _ in range(4)]
    failed = [process for process in many if process.communicate(timeout=60)[1] and process.returncode]
    # A process that starts late may find the output free again. With two owners at a time, all would have succeeded.
    assert 1 <= len(failed) <= 3


def test_the_lock_is_reentrant_and_removed_at_the_end(tmp_path):
    with owned(tmp_path / "out", "first"):
        pass
    with owned(tmp_path / "out", "second"), owned(tmp_path / "out", "the same thread, inside"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_one_whatever_path_it_is_named_by(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for first, second in (("out", tmp_path / "out"), (tmp_path / "out", "out")):
        with owned(first, "first"), owned(second, "the same thread, inside"):
            monkeypatch.chdir("/")  # a relative path is that of the beginning
        monkeypatch.chdir(tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_its_last_owner_removes_meanwhile_is_created_again(tmp_path, monkeypatch):
    """With a lock on a removed file, this process and the next one would both be owners."""
    removed, flock = [], locks.fcntl.flock

    def slow(descriptor, operation):
        if not removed:
            removed.append((tmp_path / ".out.lock").unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(locks.fcntl, "flock", slow)
    with owned(tmp_path / "out", "score"):
        assert json.loads((tmp_path / ".out.lock").read_text())["pid"] == os.getpid()


def test_another_thread_of_the_owner_is_another_owner(tmp_path):
    def other():
        with owned(tmp_path / "out", "other"):
            pass

    with owned(tmp_path / "out", "one"), ThreadPoolExecutor(1) as pool, pytest.raises(PolarError, match=f"process {os.getpid()}"):
        pool.submit(other).result()
    other()


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    """F7: names repeated in containers, and nothing removed the leftovers."""
    target = tmp_path / "m"
    target.mkdir()
    for path in (temporary_path(target), temporary_path(target, "old"), target / ".step-00000001.partial"):
        path.mkdir()
        (path / "weights").write_text("x")
    temporary_path(target / "run.json").write_text("x")
    for kept in (tmp_path / ".other.0123abcd.partial", target / "a.partial", target / ".hidden"):
        kept.write_text("a user's, or another output's")
    with owned(target, "writing"):
        left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.name != ".m.lock")
    assert left == [".other.0123abcd.partial", "m", "m/.hidden", "m/a.partial"]


def test_a_target_lost_between_two_renames_comes_back(tmp_path):
    old = temporary_path(tmp_path / "m", "old")
    old.mkdir()
    (old / "weights").write_text("good")
    with owned(tmp_path / "m", "writing"):
        assert (tmp_path / "m/weights").read_text() == "good"


def test_a_folder_is_written_while_its_parent_is_owned(tmp_path):
    """A run owns its folder and saves a model in it; removing leftovers in the folder must not touch a write in progress."""
    with owned(tmp_path / "run", "pretrain"), atomic_directory(tmp_path / "run/model") as folder:
        write_file(folder / "a", "1")
        locks.remove_leftovers(tmp_path / "run")
        assert folder.is_dir()
    assert (tmp_path / "run/model/a").read_text() == "1"


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match="nothing keeps a second process out"), owned(tmp_path / "out", "x"):
        pass


@pytest.mark.slow
def test_kills_at_any_moment_leave_the_old_folder_or_the_new(tmp_path):
    code = """
import sys, itertools
from pathlib import Path
from polar_rm.common.files import atomic_directory, write_file
for n in itertools.count():
    with atomic_directory(sys.argv[1]) as folder:
        for part in range(20):
            write_file(folder / str(part), str(n))
"""
    for kill in range(12):
        before = set(tmp_path.glob(".m.*.partial"))
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "m")])
        while not (tmp_path / "m").exists() or set(tmp_path.glob(".m.*.partial")) <= before:
            time.sleep(0.001)
        time.sleep(kill * 0.037)
        process.kill()
        process.wait()
    with owned(tmp_path / "m", "looking"):
        contents = {path.read_text() for path in (tmp_path / "m").iterdir()}
        assert len(contents) == 1 and len(list((tmp_path / "m").iterdir())) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_temporary_names_never_repeat(tmp_path):
    names = {temporary_path(tmp_path / "m").name for _ in range(100)}
    assert len(names) == 100 and all(re.fullmatch(r"\.m\.[0-9a-f]{8}\.partial", name) for name in names)
