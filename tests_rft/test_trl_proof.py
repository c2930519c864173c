"""The policies of ``benchmarks/proof`` at micro size with the real trainer: ``make test-trl``."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import proof, tiny

from polar_rm.encoding.settings import EncoderSettings

STEPS = ("rft-tasks", "rft-grpo-0", "rft-both-0", "rft-best-0", "rft-without-kl-0", "rft")


@pytest.fixture(scope="module")
def program():
    with proof.importable():
        from proof import run

        yield run


@pytest.fixture
def folder(tmp_path):
    """The steps before: the language model, and a reward model as if it had been fine-tuned."""
    tiny.causal_lm(tmp_path / "tiny-lm")
    proof.write_size(tmp_path)
    rows = [{"prompt": f"question {n}", "reference": f"the answer is {n}", "gold": str(n)} for n in range(40)]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data/prompts.parquet")
    model = tiny.reward_model(tmp_path / "init", settings=EncoderSettings(max_length=400, max_response_length=100))
    model.save(tmp_path / "out/finetune/polar-given-0/model")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/finetune-polar-0.json").write_text(json.dumps({"rows": []}))
    return tmp_path


def test_all_policies_are_trained_judged_and_compared(program, folder, capsys):
    paths = {"--data": "data", "--size": "micro.yaml", "--output": "out", "--results": "results"}
    words = [word for name, value in paths.items() for word in (name, str(folder / value))]
    assert program.main(["init", *STEPS, *words, "--seeds", "0"]) == 0, capsys.readouterr().err
    results = {step: json.loads((folder / f"results/{step}.json").read_text())["rows"] for step in STEPS}
    rows = results["rft"]
    assert {row["judge"] for row in rows} == {"answer", "likeness", "reward"}
    assert {row["arm"] for row in rows if row["measure"] == "mean"} == {
        "start", "grpo", "sft", "sft then grpo", "best of n", "without kl",
    }  # fmt: skip
    assert {row["n_prompts"] for row in rows} == {5}
    [told] = [row for row in results["rft-without-kl-0"] if row["measure"] == "exploitation told"]
    assert told["value"] in (0, 1) or told["reason"]
    [left] = [row for row in results["rft-without-kl-0"] if row["measure"] == "limits left"]
    assert "kl" in {event["quantity"] for event in left["events"]}, "the divergence is measured without costing anything"
    best = {row["measure"]: row["value"] for row in results["rft-best-0"]}
    assert best["steps"] == 4 and best["prompts"] <= 6
    policies = ["grpo-0/policy", "grpo-0/sft/policy", "sft-then-grpo-0/policy", "best-of-n-0/sft/policy", "without-kl-0/policy"]
    assert all((folder / f"out/rft/{name}/config.json").is_file() for name in policies)

    capsys.readouterr()
    assert program.main([*STEPS, *words, "--seeds", "0"]) == 0
    assert capsys.readouterr().err.count("finished before, skipped") == len(STEPS)
