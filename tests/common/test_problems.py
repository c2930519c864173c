"""All problems of a command at once."""

import subprocess
import sys

import pytest

from polar_rm.common.config import load_config
from polar_rm.common.problems import Problems
from polar_rm.errors import BadRow, ConfigError, PolarError, SeveralProblems
from polar_rm.training.config import TrainConfig


def raising(problems, *errors):
    for error in errors:
        with problems.noted():
            raise error


def test_one_problem_keeps_its_kind_and_several_are_told_once_each():
    problems = Problems()
    problems.check()
    raising(problems, BadRow("a", 1, "x", "y"))
    with pytest.raises(BadRow):
        problems.check()
    raising(problems, PolarError("b: no such file"), PolarError("b: no such file"), ConfigError("c", "d"))
    with pytest.raises(SeveralProblems) as caught:
        problems.check()
    assert caught.value.problems == ("a: row 1: field 'x': expected y", "b: no such file", "c", "d")


def test_other_errors_are_not_kept():
    problems = Problems()
    with pytest.raises(KeyError), problems.noted():
        raise KeyError("a bug")
    assert not problems


def test_all_wrong_keys_of_a_config_are_told_each_once():
    overrides = ["ouput=o", "data.train=[a.jsonl]", "optim.lr=fast", "batch_size=-1", "model.preset=1m"]
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, [], overrides)
    lines = caught.value.problems
    assert len(lines) == 4, lines
    assert sum("unknown key 'ouput'; did you mean 'output'?" in line for line in lines) == 1
    assert all(
        any(line.startswith(start) for line in lines) for start in ("optim.lr=fast: ", "batch_size=-1: ", "model.preset=1m: ")
    )
    assert not any("is missing" in line for line in lines)


def test_a_dry_run_prints_every_problem_and_no_config(tmp_path):
    arguments = ["data.train=[no.jsonl, none.jsonl]", "data.eval=[no.jsonl]", "model.resume_from=nowhere", "output=o"]
    done = subprocess.run(
        [sys.executable, "-m", "polar_rm", "pretrain", *arguments, "log.tensorboard=false", "--dry-run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(": error: ")[2].partition(" (")[0] for line in done.stderr.splitlines()] == [
        "no.jsonl: no such file or folder",
        "none.jsonl: no such file or folder",
        "nowhere: no such folder of a model",
    ]
    assert not (tmp_path / "o").exists()
