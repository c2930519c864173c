"""The demonstration model inside the package: its files, its names and what its card says."""

from importlib.resources import files
from pathlib import Path

import pytest

import polar_rm
from polar_rm.cli.options import load
from polar_rm.common.files import read_json, sha256
from polar_rm.common.sources import DEMO, model_folder
from polar_rm.evaluation import ComparisonFiles, evaluate_files
from polar_rm.records import is_held_out, read_comparisons
from polar_rm.rft.judges import GoldConfig
from polar_rm.training.config import TrainConfig

FOLDER = Path(str(files("polar_rm") / "demo"))
HELD_OUT = Path(str(files("polar_rm.quickstart") / "data/held_out.jsonl"))


@pytest.fixture(scope="module")
def facts():
    return read_json(FOLDER / "provenance.json")


def test_files_are_those_of_the_provenance_and_small(facts):
    assert {name: sha256(FOLDER / name) for name in facts["sha256"]} == facts["sha256"]
    assert facts["corpus"]["trajectories"] == sha256(HELD_OUT.parent / "trajectories.parquet")
    assert "Apache-2.0" in facts["licence"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4e6
    assert HELD_OUT.stat().st_size < 1e6


def test_its_pairs_are_of_prompts_that_the_training_never_saw():
    rows = list(read_comparisons(HELD_OUT))
    assert len(rows) == 96 and all(is_held_out(row.prompt, 0.25, seed=0) for row in rows)


def test_it_is_better_than_chance_length_and_tfidf(facts):
    test = facts["unseen_prompts"]
    measured = test["measures"]["package:demo"]
    assert test["n_prompts"] >= 50 and measured["ci95"][0] > 0.6
    assert {"length", "tfidf"} == set(test["above"])
    assert all(each["ci95"][0] > 0 for each in test["above"].values())


def test_accuracy_is_what_the_card_says(facts):
    report = evaluate_files([DEMO], [HELD_OUT]).report
    [name] = set(report["contenders"]) - {"length", "tfidf"}
    found = report["contenders"][name]["accuracy"]
    expected = facts["held_out.jsonl"]["measures"]["package:demo"]
    assert found == pytest.approx(expected["accuracy"], abs=0.005)  # a tie by rounding on another machine
    card = (FOLDER / "README.md").read_text()
    [row] = [line for line in card.splitlines() if line.startswith("| held_out.jsonl |")]
    low, high = expected["ci95"]
    assert f"| {report['n_pairs']:,} | {report['n_prompts']} | {expected['accuracy']:.3f} [{low:.3f}, {high:.3f}] |" in row
    assert len(ComparisonFiles([HELD_OUT]).paths) == 1


def test_it_has_a_scale_and_no_untrained_parts():
    scorer = polar_rm.load(DEMO)
    assert scorer.model.untrained == () and scorer.scale.calibration is not None
    [same] = scorer.score([polar_rm.ScoreItem("p", "An answer.", "An answer.")], anchored=True)
    assert same.anchored == pytest.approx(0, abs=1e-4) and same.probability == pytest.approx(0.5, abs=1e-3)


def test_it_is_accepted_wherever_a_model_is_named():
    assert model_folder(DEMO) == FOLDER
    config = load(TrainConfig, ["recipe:finetune"])
    assert config.model.resume_from == FOLDER and config.data.train == [HELD_OUT]
    assert GoldConfig(kind="gold", model=DEMO).identity() == sha256(FOLDER)
