"""``polar rft`` up to the training, which needs TRL and is tested in ``tests_rft/``."""

import json

import pytest
from support import tiny
from support.commands import in_process, refused
from support.sampling_runs import TEMPLATE


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.causal_lm(tmp_path / "lm")
    (tmp_path / "lm/chat_template.jinja").write_text(TEMPLATE)
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
    refused(in_process(*command, "evaluate={data: [none.jsonl], judges: [{kind: answer}]}", "--dry-run"), "none.jsonl")
    refused(in_process(*command, "evaluate={share: 0.2, judges: [{kind: gold, model: no/model}]}", "--dry-run"), "no/model")


def test_a_dry_run_lists_what_the_policy_and_the_reward_can_not_read(command, tmp_path):
    """A chat template that is missing or refuses a prompt, and tool calls for a reward's template without roles."""
    call = {"role": "assistant", "content": "I add.", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 plus 1?"}]
    answer = [{"role": "assistant", "content": "2"}]
    rows = [{"prompt": system, "reference": [call]}, {"prompt": "What is 2?", "reference": answer}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refusing = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
    (tmp_path / "lm/chat_template.jinja").write_text(refusing)

    def problems(*changes):
        code, _, error = in_process(*command, *changes, "--dry-run")
        assert code == 2, error
        return [line.removeprefix("polar: error: ") for line in error.splitlines() if line.startswith("polar: error: ")]

    template, reward = problems()
    assert template == "lm: its chat template refuses the prompt Be brief. What is 1 plus 1?: no system role"
    assert reward.startswith(
        "rm: the reward model can't take the reference of a row: a message of role 'assistant' has tool_calls"
    )
    (tmp_path / "lm/chat_template.jinja").unlink()
    assert problems()[0] == "lm: the model has no chat template; policy.kind=base needs none"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**row, "prompt": system}) + "\n" for row in rows[1:]))
    [template] = problems("policy.kind=base")
    assert template == "lm: the model has no chat template; policy.kind=base needs none where prompts are strings"


def test_tool_calls_in_a_prompt_are_refused_because_the_policy_would_not_see_them(command, tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    row = {"prompt": [{"role": "user", "content": "Add."}, call], "reference": "2"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    refused(in_process(*command, "--dry-run"), "rows.jsonl: row 1: field 'prompt'", "tool_calls would be lost")


def test_a_stopped_run_has_an_exit_code_and_a_line_of_its_own(command, tmp_path, monkeypatch):
    from polar_rm.rft import packages, run

    monkeypatch.setattr(packages, "require_packages", lambda config: None)  # TRL need not be installed
    event = {"step": 7, "quantity": "length", "reason": "step 7: length 31 is above its limit 30"}
    monkeypatch.setattr(run, "run", lambda *_: {"stopped": event})
    code, _, error = in_process(*command, "--json", "results.json")
    line = " ".join(error.split())
    assert code == 1 and "stopped: step 7: length 31 is above its limit 30; o/checkpoint-7 is kept" in line
    assert "monitor.length" in line and "policy saved" not in line
    assert json.loads((tmp_path / "results.json").read_text()) == {"stopped": event}
    monkeypatch.setattr(run, "run", lambda *_: {"sentences": ["answer: 0.1 before, 0.2 after"]})
    code, shown, error = in_process(*command)
    assert code == 0 and "answer: 0.1 before, 0.2 after" in shown and "policy saved in o/policy" in " ".join(error.split())
