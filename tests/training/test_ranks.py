"""Two ranks of which one is slow, sees files late, fails or dies (gloo on a CPU)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from support import runs
from torch.distributed import PrefixStore, TCPStore

from polar_rm.errors import MachineFailure, PolarError
from polar_rm.training import exchange
from polar_rm.training.exchange import Exchange, OtherRankFailed

SCRIPT = Path(__file__).parents[1] / "support/faults.py"


def launch(fault: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), fault, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The error lines that we print; torchrun prints its own tracebacks."""
    return [line for line in result.stderr.splitlines() if line.startswith("polar: error: ")]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["slow", "stale-cache"])
def test_ranks_wait_for_long_work_on_one_rank(tmp_path, fault):
    """F5: encoding, export and the removal of old checkpoints took longer than a collective may."""
    result = launch(fault, "pretrain", runs.config(tmp_path, max_steps=1, checkpoint_every=1), "row_tokens=150")
    assert result.returncode == 0, result.stderr
    assert runs.final_weights(tmp_path / "run")
    assert len(list((tmp_path / "run/data").glob("*/shards/*.arrow"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("not-shared", r"(rank 1) does not see what rank 0 sees"),
        ("refused", "this rank can't go on"),
    ],
)
def test_an_error_of_one_rank_ends_all_with_its_message(tmp_path, fault, message):
    """F5, F16, B13."""
    result = launch(fault, "pretrain", runs.config(tmp_path), "row_tokens=150")
    assert result.returncode != 0
    lines = errors(result)
    # torchrun ends the others as soon as the first rank has ended, so not every rank is sure to print its line.
    assert lines and all(message in line for line in lines), result.stderr
    assert not (tmp_path / "run/model").exists()


@pytest.mark.slow
def test_a_rank_that_hangs_in_a_collective_ends_with_the_first_reason(tmp_path):
    """F16: its main thread can't react, so that a second thread ends the process."""
    result = launch("hanging", "pretrain", runs.config(tmp_path), "row_tokens=150")
    assert result.returncode != 0
    lines = errors(result)
    assert len(lines) == 2 and all("this rank can't go on" in line for line in lines), result.stderr
    assert sum("rank 1: this rank can't go on" in line for line in lines) == 1  # rank 0 says whose reason it is
    assert not (tmp_path / "run/model").exists()


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_ranks_end_with_a_killed_torchrun_and_the_same_command_continues(tmp_path):
    """F9: they have sessions of their own, and were asleep in their wait for its store for minutes."""
    config = runs.config(tmp_path, epochs=300, checkpoint_every=2)
    log = tmp_path / "run/metrics.jsonl"
    with (tmp_path / "stderr").open("w") as stderr:
        launcher = subprocess.Popen(runs.polar("pretrain", config, "row_tokens=150", ranks=2), stderr=stderr)
    while not log.exists() or len(log.read_bytes().splitlines()) < 5:
        assert launcher.poll() is None, (tmp_path / "stderr").read_text()
        time.sleep(0.02)
    ranks = children(launcher.pid)
    assert len(ranks) == 2 and all(map(is_running, ranks))
    launcher.kill()
    launcher.wait()
    until = time.monotonic() + 60
    while any(map(is_running, ranks)):
        assert time.monotonic() < until, "ranks outlive their torchrun"
        time.sleep(0.1)
    reasons = [line for line in (tmp_path / "stderr").read_text().splitlines() if line.startswith("polar: error: ")]
    assert len(reasons) == 2 and all("another rank has ended without a message, or can't be reached" in each for each in reasons)
    n_steps = len(log.read_text().splitlines())
    with (tmp_path / "stderr").open("w") as stderr:
        third = subprocess.Popen(runs.polar("pretrain", config, "row_tokens=150"), stderr=stderr)
    while len(log.read_bytes().splitlines()) < n_steps + 5:
        assert third.poll() is None, (tmp_path / "stderr").read_text()
        time.sleep(0.02)
    third.send_signal(signal.SIGTERM)
    assert third.wait() == 2
    assert "after step" in (tmp_path / "stderr").read_text()
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert not [path for path in tmp_path.rglob(".*") if path.name.endswith((".partial", ".old", ".lock"))]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_torchrun_starts_all_ranks_again_after_one_has_died(tmp_path):
    """An elastic restart, as after a lost node: all ranks continue after the last checkpoint. They must not find the addresses
    that the ended ones left in torchrun's store."""
    config = runs.config(tmp_path, checkpoint_every=2)
    command = runs.polar("pretrain", config, "row_tokens=150", ranks=2)
    command.insert(command.index("--standalone"), "--max-restarts=1")
    log = tmp_path / "run/metrics.jsonl"
    with (tmp_path / "stderr").open("w") as stderr:
        launcher = subprocess.Popen(command, stderr=stderr)
    while not log.exists() or len(log.read_bytes().splitlines()) < 3:
        assert launcher.poll() is None, (tmp_path / "stderr").read_text()
        time.sleep(0.02)
    os.kill(children(launcher.pid)[1], signal.SIGKILL)
    assert launcher.wait(timeout=240) == 0, (tmp_path / "stderr").read_text()
    assert "resuming" in (tmp_path / "stderr").read_text()
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 11))
    assert runs.final_weights(tmp_path / "run")


@pytest.mark.slow
def test_the_other_rank_reports_a_dead_rank_in_one_line(tmp_path):
    """F16."""
    result = launch("killed", "pretrain", runs.config(tmp_path, checkpoint_every=1), "row_tokens=150")
    assert result.returncode != 0
    [line] = errors(result)
    assert "another rank has ended without a message" in line and "Traceback" not in result.stderr.split("polar: error")[0]
    resumed = runs.run("pretrain", runs.config(tmp_path, checkpoint_every=1), ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert "after step 2" in resumed.stderr


@pytest.mark.slow
def test_every_rank_reports_a_bad_row_and_no_model_is_loaded(tmp_path):
    config = runs.config(tmp_path)
    good = (tmp_path / "train.jsonl").read_text()
    for content, message in ((good + "{}\n", "train.jsonl: row 41"), (good, "the weights are loaded")):
        (tmp_path / "train.jsonl").write_text(content)
        result = launch("no-weights", "pretrain", config)
        lines = errors(result)
        assert lines and all(message in line for line in lines), result.stderr


@pytest.mark.slow
def test_a_sharded_start_gives_every_rank_rank_0s_weights(tmp_path):
    """F16: also its adapters and buffers; the result equals that of one process."""
    pytest.importorskip("peft")
    changes = {"lora": {"rank": 4}, "max_steps": 3, **runs.with_scores(tmp_path)}
    one = runs.run("pretrain", runs.config(tmp_path, **changes), f"output={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    two = runs.run("pretrain", runs.config(tmp_path, **changes), "row_tokens=150", ranks=2)
    assert two.returncode == 0, two.stderr
    expected = runs.final_weights(tmp_path / "one")
    weights = runs.final_weights(tmp_path / "run")
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


@pytest.fixture
def exchanges():
    """The exchanges of two ranks over one store."""
    server = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30))
    clients = [TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=30)) for _ in range(2)]
    yield [Exchange(PrefixStore("test", client), rank, 2) for rank, client in enumerate(clients)]
    del server  # it lives as long as its clients


def both(exchanges, work):
    """The results of ``work`` on both ranks, each in its own thread."""
    results = [None, None]

    def run(rank):
        try:
            results[rank] = work(exchanges[rank])
        except PolarError as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_ranks_get_the_value_of_rank_0_and_of_each_rank(exchanges):
    called = []
    assert both(exchanges, lambda e: e.from_main(lambda: called.append(e.rank) or {"a": [1]})) == [{"a": [1]}] * 2
    assert called == [0]
    assert both(exchanges, lambda e: e.gather(10 * e.rank)) == [[0, 10]] * 2
    assert both(exchanges, lambda e: e.from_main(lambda: "next")) == ["next"] * 2


def test_processes_that_torchrun_restarts_do_not_read_keys_of_the_dead_ones(monkeypatch):
    monkeypatch.setattr(exchange, "TCPStore", lambda *arguments, **options: "store")
    monkeypatch.setattr(exchange, "PrefixStore", lambda prefix, store: prefix)
    for name, value in {"MASTER_ADDR": "a", "MASTER_PORT": "1", "TORCHELASTIC_RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(name, value)
    assert exchange.Exchange.join(0, 2, exchange.attempt_name(1))._store == "polar/2/1"


def test_all_ranks_get_the_first_failure(exchanges):
    first, second = exchanges
    second.fail(PolarError("no"))
    first.fail(OtherRankFailed("rank 1: no"))
    first.fail(ValueError("later"))
    assert (first.failure(), second.failure()) == ("rank 1: no", None)
    with pytest.raises(OtherRankFailed, match="^rank 1: no$"):
        first.gather(0)
    assert str(first.explain(RuntimeError("[gloo] Connection closed by peer"))) == "rank 1: no"


def test_only_an_error_that_a_dead_peer_causes_becomes_one_line(exchanges):
    dead = exchanges[0].explain(RuntimeError("[..gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert isinstance(dead, MachineFailure) and "another rank has ended" in str(dead)
    for error in (RuntimeError("our own mistake"), KeyError("gloo"), PolarError("clear already")):
        assert exchanges[0].explain(error) is error


def test_a_rank_without_heartbeats_is_detected(exchanges, monkeypatch):
    first, second = exchanges
    heartbeats = {}
    for now, heartbeat in ((0, "1"), (15, "2"), (30, "2")):
        second._store.set("alive/1", heartbeat)
        first._store.set("alive/0", str(now))
        assert first._dead_rank(heartbeats, now) is None
    first._store.set("alive/0", "31")
    assert first._dead_rank(heartbeats, 36) == 1
    second.close()
    first._store.set("alive/0", "32")
    assert first._dead_rank(heartbeats, 99) is None and first._dead_rank(heartbeats, 110) is None


@pytest.mark.slow
def test_two_processes_on_one_output(tmp_path):
    """F1, H12: the second is refused by name and changes nothing."""
    config = runs.config(tmp_path, epochs=300, checkpoint_every=5)
    first = subprocess.Popen(runs.polar("pretrain", config), stderr=subprocess.DEVNULL)
    while not (tmp_path / "run/metrics.jsonl").exists():
        assert first.poll() is None
        time.sleep(0.01)
    for ranks, verb in ((1, "finetune"), (2, "pretrain")):
        second = runs.run(verb, config, ranks=ranks)
        assert second.returncode != 0
        assert errors(second)
        assert all("run: in use by polar pretrain on " in line and f"process {first.pid}" in line for line in errors(second))
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
