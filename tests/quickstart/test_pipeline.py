import io
import json

import pytest
from rich.console import Console
from support import tiny

from polar_rm.model.reward_model import RewardModel
from polar_rm.quickstart.pipeline import Quickstart, _Stages, run
from polar_rm.quickstart.report import summary
from polar_rm.records import read_comparisons


def test_what_other_settings_left_is_made_again(tmp_path):
    def stages(*overrides):
        return _Stages(Quickstart(tmp_path, "lm", overrides, Console(file=io.StringIO())), "data")

    stages("max_steps=3").run("base", lambda: {"folder": "one"})
    (tmp_path / "pretrain").mkdir()
    again = stages("max_steps=3")
    again.run("base", lambda: {"folder": "two"})
    assert again.results["base"] == {"folder": "one"}
    assert (tmp_path / "pretrain").exists()
    other = stages("max_steps=2")
    assert not (tmp_path / "pretrain").exists()
    other.run("base", lambda: {"folder": "two"})
    assert other.results["base"] == {"folder": "two"}


@pytest.mark.slow
def test_the_whole_job_on_a_tiny_model_and_a_second_run_that_reuses_it(tmp_path):
    base = tiny.causal_lm(tmp_path / "lm")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (base / "chat_template.jinja").write_text(template)
    said = io.StringIO()
    overrides = ("model.n_layers=1", "max_steps=3", "batch_size=4", "model.encoder.max_response_length=16")
    quickstart = Quickstart(tmp_path / "run", str(base), overrides, Console(file=said))
    report = run(quickstart)

    assert report == json.loads((tmp_path / "run/report.json").read_text())
    assert len(report["comparisons"]["policies"]) >= 4
    assert len(report["pretrain"]["history"]) == 3
    assert report["evaluate"]["unseen-prompts"]["n_prompts"] > 30
    assert {"length", "tfidf"} == set(report["evaluate"]["unseen-policies"]["baselines"])
    for example in report["examples"]["examples"]:
        assert [row["candidate"] for row in example["candidates"]] == ["identical", "same policy", "other policy"]
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("<svg") == 4
    assert all(word in page for word in ("Who wrote it?", "cannot do", "without pre-training", "base-tale"))
    assert len(summary(report)) == 3 + 4
    assert RewardModel.from_pretrained(tmp_path / "run/pretrain/model").score(prompt="p", reference="r", outputs=["o"])

    # Prompts and policies that are held out really are, and near duplicates never meet.
    trained = list(read_comparisons(tmp_path / "run/corpus/train"))
    prompts = {c.metadata["prompt_id"] for c in trained}
    for name in ("corpus/unseen_prompts", "corpus/unseen_policies", "ranked/test.jsonl"):
        assert not prompts & {c.metadata["prompt_id"] for c in read_comparisons(tmp_path / "run" / name)}
    unseen = {"base-tale", "base-advert", "base-verse", "base-steps"}
    tested = list(read_comparisons(tmp_path / "run/corpus/unseen_policies"))
    assert {c.metadata["policy"] for c in tested} == unseen == report["evaluate"]["unseen-policies"]["by"].keys()
    assert all(unseen.issuperset(c.metadata["candidate_policies"]) for c in tested)
    for comparison in trained:
        policies = comparison.metadata["candidate_policies"]
        assert unseen.isdisjoint(policies)
        assert len({policy for policy in policies if policy.startswith("chat")}) <= 1
        assert len({policy for policy in policies if policy.startswith("casual")}) <= 1

    said.truncate(0)
    assert run(quickstart)["seconds"] == report["seconds"]
    assert said.getvalue().count("reused") == 8
