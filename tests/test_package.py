"""What ``import polar_rm`` gives, what it does not load, and the oldest releases that it admits."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import polar_rm

ROOT = Path(__file__).parents[1]
USED_BY_TESTS = ("gguf", "train", "evaluate", "serve", "quickstart", "peft", "datasets")


def test_every_name_is_there():
    for name in polar_rm.__all__:
        assert getattr(polar_rm, name) is not None
    assert set(polar_rm.__all__) <= set(dir(polar_rm))
    assert polar_rm.Scorer.__name__ == "Scorer"
    with pytest.raises(AttributeError, match="module 'polar_rm' has no attribute 'scorer_of'"):
        polar_rm.scorer_of  # noqa: B018


def test_nothing_heavy_is_loaded_before_it_is_asked_for():
    code = (
        "import sys, polar_rm; polar_rm.__version__, polar_rm.Comparison, polar_rm.ScoreItem, polar_rm.RewardClient;"
        "print(*({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_saved_model_scores_in_two_lines(checkpoint):
    folder, model = checkpoint
    scorer = polar_rm.load(folder, device="cpu")
    rewards = scorer.score_outputs(prompt="p", reference="r", outputs=["a fox", "a dog"])
    again = polar_rm.Scorer(model).score_outputs(prompt="p", reference="r", outputs=["a fox", "a dog"])
    assert rewards == pytest.approx(again, abs=1e-5)
    assert rewards[0] != rewards[1]


def test_the_oldest_environment_holds_the_lower_bound_of_everything_that_its_tests_use():
    """What the tests skip without (a trainer, Ray, an account, an engine) is not in it, and torch has no build that old."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert extras.keys() - {"rft", "wandb", "trackio", "mlflow", "ray", "vllm", "all", "bench", "docs", "dev"} == {*USED_BY_TESTS}
    needed = [Requirement(line) for line in project["dependencies"] + [line for extra in USED_BY_TESTS for line in extras[extra]]]
    lines = (ROOT / "tests/oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    bounds = {canonicalize_name(each.name): each.specifier for each in needed if each.name not in ("torch", "polar-rm")}
    assert {*pins} == {*bounds}
    for name, bound in bounds.items():
        [lowest] = (Version(each.version).release for each in bound if each.operator == ">=")
        assert Version(pins[name]).release[: len(lowest)] == lowest, name
