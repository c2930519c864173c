"""``polar publish``: the card says only what files say, its examples work, and the upload sends only the model."""

import json
import re
import shutil

import pytest
import torch
import yaml
from support import hub as stand_in
from support import tiny
from typer.testing import CliRunner

import polar_rm
from polar_rm.cli.main import app
from polar_rm.errors import PolarError
from polar_rm.publishing import files_of, model_card
from polar_rm.publishing.card import MARK
from polar_rm.publishing.evaluations import eval_results, read_evaluation
from polar_rm.rewards.calibration import Calibration

PAIRS = [{"prompt": f"{n} + 1?", "reference": str(n + 1), "chosen": str(n + 1), "rejected": "no"} for n in range(6)]


@pytest.fixture
def model(checkpoint, tmp_path):
    """A saved model with its run, and files beside it that are nobody's business."""
    source, saved = checkpoint
    folder = tmp_path / "secret-home/run/model"
    shutil.copytree(source, folder)
    run = {
        "config": {
            "model": {"init": str(tmp_path / "cache/models--org--base/snapshots/c0ffee")},
            "loss": {"objective": "bradley_terry"},
        },
        "data": {"/home/someone/secret/pairs.jsonl": "ab" * 32, "/x/datasets--org--rows/snapshots/1/train.jsonl": "cd" * 32},
        "encoder_hash": saved.encoder.hash,
        "seed": 3,
        "results": {"steps": 8},
    }
    (folder.parent / "run.json").write_text(json.dumps(run))
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / "notes.txt").write_text("private")
    return folder


def invoke(*arguments):
    return CliRunner().invoke(app, ["publish", *map(str, arguments)], catch_exceptions=False)


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_has_base_data_and_hashes_without_local_paths(model):
    card = model_card(model, "me/rm", licence="apache-2.0")
    assert front_matter(card) == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["reward-model", "rlhf", "polar", "polar-rm"],
        "base_model": "org/base",
        "datasets": ["org/rows"],
    }
    assert "* data: `secret/pairs.jsonl`, SHA-256 `" + "ab" * 32 in card
    assert "bradley_terry, 8 steps" in card and "seed 3" in card
    assert json.loads((model / "config.json").read_text())["polar"]["encoder"]["hash"] in card
    assert "/home/someone" not in card and "secret-home" not in card


def test_a_run_of_another_model_is_not_quoted(model):
    run = json.loads((model.parent / "run.json").read_text())
    (model.parent / "run.json").write_text(json.dumps(run | {"encoder_hash": "other"}))
    card = model_card(model, "me/rm")
    assert "base: not recorded" in card and "data: not recorded" in card and "bradley_terry" not in card


def test_the_examples_of_a_card_run(model):
    blocks = re.findall(r"```python\n(.*?)```", model_card(model, str(model)), re.DOTALL)
    names: dict = {}
    for block in blocks[:2]:
        exec(block, names)
    [expected] = polar_rm.load(model).score_outputs(prompt="2 + 2?", reference="4", outputs=["5"])
    assert names["reward"].item() == pytest.approx(expected, abs=1e-5)
    assert isinstance(names["torch"], type(torch))
    exec(blocks[2], names)
    assert names["reward"](prompts=["2 + 2?"], completions=["5"], reference=["4"]) == [pytest.approx(expected, abs=1e-5)]


def test_calibration_is_quoted_with_its_numbers(model):
    card = Calibration.from_rewards(
        [0.0, 1.0, 2.0, 3.0], temperature=2.5, n_pairs=40, n_prompts=20, ece_before=0.2, ece_after=0.05
    )
    card.save(model)
    text = model_card(model, "me/rm")
    assert "sigmoid((r_a - r_b) / 2.5), fitted on 40 pairs of 20 prompts" in text
    assert "calibration error 0.200 before and 0.050 after" in text


def test_an_untrained_model_says_so(tmp_path):
    tiny.reward_model(tmp_path / "lm", head=False).save(tmp_path / "model")
    assert "**Never trained:" in model_card(tmp_path / "model", "me/rm")


def test_an_evaluation_is_quoted_for_its_own_model_only(hub, model, tmp_path, monkeypatch):
    rows = "".join(json.dumps(row) + "\n" for row in PAIRS)
    commit = hub.repository("org/pairs", "dataset").commit({"test.jsonl": rows.encode()})
    arguments = ["evaluate", "hf:datasets/org/pairs", "--model", f"ours={model}", "--model", "length", "--json", "out.json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = read_evaluation(
        tmp_path / "out.json", model, json.loads((model / "config.json").read_text())["polar"]["encoder"]["hash"]
    )
    report = json.loads((tmp_path / "out.json").read_text())
    assert (found.accuracy, found.n, found.dataset, found.revision) == (
        report["contenders"]["ours"]["accuracy"],
        6,
        "org/pairs",
        commit,
    )
    assert f"| org/pairs | given | 6 | {found.shown()} |" in model_card(model, "me/rm", evaluations=[found])
    [entry] = yaml.safe_load(eval_results([found]))
    assert entry["dataset"] == {"id": "org/pairs", "task_id": "default", "revision": commit} and entry["value"] == found.accuracy
    (tmp_path / "part.json").write_text(json.dumps(report | {"limit": 6}))
    part = read_evaluation(
        tmp_path / "part.json", model, json.loads((model / "config.json").read_text())["polar"]["encoder"]["hash"]
    )
    assert part.data == "org/pairs, the first 6" and eval_results([part]) is None
    with pytest.raises(PolarError, match="none of its contenders"):
        read_evaluation(tmp_path / "out.json", model.parent, "x")
    with pytest.raises(PolarError, match="made with another encoder"):
        read_evaluation(tmp_path / "out.json", model, "other")


def test_publishing_sends_the_model_and_nothing_else(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", stand_in.TOKEN)
    result = invoke(model, "tester/rm", "--private")
    assert result.exit_code == 0, result.output
    assert stand_in.TOKEN not in result.output
    repository = hub.repository("tester/rm")
    sent = repository.commits[repository.branches["main"]]
    assert (
        sorted(sent)
        == sorted(files_of(model))
        == ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    )
    assert sent["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert repository.access == "private"
    assert polar_rm.load("tester/rm").score_outputs(prompt="a", reference="b", outputs=["c"]) == polar_rm.load(
        model
    ).score_outputs(prompt="a", reference="b", outputs=["c"])


def test_a_dry_run_writes_and_sends_nothing(hub, model):
    result = invoke(model, "tester/rm", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "# tester/rm" in result.output and "model.safetensors" in result.output
    assert not (model / "README.md").exists() and hub.requests == []


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (None, "tester/rm", "to publish, log in first"),
        ("hf_wrongTokenOfSomeone", "tester/rm", "the token is refused"),
        (stand_in.TOKEN, "rm", "expected the name of a repository, owner/name"),
    ],
)
def test_refusals_name_the_way_out_and_never_the_token(hub, model, monkeypatch, token, repo, message):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PolarError) as caught:
        invoke(model, repo)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not token or token not in str(caught.value)


def test_a_card_of_somebody_else_is_not_overwritten(model):
    (model / "README.md").write_text("# mine")
    with pytest.raises(PolarError, match="not written by polar, and is not overwritten"):
        invoke(model)
    (model / "README.md").unlink()
    assert invoke(model).exit_code == invoke(model).exit_code == 0
    card = (model / "README.md").read_text()
    (model / "README.md").write_text(card.replace(MARK, "<!-- written by polar publish -->"))  # an earlier version's mark
    assert invoke(model, "--licence", "mit").exit_code == 0
    assert "license: mit" in (model / "README.md").read_text()


@pytest.mark.parametrize("base", ["org/base", "models/polar-7b"])
def test_a_model_without_a_run_keeps_the_base_of_its_card(model, base, monkeypatch):
    """A converted model: the conversion wrote a card, and no run tells what it was made of."""
    (model.parent / "run.json").unlink()
    found = ("org/base", "a" * 40) if base == "org/base" else None
    monkeypatch.setattr("polar_rm.publishing.card.snapshot_source", lambda source, kind: found)
    (model / "README.md").write_text(model_card(model, "rm", converted_from=f"/home/me/{base}"))
    card = model_card(model, "me/rm")
    assert f"* base: {base}\n" in card and front_matter(card).get("base_model") == ("org/base" if found else None)
    (model / "README.md").unlink()
    assert "* base: not recorded\n" in model_card(model, "me/rm")
