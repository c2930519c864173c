"""The verb quantize, and verbs with ``--precision int8``."""

import json
import shutil
from inspect import signature

import pytest
from support import tiny
from support.commands import refused

from polar_rm.cli import quantize as cli
from polar_rm.model import int8
from polar_rm.quantization import run

ROWS = [
    {"prompt": prompt, "reference": "the fox", "chosen": chosen, "rejected": rejected}
    for prompt in ("p", "Why?")
    for chosen, rejected in (("the quick fox", "12 34"), ("a turtle", "Beijing"), ("a river", "it is not"))
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "has_int8", lambda: True)
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "rm")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    items = [{"prompt": row["prompt"], "reference": row["reference"], "output": row["chosen"]} for row in ROWS]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return tmp_path


def test_a_measured_model_is_scored_and_evaluated_in_int8(polar, folder):
    scoring = ("score", "--model", "rm", "--input", "items.jsonl", "--device", "cpu", "--precision")
    refused(polar(*scoring, "int8", "--output", "8.jsonl"), "not measured yet; first: polar quantize")
    code, _, error = polar("quantize", "rm", "pairs.jsonl", "--minimum", "0")
    assert code == 0 and "of 6 pairs are flipped, anchored rewards" in error and "int8.json" in error, error
    record = json.loads((folder / "rm/int8.json").read_text())
    assert (record["float32_layers"], record["n_pairs"], record["data"]) == (["down_proj"], 6, ["pairs.jsonl"])
    for precision in ("int8", "fp32"):
        code, _, error = polar(*scoring, precision, "--output", f"{precision}.jsonl")
        assert code == 0, error
    scored = [(folder / f"{precision}.jsonl").read_text().splitlines() for precision in ("int8", "fp32")]
    rewards = [[json.loads(line)["reward"] for line in lines] for lines in scored]
    assert len(rewards[0]) == 6 and rewards[0] != rewards[1]
    code, _, error = polar(
        "evaluate", "pairs.jsonl", "--model", "rm", "--precision", "int8", "--device", "cpu", "--json", "e.json"
    )
    assert code == 0, error
    assert '"dtype": "int8"' in (folder / "e.json").read_text()


def test_skipped_rows_are_told(polar, folder):
    (folder / "mixed.jsonl").write_text((folder / "pairs.jsonl").read_text() + '{"prompt": 1}\n')
    code, _, error = polar("quantize", "rm", "mixed.jsonl", "--minimum", "0", "--on-bad-row", "skip")
    assert code == 0 and "1 bad rows were skipped, see " in error, error
    assert json.loads((folder / "rm/int8.json").read_text())["n_comparisons"] == 6


def test_the_command_and_the_function_have_equal_defaults():
    command, function = signature(cli.quantize).parameters, signature(run.quantize_model).parameters
    for name in ("minimum", "force", "limit", "row_tokens"):
        assert command[name].default == function[name].default, name


def test_what_is_refused(polar, folder, monkeypatch):
    monkeypatch.setattr(run, "spearmanr", lambda first, second: (0.5,))
    refused(polar("quantize", "rm", "pairs.jsonl", "--minimum", "0.6"), "below 0.6 int8 is refused (--force takes it)")
    assert not (folder / "rm/int8.json").exists()
    assert polar("quantize", "rm", "pairs.jsonl", "--minimum", "0.6", "--force", "--float32", "none")[0] == 0
    assert json.loads((folder / "rm/int8.json").read_text())["float32_layers"] == []
    (folder / "bad.jsonl").write_text('{"prompt": 1}\n')
    refused(polar("quantize", "rm", "bad.jsonl"), "bad.jsonl", "row 1")
    refused(polar("serve", "--model", "rm", "--engine", "vllm", "--precision", "int8"), "int8 is for our own server")
    refused(polar("evaluate", "pairs.jsonl", "--model", "hf:lm", "--precision", "int8"), "int8 is for models saved by polar")
    shutil.rmtree(folder / "rm")
    refused(polar("quantize", "rm", "pairs.jsonl"), "rm")
