"""The modules that a command loads before it answers; each command runs in its own process."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "numpy", "pyarrow", "tokenizers", "sklearn", "matplotlib")

# Runs the command, and writes the modules that it loaded and the environment variables that they read.
SPY = """
import atexit, json, os, sys
def write():
    names = "TOKENIZERS_PARALLELISM TQDM_DISABLE TRANSFORMERS_VERBOSITY".split()
    with open(os.environ["SPY"], "w") as file:
        json.dump({"modules": sorted(sys.modules), "environment": {n: os.environ.get(n) for n in names}}, file)
atexit.register(write)
sys.argv = ["polar", *sys.argv[1:]]
from polar_rm.cli.main import main
main()
"""


def start(folder, *arguments, **environment):
    process = subprocess.run(
        [sys.executable, "-c", SPY, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "SPY": str(folder / "spy.json"), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = json.loads((folder / "spy.json").read_text())
    return process, {name for name in HEAVY if name in report["modules"]}, report["environment"]


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("--version",), ("score", "--help"), ("pretrain", "-h")])
def test_help_and_version_load_nothing_heavy(tmp_path, arguments):
    """B19."""
    process, heavy, environment = start(tmp_path, *arguments)
    assert process.returncode == 0, process.stderr
    assert "polar" in process.stdout
    assert heavy == set()
    assert environment == {"TOKENIZERS_PARALLELISM": "true", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score", "--modle", "x"), "--modle"),
        (("scoer",), "No such command 'scoer'"),
        (("config", "pretrian"), "polar pretrian takes no config; verbs with one:"),
        (("score", "--model", "nowhere", "--input", "x.jsonl", "--output", "y.jsonl"), "nowhere: no such folder of a model"),
        (("evaluate", "none.jsonl", "--model", "model"), "none.jsonl: no such file or folder"),
        (("audit", "model", "none.jsonl"), "none.jsonl: no such file or folder"),
        (("bestofn", "none.jsonl", "--model", "length"), "none.jsonl: no such file or folder"),
        (("inspect", "here.jsonl", "--model", "nowhere"), "nowhere: no such folder of a model"),
        (("calibrate", "nowhere", "here.jsonl"), "nowhere: no such folder of a model"),
        (("calibrate", "hf:model", "here.jsonl"), "hf:model: a folder is named without hf: here"),
        (("calibrate", "model", "none.jsonl"), "none.jsonl: no such file or folder"),
        (("parity", "nowhere"), "nowhere: no such folder of a model"),
        (("convert", "nowhere", "new"), "nowhere: no such folder of a model"),
        (("quickstart", "--base", "nowhere"), "nowhere: no such folder of a model"),
    ],
)
def test_a_typing_error_or_a_wrong_path_is_reported_before_anything_heavy_is_loaded(tmp_path, arguments, message):
    """B19."""
    (tmp_path / "here.jsonl").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").touch()
    process, heavy, _ = start(tmp_path, *arguments)
    assert process.returncode == 2
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert heavy == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pretrain", "missing.yaml"), "missing.yaml: No such file"),
        (("scaling", "run", "missing.yaml"), "missing.yaml: No such file"),
        (("scaling", "run", "recipe:scaling", "corpus=nowhere", "output=o"), "nowhere: no split 'train'"),
        (("rft", "missing.yaml"), "missing.yaml: No such file"),
        (("sample", "missing.yaml"), "missing.yaml: No such file"),
        (("corpus", "missing.yaml"), "missing.yaml: No such file"),
        (("references", "missing.yaml"), "missing.yaml: No such file"),
        (("references", "inputs=[a.jsonl]", "output=o", "reference={kind: sibling}"), "a.jsonl: no such file"),
        (("pretrain", "data.train=[a.jsonl]", "output=o", "model.init=nowhere"), "a.jsonl: no such file"),
        (("pretrain", "data.train=[here.jsonl]", "output=o", "model.init=nowhere"), "nowhere: no such folder of a model"),
        (("finetune", "data.train=[here.jsonl]", "output=o", "model.resume_from=nowhere"), "nowhere: no such folder"),
        (("rft", "data=[here.jsonl]", "output=o", "policy.model=nowhere", "reward.source=x"), "nowhere: no such folder"),
        (
            ("serve", "--model", "some/hub-id"),
            "some/hub-id: no such folder of a model, and from the Hub: some/hub-id: the cache holds no",
        ),
        (("pretrain", "lr=1", "output=o"), "unknown key 'lr'; did you mean 'optim.lr'?"),
    ],
)
def test_a_wrong_config_is_reported_before_torch_is_loaded(tmp_path, arguments, message):
    """B19. Checking a config loads numpy, pyarrow and tokenizers, because configs refer to rows and encoders."""
    (tmp_path / "here.jsonl").touch()
    process, heavy, _ = start(tmp_path, *arguments)
    assert process.returncode == 2
    assert message in process.stderr
    assert not heavy & {"torch", "transformers", "sklearn", "matplotlib"}


def test_the_users_environment_is_kept(tmp_path):
    _, _, environment = start(tmp_path, "--help", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="info")
    assert environment == {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "info"}


def test_transformers_obeys_the_environment():
    code = (
        "from polar_rm.cli.main import main, ENVIRONMENT; import os; os.environ.update(ENVIRONMENT)\n"
        "from transformers.utils import logging\n"
        "print(logging.get_verbosity() == logging.ERROR, logging.is_progress_bar_enabled())"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.split() == ["True", "False"]
