"""``polar rft`` up to the training, which needs TRL and is tested in ``tests_rft/``."""

import json

import pytest
from support import tiny
from support.commands import in_process, refused


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.causal_lm(tmp_path / "lm")
    tiny.reward_model(tmp_path / "rmlm").save(tmp_path / "rm")
    rows = [{"prompt": f"What is {n} plus {n}?", "reference": str(2 * n), "gold": 2 * n} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["rft", "policy.model=lm", "reward.source=rm", "output=o", "data=[rows.jsonl]"]


def test_a_dry_run_checks_judges_and_rows_and_counts_the_prompts(command, tmp_path):
    evaluate = "evaluate={share: 0.2, judges: [{kind: answer, column: gold}]}"
    code, shown, error = in_process(*command, evaluate, "--dry-run", "--json", "plan.json")
    assert code == 0, error
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["prompts"] + plan["held_out_prompts"] == 60 and 4 < plan["held_out_prompts"] < 20
    assert f"note: there are only {plan['held_out_prompts']} held-out prompts" in " ".join(error.split())
    assert "held out prompts" in shown and not (tmp_path / "o").exists()
    refused(in_process(*command, evaluate.replace("gold", "golden"), "--dry-run"), "rows.jsonl: row", "field 'golden'")
    refused(in_process(*command, "evaluate={data: [none.jsonl], judges: [{kind: answer}]}"), "none.jsonl")
    refused(in_process(*command, "evaluate={share: 0.2, judges: [{kind: gold, model: no/model}]}", "--dry-run"), "no/model")
