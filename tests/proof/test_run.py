"""The steps of ``benchmarks/proof`` at micro size on made data: results, resume, and what is told about missing files."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from support import tiny, trajectories

from polar_rm.records import write_records
from polar_rm.training import trainer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program():
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from proof import run

        yield run
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Made data, a tiny language model, and the settings of a size."""
    folder = tmp_path_factory.mktemp("proof")
    tiny.causal_lm(folder / "tiny-lm")
    data = folder / "data"
    data.mkdir()
    write_records(data / "traj_zoo.parquet", trajectories.zoo(prompts=24, policies="abcdefgh", samples=3))
    samples = trajectories.zoo(prompts=30, policies="a", samples=4)
    for number, row in enumerate(samples):
        row.metadata["correct"] = number % 4 / 4
    write_records(data / "traj_tulu_bon16.parquet", samples)
    training = {"batch_size": 8, "row_tokens": 600, "optim": {"lr": 1e-3}, "precision": "fp32", "checkpoint_every": 1}
    size = {
        "model": {"init": str(folder / "tiny-lm"), "layers": 1, "max_length": 256, "max_response_length": 64},
        "corpus": {
            "sets": ["zoo"],
            "preferences": ["made"],
            "held_out_prompts": 0.3,
            "held_out_policies": 0.25,
            "pairing": {"kind": "k_way", "negatives": 2},
            "continuations": {
                "kind": "continuations",
                "rows": "trajectories",
                "negatives": 2,
                "min_beginning": 10,
                "min_continuation": 10,
            },
            "pairs": {"train": 16, "calibrate": 8, "test": 8},
            "workers": 1,
        },
        "pretrain": training | {"max_steps": 3},
        "finetune": training,
        "identical_steps": 1,
        "test_comparisons": 12,
        "encoder": f"embedding:{folder / 'tiny-lm'}",
        "classifier": [],
        "references": [],
        "law": {"sizes": ["1m"], "per_parameter": [1]},
        "law_training": {},
        "rft": [],
        "minutes": dict.fromkeys(
            "init corpus pretrain discrimination pairs finetune classifier preferences references calibration overoptimisation "
            "law rft".split(),
            1,
        ),
    }
    (folder / "micro.yaml").write_text(yaml.safe_dump(size))
    return folder


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
    assert (folder / "results/corpus.json").is_file() and not (folder / "results/pairs.json").exists()
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
