"""Two ranks of which one is slow, sees files late, fails or dies (gloo on a CPU)."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
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


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Our lines; torchrun prints tracebacks of its own."""
    return [line for line in done.stderr.splitlines() if line.startswith("polar: error: ")]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["slow-encode", "slow-export", "slow-checkpoint", "stale-cache"])
def test_what_takes_long_on_one_rank_is_waited_for(tmp_path, fault):
    """F5: encoding, export and old checkpoints' removal took longer than a collective may."""
    done = launch(fault, "pretrain", runs.config(tmp_path, max_steps=2, checkpoint_every=1), "row_tokens=150")
    assert done.returncode == 0, done.stderr
    assert runs.final_weights(tmp_path / "run")
    assert len(list((tmp_path / "run/data").glob("*.arrow"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("not-shared", r"(rank 1) does not see what rank 0 wrote"),
        ("refused", "this rank can't go on"),
    ],
)
def test_an_error_of_one_rank_ends_all_with_its_message(tmp_path, fault, message):
    """F5, F16, B13."""
    done = launch(fault, "pretrain", runs.config(tmp_path), "row_tokens=150")
    assert done.returncode != 0
    lines = errors(done)
    # torchrun ends the others as soon as the first one has gone, so not every rank is sure to come to its line.
    assert lines and all(message in line for line in lines), done.stderr
    assert not (tmp_path / "run/model").exists()


@pytest.mark.slow
def test_a_rank_that_dies_is_one_line_for_the_other(tmp_path):
    """F16."""
    done = launch("killed", "pretrain", runs.config(tmp_path, checkpoint_every=1), "row_tokens=150")
    assert done.returncode != 0
    [line] = errors(done)
    assert "another rank has ended without a word" in line and "Traceback" not in done.stderr.split("polar: error")[0]
    resumed = runs.run("pretrain", runs.config(tmp_path, checkpoint_every=1), ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert "behind step 2" in resumed.stderr


@pytest.mark.slow
def test_a_bad_row_is_one_line_of_every_rank_and_no_model_is_loaded(tmp_path):
    config = runs.config(tmp_path)
    (tmp_path / "lm/model.safetensors").unlink()
    with (tmp_path / "train.jsonl").open("a") as rows:
        rows.write("{}\n")
    done = runs.run("pretrain", config, ranks=2)
    lines = errors(done)
    assert lines and all("train.jsonl: row 41" in line for line in lines), done.stderr


@pytest.mark.slow
def test_a_sharded_start_gives_every_rank_rank_0s_weights(tmp_path):
    """F16: adapters and buffers too; the result is that of one process."""
    pytest.importorskip("peft")
    changes = {"lora": {"rank": 4}, "max_steps": 3, **runs.with_scores(tmp_path)}
    one = runs.run("pretrain", runs.config(tmp_path, **changes), f"output={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    two = runs.run("pretrain", runs.config(tmp_path, **changes), "row_tokens=150", ranks=2)
    assert two.returncode == 0, two.stderr
    expected = runs.final_weights(tmp_path / "one")
    found = runs.final_weights(tmp_path / "run")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


@pytest.fixture
def exchanges():
    """Two ranks' ends of one store."""
    server = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30))
    clients = [TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=30)) for _ in range(2)]
    yield [Exchange(PrefixStore("test", client), rank, 2) for rank, client in enumerate(clients)]
    del server  # it lives as long as its clients


def both(exchanges, work):
    """What ``work`` gives on each rank, each in a thread of its own."""
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


def test_ranks_hear_what_rank_0_and_what_each_says(exchanges):
    called = []
    assert both(exchanges, lambda e: e.from_main(lambda: called.append(e.rank) or {"a": [1]})) == [{"a": [1]}] * 2
    assert called == [0]
    assert both(exchanges, lambda e: e.gather(10 * e.rank)) == [[0, 10]] * 2
    assert both(exchanges, lambda e: e.from_main(lambda: "next")) == ["next"] * 2


def test_processes_that_torchrun_starts_anew_do_not_read_what_the_dead_ones_left(monkeypatch):
    monkeypatch.setattr(exchange, "TCPStore", lambda *given, **options: "store")
    monkeypatch.setattr(exchange, "PrefixStore", lambda prefix, store: prefix)
    for name, value in {"MASTER_ADDR": "a", "MASTER_PORT": "1", "TORCHELASTIC_RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(name, value)
    assert exchange.Exchange.join(0, 2, 1)._store == "polar/2/1"


def test_the_first_failure_is_every_ranks(exchanges):
    first, second = exchanges
    second.fail(PolarError("no"))
    first.fail(OtherRankFailed("rank 1: no"))
    first.fail(ValueError("later"))
    assert (first.failure(), second.failure()) == ("rank 1: no", None)
    with pytest.raises(OtherRankFailed, match="^rank 1: no$"):
        first.gather(0)
    assert str(first.explain(RuntimeError("[gloo] Connection closed by peer"))) == "rank 1: no"


def test_only_what_a_dead_peer_causes_becomes_one_line(exchanges):
    dead = exchanges[0].explain(RuntimeError("[..gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert isinstance(dead, MachineFailure) and "another rank has ended" in str(dead)
    for error in (RuntimeError("a mistake of ours"), KeyError("gloo"), PolarError("told")):
        assert exchanges[0].explain(error) is error


def test_a_rank_without_a_sign_of_life_is_found(exchanges, monkeypatch):
    first, second = exchanges
    seen = {}
    for now, sign in ((0, "1"), (15, "2"), (30, "2")):
        second._store.set("alive/1", sign)
        first._store.set("alive/0", str(now))
        assert first._silent(seen, now) is None
    first._store.set("alive/0", "31")
    assert first._silent(seen, 36) == 1
    second.close()
    first._store.set("alive/0", "32")
    assert first._silent(seen, 99) is None and first._silent(seen, 110) is None


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
