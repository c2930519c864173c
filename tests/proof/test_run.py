"""The steps of ``benchmarks/proof`` at micro size on made data: results, resume, and what is told about missing files."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import proof, tiny, trajectories

from polar_rm.corpus import is_held_out
from polar_rm.records import Comparison, read_comparisons, write_records
from polar_rm.training import trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program():
    with proof.importable():
        from proof import run

        yield run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Made data, a tiny language model, and the settings of a size."""
    folder = tmp_path_factory.mktemp("proof")
    tiny.causal_lm(folder / "tiny-lm")
    data = folder / "data"
    data.mkdir()
    write_trajectories(data / "traj_zoo.parquet", trajectories.zoo(prompts=24, policies="abcdefgh", samples=3))
    write_trajectories(data / "traj_tulu_bon16.parquet", trajectories.zoo(prompts=8, policies="a", samples=12))
    proof.write_size(folder)
    return folder


def write_trajectories(path, rows):
    """The rows with a gold value, in the schema of the data."""
    columns = {name: [getattr(row, name) for row in rows] for name in ("source", "prompt_id", "prompt", "policy", "text")}
    columns |= {"sample_id": [row.sample_id for row in rows], "correct": [row.sample_id % 3 / 2 for row in rows]}
    pq.write_table(pa.table(columns), path)


def preferences():
    """Pairs of many prompts, and of the prompts of the samples."""
    prompts = [f"question {number}" for number in range(120)] + [f"prompt {number}" for number in range(8)]
    return [
        Comparison(
            prompt,
            f"the answer is {number}",
            tuple(trajectories.text("x", number, side) for side in (0, 1)),  # either is as good: no model is always right
            (0, 1),
            metadata={"source": f"s{number % 2}"},
        )
        for number, prompt in enumerate(prompts)
    ]


def assert_prompts_are_held_out(folder):
    """Test prompts are those that the corpora hold out; prompts of the samples are not trained on."""
    parts = {name: {row.prompt for row in read_comparisons(folder / f"out/pairs/{name}.jsonl")} for name in ("train", "test")}
    assert all(is_held_out(prompt, 0.3) for prompt in parts["test"])
    assert not any(is_held_out(prompt, 0.3) or prompt.startswith("prompt") for prompt in parts["train"])


def call(program, folder, capsys, *steps):
    """Exit code and what was told."""
    capsys.readouterr()
    paths = [
        "--data",
        folder / "data",
        "--size",
        folder / "micro.yaml",
        "--output",
        folder / "out",
        "--results",
        folder / "results",
    ]
    code = program.main([*steps, *map(str, paths), "--seeds", "0"])
    return code, capsys.readouterr().err


def rows_of(folder, step):
    return json.loads((folder / f"results/{step}.json").read_text())["rows"]


def test_the_first_steps_resume_and_skip(program, folder, capsys, monkeypatch):
    """One story, because each step needs the models of the one before."""
    code, told = call(program, folder, capsys, "init", "corpus", "pairs")
    assert code == 1
    assert "pairs: failed: " in told and "there is no pref_train_made.parquet" in told
    assert (folder / "results/corpus.json").is_file(), told
    assert not (folder / "results/pairs.json").exists()
    [unseen] = [row for row in rows_of(folder, "corpus") if row["measure"] == "unseen policies"]
    assert unseen["value"] == 2

    step, optimize = "pretrain-polar-0", trainer.Trainer.optimize
    seen = []

    def interrupted(self, indices):
        seen.append(self.step)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return optimize(self, indices)

    monkeypatch.setattr(trainer.Trainer, "optimize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(program, folder, capsys, step)
    assert not (folder / f"results/{step}.json").exists()
    code, told = call(program, folder, capsys, step)
    assert code == 0, told
    assert seen == [0, 1, 2, 2], "the finished steps of the training are not repeated"

    code, told = call(program, folder, capsys, "pretrain", "discrimination")
    assert code == 0, told
    assert seen[:4] == [0, 1, 2, 2] and f"{step}: finished before, skipped" in told
    tokens = {
        kind: next(row["value"] for row in rows_of(folder, f"pretrain-{kind}-0") if row["measure"] == "tokens")
        for kind in ("polar", "rbs")
    }
    assert tokens["rbs"] == pytest.approx(tokens["polar"], rel=0.5), "of the same order: a step is a batch of 8"
    rows = rows_of(folder, "discrimination")
    assert {row["view"] for row in rows} >= {"given", "markdown stripped"}
    assert {row["contender"] for row in rows if row["measure"] == "accuracy"} == {
        "polar", "rbs", "length", "tfidf", "encoder", "untrained",
    }  # fmt: skip
    assert all(0 <= row["value"] <= 1 for row in rows if row["measure"] == "accuracy")

    code, told = call(program, folder, capsys, "init", "corpus", "discrimination")
    assert code == 0 and told.count("finished before, skipped") == 3

    write_records(folder / "data/pref_train_made.parquet", preferences())
    names = ("pairs", "finetune", "preferences", "calibration", "overoptimisation")
    code, told = call(program, folder, capsys, *names)
    assert code == 0, told
    assert_prompts_are_held_out(folder)
    accuracies = [row for row in rows_of(folder, "preferences") if row["measure"] == "accuracy" and row["group"] == "overall"]
    starts = {f"{kind}/{references}" for kind in ("polar", "rbs", "none") for references in ("given", "empty")}
    assert {row["contender"] for row in accuracies} == starts | {"tfidf", "length", "encoder"}
    assert {row["n_pairs"] for row in accuracies} == {24}
    [gain] = [
        row
        for row in rows_of(folder, "preferences")
        if (row.get("first"), row.get("second"), row["seed"]) == ("polar/given", "none/given", None)
    ]
    values = {row["contender"]: row["value"] for row in accuracies}
    assert gain["value"] == pytest.approx(values["polar/given"] - values["none/given"])
    assert {row["n_prompts"] for row in rows_of(folder, "overoptimisation")} == {5}

    code, told = call(program, folder, capsys, "levers")
    assert code == 0, told
    rows = rows_of(folder, "lever-deeper")
    both = {row["contender"]: row["value"] for row in rows if row["measure"] == "accuracy" and row["group"] == "overall"}
    assert both["unchanged"] == next(row["value"] for row in accuracies if (row["contender"], row["seed"]) == ("polar/given", 0))
    [difference] = [row["value"] for row in rows if row["measure"] == "difference"]
    assert difference == pytest.approx(both["deeper"] - both["unchanged"])
    assert {row["stage"]: row["value"] for row in rows if row["measure"] == "steps"} == {"pretrain": 3, "finetune": 4}
    deeper = json.loads((folder / "out/levers/deeper/finetune/model/config.json").read_text())
    assert deeper["num_hidden_layers"] == 2
    temperatures = [row for row in rows_of(folder, "calibration") if row["measure"] == "temperature"]
    assert {row["model"] for row in temperatures} == {"polar", "rbs", "none"}
    assert all(row["value"] is not None or "reward" in row["reason"] for row in temperatures)

    (folder / "data/traj_zoo.parquet").write_bytes(b"other")
    code, told = call(program, folder, capsys, "corpus")
    assert code == 1 and "corpus: other inputs: " in told


def test_steps_are_listed_and_unknown_ones_refused(program, folder, capsys):
    """An unknown step is named before anything runs."""
    code, told = call(program, folder, capsys, "pretrian")
    assert code == 2 and "'pretrian'" in told
    capsys.readouterr()
    paths = ["--data", folder / "nothing", "--size", folder / "micro.yaml", "--output", folder / "o", "--results", folder / "r"]
    assert program.main([*map(str, paths), "--list"]) == 0
    listed = capsys.readouterr().out
    assert "finetune-none-2" in listed and "not by default" in listed.replace("\n", " ")
