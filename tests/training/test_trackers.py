"""W&B, Trackio and MLflow: a run is found again by its folder, and what a tracker's library raises is one line.

CI has none of these packages: stand-ins record the calls. The tests of real packages run where they are installed.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from types import SimpleNamespace

import pytest

from polar_rm.cli.train import check_inputs
from polar_rm.common.config import load_config
from polar_rm.common.problems import Problems
from polar_rm.errors import ConfigError, MachineFailure, PolarError
from polar_rm.training import trackers
from polar_rm.training.config import TrainConfig
from polar_rm.training.metrics import open_sinks

KEYS = ("wandb", "trackio", "mlflow")


def config(folder, *overrides):
    base = ["model.init=x", "data.train=[x]", f"output={folder}", "log.tensorboard=false"]
    return load_config(TrainConfig, [], [*base, *overrides])


def open_one(folder, key):
    """The tracker's sink, as a run opens it beside metrics.jsonl."""
    _, sink = open_sinks(config(folder, f"log.{key}=p"), 0)
    return sink


@pytest.fixture(params=["wandb", "trackio"])
def calls(request, monkeypatch):
    """The calls of a stand-in for W&B or Trackio, whose interfaces are alike, and the key."""
    made: list = []
    run = SimpleNamespace(log=lambda values, step: made.append((step, values)), finish=lambda: made.append("finish"))
    stand_in = SimpleNamespace(init=lambda **options: print("hello") or made.append(options) or run)
    monkeypatch.setitem(sys.modules, request.param, stand_in)
    return request.param, made


def test_runs_are_resumed_by_their_folder(tmp_path, calls, capsys):
    key, made = calls

    def first_call(folder):
        made.clear()
        sink = open_one(folder, key)
        sink.write(1, {"loss": 0.5})
        sink.sync()
        sink.close()
        assert made[1:] == [(1, {"loss": 0.5}), "finish"]
        return made[0]

    first = first_call(tmp_path / "a/rm")
    assert (first["project"], first["resume"]) == ("p", "allow")
    assert first["config"]["model"]["init"] == "x"
    known_by = "id" if key == "wandb" else "name"
    assert first[known_by].startswith("rm-")
    assert first_call(tmp_path / "a/rm")[known_by] == first[known_by] != first_call(tmp_path / "b/rm")[known_by]
    assert key == "wandb" or capsys.readouterr().out == ""


class Server:
    """A stand-in for MLflow's server and client: ``MlflowClient()`` gives this object."""

    def __init__(self):
        self.experiments, self.runs, self.tags = {}, {}, {}

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def search_runs(self, places, condition, max_results):
        found = [run for run, tags in self.tags.items() if condition == f"tags.`polar.run` = '{tags['polar.run']}'"]
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in found[:max_results]]

    def create_run(self, place, run_name, tags):
        run = f"{place}-{len(self.runs)}"
        self.runs[run], self.tags[run] = {"params": {}, "metrics": [], "status": "RUNNING"}, tags
        return SimpleNamespace(info=SimpleNamespace(run_id=run))

    def update_run(self, run, status):
        self.runs[run]["status"] = status

    def log_batch(self, run, metrics=(), params=()):
        assert len(params) <= 100
        assert not {name for name, _ in params} & self.runs[run]["params"].keys()
        self.runs[run]["params"] |= dict(params)
        self.runs[run]["metrics"] += [(name, value, step) for name, value, _, step in metrics]

    def set_terminated(self, run):
        self.runs[run]["status"] = "FINISHED"


@pytest.fixture
def mlflow(monkeypatch):
    server = Server()
    entities = SimpleNamespace(Metric=lambda *values: values, Param=lambda *values: values)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda: server, entities=entities))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return server


def test_an_mlflow_run_is_found_again_by_its_tag(tmp_path, mlflow):
    for step in (1, 2):
        sink = open_one(tmp_path / "a/rm", "mlflow")
        [run] = mlflow.runs.values()
        assert run["status"] == "RUNNING"
        sink.write(step, {"loss": 0.5, "lr": 1.0})
        sink.sync()
        sink.close()
        assert run["status"] == "FINISHED"
    assert run["metrics"] == [("loss", 0.5, 1), ("lr", 1.0, 1), ("loss", 0.5, 2), ("lr", 1.0, 2)]
    assert run["params"]["model.init"] == "x" and run["params"]["log.mlflow"] == "p"
    open_one(tmp_path / "b/rm", "mlflow")
    assert len(mlflow.runs) == 2 and len(mlflow.experiments) == 1


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_package_is_named_before_any_work(tmp_path, monkeypatch, key):
    monkeypatch.setitem(sys.modules, key, None)
    expected = rf"^log\.{key} needs the package {key}: pip install '?{key}"
    with pytest.raises(PolarError, match=expected):
        trackers.open_trackers(config(tmp_path, f"log.{key}=p"))
    (tmp_path / "x.jsonl").write_text("{}")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/config.json").write_text("{}")
    found = config(tmp_path, f"log.{key}=p", f"data.train=[{tmp_path / 'x.jsonl'}]", f"model.init={tmp_path / 'x'}")
    problems = Problems()
    check_inputs(found, problems)
    with pytest.raises(PolarError, match=expected):
        problems.check()


def test_a_plan_needs_no_tracker_but_what_it_builds_with(tmp_path, monkeypatch):
    """A plan writes no log, and it knows the adapters."""
    for package in ("tensorboard", "wandb", "peft"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "x.jsonl").write_text("{}")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/config.json").write_text("{}")
    options = ("log.wandb=p", "log.tensorboard=true", "lora.rank=4")
    found = config(tmp_path, *options, f"data.train=[{tmp_path / 'x.jsonl'}]", f"model.init={tmp_path / 'x'}")
    problems = Problems()
    check_inputs(found, problems, trackers=False)
    with pytest.raises(PolarError, match="^lora needs the package peft"):
        problems.check()


@pytest.mark.parametrize("key", KEYS)
def test_a_refusal_is_one_line_without_credentials(tmp_path, monkeypatch, mlflow, key):
    def refuse(**options):
        raise ConnectionError("no answer from https://me:secret@tracker.test, token s3cr3t\nmore")

    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=refuse))
    monkeypatch.setattr(mlflow, "get_experiment_by_name", lambda name: refuse())
    with pytest.raises(MachineFailure) as caught:
        open_one(tmp_path, key)
    assert str(caught.value) == f"log.{key}: ConnectionError: no answer from https://tracker.test, token ***"


def test_the_old_name_of_a_key_is_refused_with_the_new_one(tmp_path):
    with pytest.raises(ConfigError, match=r"log\.wandb_project.*wandb"):
        config(tmp_path, "log.wandb_project=p")


def test_the_real_trackio_holds_every_step(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    for step in (1, 2):
        sink = open_one(tmp_path / "rm", "trackio")
        sink.write(step, {"loss": step / 2})
        sink.close()
    with sqlite3.connect(tmp_path / "trackio/p.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(metrics)["loss"]) for _, step, metrics in rows] == [(1, 0.5), (2, 1.0)]
    assert len({name for name, _, _ in rows}) == 1


def test_the_real_mlflow_holds_every_step(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the only store of mlflow-skinny that needs no server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    mlflow = pytest.importorskip("mlflow")
    for step in (1, 2):
        sink = open_one(tmp_path / "rm", "mlflow")
        sink.write(step, {"loss": step / 2})
        sink.close()
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    assert [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "loss")] == [(1, 0.5), (2, 1.0)]
    assert run.data.params["model.init"] == "x" and run.info.status == "FINISHED"
