"""Scoring by actors of a Ray cluster."""

import sys
from functools import partial

import pytest
from support import actors as support
from support.commands import in_process, refused

from polar_rm.common.actors import RayActors, map_on_actors
from polar_rm.common.progress import silent
from polar_rm.errors import BadRow, PolarError
from polar_rm.records import ScoreItem, write_records
from polar_rm.scoring import files, remote
from polar_rm.scoring.remote import RemoteModel
from polar_rm.selection.config import SelectConfig
from polar_rm.selection.scoring import score_inputs


def items(folder, n=40):
    some = [ScoreItem(f"prompt {i // 8}", f"fox {i // 8}", f"dog {i} " * (1 + i % 5), metadata={"n": i}) for i in range(n)]
    write_records(folder / "items.jsonl", some)


@pytest.mark.slow
def test_actors_write_the_bytes_of_this_process_even_if_one_is_killed(tmp_path, checkpoint, monkeypatch):
    pytest.importorskip("ray")
    items(tmp_path)
    monkeypatch.setattr(files, "WINDOW", 8)
    common = ("score", "--model", checkpoint[0], "--input", tmp_path / "items.jsonl", "--device", "cpu", "--output")
    assert in_process(*common, tmp_path / "local.jsonl")[0] == 0
    died = tmp_path / "died"
    started = lambda start, windows, actors: map_on_actors(partial(support.fragile, start, died), windows, actors)  # noqa: E731
    monkeypatch.setattr(remote, "map_on_actors", started)
    with support.cluster():
        assert in_process(*common, tmp_path / "ray.jsonl", "--engine", "ray")[0] == 0
    assert died.exists()
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", support.StandIn())


def test_a_bad_row_ends_it_after_the_rows_before_it_and_either_engine_continues(tmp_path, checkpoint, monkeypatch, stand_in):
    monkeypatch.setattr(files, "WINDOW", 8)
    items(tmp_path)
    lines = (tmp_path / "items.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "items.jsonl").write_text("".join([*lines[:30], '{"prompt": "p"}\n', *lines[31:]]))
    local, remote_model = (
        checkpoint[1],
        RemoteModel.of(checkpoint[0], precision="fp32", device="auto", actors=RayActors(actors=2)),
    )
    for target, model in (("local", local), ("ray", remote_model)):
        with pytest.raises(BadRow, match="row 31"):
            list(files.score_file(model, tmp_path / "items.jsonl", tmp_path / f"{target}.jsonl", identity={}))
    assert (tmp_path / "ray.jsonl.partial").read_bytes() == (tmp_path / "local.jsonl.partial").read_bytes()
    assert len((tmp_path / "ray.jsonl.partial").read_text().splitlines()) == 24
    (tmp_path / "items.jsonl").write_text("".join(lines))
    for target, model in (("local", remote_model), ("ray", local)):
        steps = files.score_file(model, tmp_path / "items.jsonl", tmp_path / f"{target}.jsonl", identity={})
        assert list(steps) == [8, 16, 24, 32, 40]
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()


def test_actors_score_the_inputs_of_a_selection(tmp_path, checkpoint, monkeypatch, stand_in):
    items(tmp_path)
    seen = []
    monkeypatch.setattr(remote, "map_on_actors", lambda start, windows, actors: seen.append(actors) or map(start(), windows))
    config = {"inputs": [str(tmp_path / "items.jsonl")], "model": str(checkpoint[0]), "transform": "anchored"}
    results = []
    for name, engine in (("local", {}), ("ray", {"engine": "ray", "ray": {"actors": 3}})):
        settings = SelectConfig.model_validate({**config, "output": tmp_path / name, **engine})
        (tmp_path / name).mkdir()
        [scores] = score_inputs(settings, (tmp_path / "items.jsonl",), ["hash"], silent)
        results.append(scores.read_bytes())
    assert results[0] == results[1]
    assert seen == [RayActors(actors=3)]


def test_settings_that_actors_can_not_share_are_refused(checkpoint, tmp_path):
    of = partial(RemoteModel.of, checkpoint[0])
    with pytest.raises(PolarError, match="precision: auto is each machine's own choice"):
        of(precision="auto", device="cpu", actors=RayActors())
    with pytest.raises(PolarError, match="cuda needs GPUs"):
        of(precision="fp32", device="cuda", actors=RayActors())
    assert of(precision="bf16", device="auto", actors=RayActors(gpus=0.5)).device == "cuda"
    remote_model = of(precision="bf16", device="auto", actors=RayActors())
    assert (remote_model.device, remote_model.dtype) == ("cpu", "bfloat16")
    items(tmp_path, 2)
    options = ("--model", checkpoint[0], "--input", tmp_path / "items.jsonl", "--output", tmp_path / "s.jsonl")
    refused(in_process("score", *options, "--actors", "2"), "need --engine ray")


def test_caveats_count_the_rows_of_all_windows(checkpoint, tmp_path, monkeypatch):
    """Windows bring their own counts, from whatever process."""
    write_records(tmp_path / "items.jsonl", [ScoreItem("p", "r", "dog " * (100 if i in (1, 5, 6) else 1)) for i in range(7)])
    monkeypatch.setattr(files, "WINDOW", 2)
    with pytest.warns(UserWarning, match="^3 items were truncated") as caught:
        list(files.score_file(checkpoint[1], tmp_path / "items.jsonl", tmp_path / "s.jsonl", identity={}))
    assert len(caught) == 1
