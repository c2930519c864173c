import io
import json
import shutil
from importlib.resources import files

import pytest
from jinja2 import Environment, StrictUndefined
from rich.console import Console
from support import tiny
from support.owners import owned_elsewhere

from polar_rm.common.files import write_json
from polar_rm.errors import PolarError
from polar_rm.model.reward_model import RewardModel
from polar_rm.quickstart.pipeline import Quickstart, _calibrate, _examples, _Stages, run
from polar_rm.quickstart.report import summary
from polar_rm.records import Comparison, read_comparisons, write_records
from polar_rm.reporting.words import interval
from polar_rm.rewards.calibration import Calibration
from polar_rm.scoring.examples import read_examples
from polar_rm.scoring.scorer import Scorer


def stages(folder, *overrides):
    return _Stages(Quickstart(folder / "run", str(folder / "lm"), overrides, Console(file=io.StringIO())), "data")


@pytest.fixture
def base(tmp_path):
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm/model.safetensors").write_bytes(b"one")
    return tmp_path


def test_results_of_other_settings_are_replaced(base):
    stages(base, "max_steps=3").run("base", lambda: {"folder": "one"})
    (base / "run/pretrain").mkdir()
    again = stages(base, "max_steps=3")
    again.run("base", lambda: {"folder": "two"})
    assert again.results["base"] == {"folder": "one"}
    assert (base / "run/pretrain").exists()
    other = stages(base, "max_steps=2")
    assert not (base / "run/pretrain").exists()
    other.run("base", lambda: {"folder": "two"})
    assert other.results["base"] == {"folder": "two"}


@pytest.mark.parametrize("change", ["weights", "version"])
def test_all_stages_of_another_model_or_version_run_again(base, monkeypatch, change):
    """F10, B5, B20."""
    stages(base).run("base", lambda: {"folder": "one"})
    (base / "run/base").mkdir()
    if change == "weights":
        (base / "lm/model.safetensors").write_bytes(b"two")
    else:
        other = {"versions": {"polar-rm": "0.1.0"}, "git": {"commit": "another"}}
        monkeypatch.setattr("polar_rm.quickstart.pipeline.versions", lambda: other)
    again = stages(base)
    assert not (base / "run/base").exists()
    again.run("base", lambda: {"folder": "two"})
    assert again.results["base"] == {"folder": "two"}


def test_a_run_folder_in_use_is_refused(base):
    """F1."""
    with (
        owned_elsewhere(base / "run", "quickstart"),
        pytest.raises(PolarError, match="run: in use by polar quickstart on .*, process"),
    ):
        run(Quickstart(base / "run", str(base / "lm")))


def test_the_model_gets_a_scale_on_held_out_pairs_or_the_reason_why_not(checkpoint, tmp_path):
    folder = tmp_path / "pretrain/model"
    shutil.copytree(checkpoint[0], folder)
    scorer, pairs = Scorer(checkpoint[1]), []
    for number in range(40):
        texts = (f"the fox {number}", f"{number} river")
        rewards = scorer.score_outputs(prompt=f"q {number}", reference="the fox", outputs=list(texts))
        first = (rewards[0] > rewards[1]) != (number % 4 == 0)
        pairs.append(Comparison(f"q {number}", "the fox", texts, (0, 1) if first else (1, 0)))
    write_records(tmp_path / "corpus/unseen_prompts/a.jsonl", pairs)
    report = _calibrate(tmp_path)
    assert report["n_pairs"] == 40 and Calibration.load(folder).temperature == report["temperature"]
    turned = [Comparison(c.prompt, c.reference, c.candidates, c.ranks[::-1]) for c in pairs]
    write_records(tmp_path / "corpus/unseen_prompts/a.jsonl", turned)
    assert "no higher rewards" in _calibrate(tmp_path)["refused"]


@pytest.mark.parametrize("refused", [False, True])
def test_the_page_says_what_a_reward_means_or_why_there_is_no_scale(refused):
    bins = {"confidence": [0.6, 0.9], "accuracy": [0.5, 0.8], "error": 0.1, "noise": 0.05}
    row = {"accuracy": 0.875, "gain_ci95": [0.01, 0.09]}
    scale = {"n_pairs": 90, "n_prompts": 9, "accuracy": 0.825, "temperature": 1.5, "before": bins, "after": bins}
    scale["abstention"] = [row] * 8
    source = (files("polar_rm.quickstart") / "report.html.j2").read_text()
    section = source[source.index("<h2>What a reward means") : source.index("<h2>Examples")]
    environment = Environment(undefined=StrictUndefined)
    environment.filters["interval"] = interval
    report = {"calibrate": {"refused": "all pairs are tied"} if refused else scale}
    page = environment.from_string(section).render(report=report, plots={} if refused else {"reliability": "<svg>"})
    if refused:
        assert "all pairs are tied" in page and "<svg" not in page
    else:
        assert all(word in page for word in ("exp(-d / 1.5)", "0.875", "0.825", "[0.010, 0.090]", "0.050", "<svg"))


def test_each_example_is_the_text_that_its_name_says(tmp_path):
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "pretrain/model")
    rows = [
        {"prompt": prompt, "policy": policy, "text": f"{prompt} {policy} {number}"}
        for number in (1, 2)
        for policy in ("base-casual", "chat")
        for prompt in ("fox", "dog")
    ]
    write_json(tmp_path / "stages/sample.json", {"result": {"trajectories": rows}})
    scorer = Scorer(RewardModel.from_pretrained(tmp_path / "pretrain/model"))
    found = _examples(tmp_path)
    oracle = [
        scorer.score_outputs(prompt=each.prompt, reference=each.reference, outputs=[each.better, each.worse])
        for each in read_examples()
    ]
    assert found["judged"]["n_right"] == sum(better > worse for better, worse in oracle)
    assert found["judged"]["right"]["rewards"] == pytest.approx(next(pair for pair in oracle if pair[0] > pair[1]))
    for example, prompt in zip(found["examples"], ("fox", "dog"), strict=True):
        reference, same, other = f"{prompt} chat 1", f"{prompt} chat 2", f"{prompt} base-casual 1"
        assert (example["prompt"], example["reference"]) == (prompt, reference)
        expected = {"identical": reference, "same policy": same, "other policy": other}
        assert {row["candidate"]: row["text"] for row in example["candidates"]} == expected
        rewards = scorer.score_outputs(prompt=prompt, reference=reference, outputs=list(expected.values()))
        assert [row["reward"] for row in example["candidates"]] == rewards and len(set(rewards)) == 3


@pytest.mark.parametrize("missing", [None, "right", "wrong"])
def test_the_page_begins_with_an_example_of_each_kind_that_occurs(missing):
    source = (files("polar_rm.quickstart") / "report.html.j2").read_text()
    section = source[source.index("<h2>One that it") : source.index("<h2>Who wrote it")]
    texts = {"reference": "ref", "better": "good", "worse": "bad", "about": "why", "rewards": [1.5, -0.5]}
    shown = {"right": texts | {"prompt": "p right", "right": True}, "wrong": texts | {"prompt": "p wrong", "right": False}}
    judged = {"n": 9, "n_right": {None: 5, "right": 0, "wrong": 9}[missing], **shown} | ({missing: None} if missing else {})
    page = Environment(undefined=StrictUndefined).from_string(section).render(report={"examples": {"judged": judged}})
    assert f"right in {judged['n_right']} of 9" in page
    assert ("<h3>Right: p right" in page, "<h3>Wrong: p wrong" in page) == (missing != "right", missing != "wrong")
    assert ("right in all of them" in page, "right in none of them" in page) == (missing == "wrong", missing == "right")
    assert "+1.50" in page and "-0.50" in page


@pytest.mark.slow
def test_the_complete_pipeline_on_a_tiny_model_and_a_second_run_that_reuses_it(tmp_path):
    base = tiny.causal_lm(tmp_path / "lm")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (base / "chat_template.jinja").write_text(template)
    messages = io.StringIO()
    overrides = ("model.n_layers=1", "max_steps=3", "batch_size=4", "model.encoder.max_response_length=16")
    quickstart = Quickstart(tmp_path / "run", str(base), overrides, Console(file=messages))
    report = run(quickstart)

    assert report == json.loads((tmp_path / "run/report.json").read_text())
    assert len(report["comparisons"]["policies"]) >= 4
    assert len(report["pretrain"]["history"]) == 3
    assert report["evaluate"]["unseen-prompts"]["n_prompts"] > 30
    assert {"length", "tfidf"} == set(report["evaluate"]["unseen-policies"]["baselines"])
    for example in report["examples"]["examples"]:
        assert [row["candidate"] for row in example["candidates"]] == ["identical", "same policy", "other policy"]
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("<svg") == 4 + ("refused" not in report["calibrate"])
    assert all(word in page for word in ("Who wrote it?", "cannot do", "What next", "without pre-training", "base-tale"))
    assert len(summary(report)) == 4 + 4
    scorer = Scorer(RewardModel.from_pretrained(tmp_path / "run/pretrain/model"))
    assert scorer.score_outputs(prompt="p", reference="r", outputs=["o"])

    # Held-out prompts and policies are not in the training data, and near duplicates are never compared.
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

    messages.truncate(0)
    assert run(quickstart)["seconds"] == report["seconds"]
    assert messages.getvalue().count("reused") == 9
