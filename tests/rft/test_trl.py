"""The reward function, called as by TRL, and the parts of ``polar rft`` that need no TRL; ``make test-trl`` tests both with
TRL."""

import asyncio
import json
import math
import pickle
import re
import subprocess
import sys

import pytest
from support import fakes, tiny
from support.commands import in_process

import polar_rm
from polar_rm.cli import main as cli
from polar_rm.client import RewardClient
from polar_rm.common.config import load_config
from polar_rm.errors import PolarError, ScoreError
from polar_rm.records import ScoreItem
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.scale import Scale
from polar_rm.rft.config import RftConfig
from polar_rm.rft.data import read_data
from polar_rm.rft.run import run
from polar_rm.rft.trl import AsyncPolarReward, PolarReward
from polar_rm.scoring.scorer import Scorer

ENCODER = fakes.encoder(max_length=60, max_response_length=20)
PROMPTS = ["the dog", "the dog", "a fox"]
COMPLETIONS = ["jumps", "over the river", "a lazy bank"]
REFERENCES = ["the fox jumps", "the fox jumps", "near the bank"]


def raw():
    triples = zip(PROMPTS, REFERENCES, COMPLETIONS, strict=True)
    return [fakes.fake_score(fakes.ids_of(ScoreItem(*triple), ENCODER)) for triple in triples]


def conversation(role, texts):
    return [[{"role": role, "content": text}] for text in texts]


@pytest.fixture(scope="module")
def url():
    with fakes.running(fakes.make(encode=ENCODER)) as address:
        yield address


def test_a_server_rewards_strings_and_conversations(url):
    reward = PolarReward(url, strip_thinking=True)
    assert reward.__name__ == "polar"
    assert reward(prompts=PROMPTS, completions=COMPLETIONS, completion_ids=[[1]], reference=REFERENCES, other=[1]) == raw()
    thoughtful = conversation("assistant", [f"<think>hm</think>\n{text}" for text in COMPLETIONS])
    assert reward(conversation("user", PROMPTS), thoughtful, reference=REFERENCES) == raw()
    assert reward([], [], reference=[]) == []


def test_a_folder_rewards_in_this_process(tmp_path):
    model = tiny.reward_model(tmp_path / "lm")
    model.save(tmp_path / "model")
    rewards = PolarReward(tmp_path / "model", reference_column="answer")(PROMPTS, COMPLETIONS, answer=REFERENCES)
    triples = zip(PROMPTS, REFERENCES, COMPLETIONS, strict=True)
    alone = [Scorer(model).score_outputs(prompt=prompt, reference=ref, outputs=[output])[0] for prompt, ref, output in triples]
    assert rewards == pytest.approx(alone, abs=1e-4)
    with pytest.raises(PolarError, match="api_key can't be used"):
        PolarReward(tmp_path / "model", api_key="k")


@pytest.mark.parametrize("combine", ["mean", "best"])
def test_several_references_of_a_row_are_combined(url, tmp_path, combine):
    model = tiny.reward_model(tmp_path / "lm")
    model.save(tmp_path / "model")
    columns = {"references": [["the fox", "a lazy dog"], ["over", "the bank"]]}
    for source, scorer in ((url, RewardClient(url)), (tmp_path / "model", Scorer(model))):
        reward = PolarReward(source, reference_column="references", combine=combine)
        items = [
            ScoreItem("p", tuple(each), output) for each, output in zip(columns["references"], ("a fox", "dog"), strict=True)
        ]
        expected = [each.reward for each in scorer.score(items, combine=combine)]
        assert reward(["p", "p"], ["a fox", "dog"], **columns) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(PolarError, match="percentiles are those of raw rewards"):
        PolarReward(url, combine="best", transform="percentile")


def test_a_rows_wrapper_takes_precedence_over_the_configured_one(url):
    def expected(*wrappers):
        rows = zip(PROMPTS, REFERENCES, COMPLETIONS, wrappers, strict=True)
        return [fakes.fake_score(fakes.ids_of(ScoreItem(*row), ENCODER)) for row in rows]

    wrappers = ["pretrain", "sft", None]
    assert PolarReward(url)(PROMPTS, COMPLETIONS, reference=REFERENCES, wrapper=wrappers) == expected("pretrain", "sft", "sft")
    reward = PolarReward(url, wrapper="pretrain")
    assert reward(PROMPTS, COMPLETIONS, reference=REFERENCES, wrapper=wrappers) == expected("pretrain", "sft", "pretrain")
    with pytest.raises(PolarError, match="completion 2 of the batch: field 'wrapper': expected one of sft, pretrain, not 'chat'"):
        reward(PROMPTS, COMPLETIONS, reference=REFERENCES, wrapper=["sft", "chat", "sft"])


def test_transforms_know_the_groups(url):
    first, second, _ = raw()
    high = 1.0 if first > second else -1.0
    assert PolarReward(url, transform="group_zscore")(PROMPTS, COMPLETIONS, reference=REFERENCES) == [high, -high, 0.0]
    for name, reason in [("sigmoid", "unknown transform"), ("percentile", "calibration card")]:
        with pytest.raises(PolarError, match=reason):
            PolarReward(url, transform=name)


def anchored():
    """Rewards less those of the references as candidates."""
    pairs = zip(PROMPTS, REFERENCES, strict=True)
    anchors = [fakes.fake_score(fakes.ids_of(ScoreItem(prompt, ref, ref), ENCODER)) for prompt, ref in pairs]
    return [reward - anchor for reward, anchor in zip(raw(), anchors, strict=True)]


def test_anchored_rewards_and_probabilities_by_every_source(url, tmp_path):
    logged = {}
    rewards = PolarReward(url, transform="anchored")(PROMPTS, COMPLETIONS, reference=REFERENCES, log_metric=logged.__setitem__)
    assert rewards == anchored() and logged["polar/raw_reward"] == pytest.approx(sum(raw()) / 3)
    card = Calibration.from_rewards([-500.0, 500.0], temperature=80.0)
    probabilities = pytest.approx([1 / (1 + math.exp(-value / 80)) for value in anchored()])
    with fakes.running(fakes.make(encode=ENCODER, scale=Scale(card))) as calibrated:
        for reward in (
            PolarReward(calibrated, transform="probability"),
            pickle.loads(pickle.dumps(PolarReward(calibrated, transform="probability"))),
        ):
            assert reward(PROMPTS, COMPLETIONS, reference=REFERENCES) == probabilities
        percentiles = PolarReward(calibrated, transform="percentile")(PROMPTS, COMPLETIONS, reference=REFERENCES)
        assert percentiles == [card.percentile(value) for value in raw()]
    assert (
        PolarReward(url, transform="probability", calibration=card)(PROMPTS, COMPLETIONS, reference=REFERENCES) == probabilities
    )
    with pytest.raises(PolarError, match="'probability' needs a calibration card"):
        PolarReward(url, transform="probability")

    model = tiny.reward_model(tmp_path / "lm")
    model.save(tmp_path / "model")
    with pytest.raises(PolarError, match="'probability' needs a calibration card"):
        PolarReward(tmp_path / "model", transform="probability")
    card.save(tmp_path / "model")
    scorer = polar_rm.load(tmp_path / "model")
    items = [ScoreItem(*row) for row in zip(PROMPTS, REFERENCES, COMPLETIONS, strict=True)]
    expected = [reward.probability for reward in scorer.score(items, anchored=True)]
    found = PolarReward(tmp_path / "model", transform="probability")(PROMPTS, COMPLETIONS, reference=REFERENCES)
    assert found == pytest.approx(expected, abs=1e-5)


def test_truncation_and_measures_of_the_texts_are_logged(url):
    logged = {}
    long = " ".join(fakes.WORDS * 3)
    values = PolarReward(url)(PROMPTS, [*COMPLETIONS[:2], long], reference=REFERENCES, log_metric=logged.__setitem__)
    # Of the 36 word 4-grams of the long text 13 are distinct; the first two completions share a group.
    alike = (2 / (1 + 3) + 2 / (3 + 3) + 2 * 3 / (39 + 3)) / 3
    assert logged == {
        "polar/cut": pytest.approx(1 / 3),
        "polar/repetition": pytest.approx((36 - 13) / 36 / 3),
        "polar/likeness": pytest.approx(alike),
        "polar/group_std": pytest.approx(abs(values[0] - values[1]) / 2),
    }
    reward = PolarReward(url, transform="tanh")
    reward(PROMPTS, COMPLETIONS, reference=REFERENCES, log_metric=logged.__setitem__)
    assert logged["polar/cut"] == 0 and logged["polar/raw_reward"] == pytest.approx(sum(raw()) / 3)


def test_mistakes_name_column_and_completion(url):
    reward = PolarReward(url)
    with pytest.raises(PolarError, match="no column 'reference'.*it has answer"):
        reward(PROMPTS, COMPLETIONS, answer=REFERENCES, trainer_state=None)
    with pytest.raises(PolarError, match="completion 2 of the batch: field 'reference': .* not null"):
        reward(PROMPTS, COMPLETIONS, reference=["x", None, "y"])


def test_a_failure_raises():
    def fail(ids):
        if ids == bad_ids:
            raise RuntimeError("no memory")

    bad_ids = fakes.ids_of(ScoreItem(PROMPTS[2], REFERENCES[2], COMPLETIONS[2]), ENCODER)
    with (
        fakes.running(fakes.make(fakes.FakeModel(fail=fail), encode=ENCODER)) as url,
        pytest.raises(ScoreError, match="1 of 3 items have no reward; first item 3"),
    ):
        PolarReward(url)(PROMPTS, COMPLETIONS, reference=REFERENCES)


def test_an_absent_server_is_an_error_when_the_reward_is_created():
    """A1: the error came after ten minutes in the first step."""
    with pytest.raises(PolarError, match=r"no server answers at http://127.0.0.1:9: connection refused"):
        PolarReward("127.0.0.1:9", first_contact=0.2)
    with fakes.running(fakes.make(encode=ENCODER, api_key="k")) as url, pytest.raises(PolarError, match="HTTP 401"):
        PolarReward(url, api_key="other")


def test_a_server_that_disappears_ends_the_run():
    with fakes.running(fakes.make(encode=ENCODER)) as url:
        reward = PolarReward(url, deadline=0.5)
    with pytest.raises(ScoreError, match="3 of 3 items have no reward; .*unavailable"):
        reward(PROMPTS, COMPLETIONS, reference=REFERENCES)


def test_one_asynchronous_reward_serves_many_loops(url):
    reward = AsyncPolarReward(url)

    async def twice():
        return await asyncio.gather(*(reward(PROMPTS, COMPLETIONS, reference=REFERENCES) for _ in range(2)))

    for _ in range(2):  # each trainer has its own event loop
        assert asyncio.run(twice()) == [raw(), raw()]


def test_another_process_gets_a_reward_without_connections(url):
    reward = PolarReward(url)
    reward(PROMPTS, COMPLETIONS, reference=REFERENCES)
    assert pickle.loads(pickle.dumps(reward))(PROMPTS, COMPLETIONS, reference=REFERENCES) == raw()


def test_with_a_server_torch_is_not_needed(url):
    code = f"from polar_rm.rft.trl import PolarReward; PolarReward({url!r})(['a'], ['b'], reference=['c'])"
    code += "; import sys; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def config(tmp_path, rows, **changes):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"policy.model": "lm", "reward.source": "rm", "data": [str(tmp_path / "rows.jsonl")], "output": tmp_path / "run"}
    return load_config(RftConfig, [], [f"{name}={value}" for name, value in (values | changes).items()])


def test_a_chat_policy_gets_messages(tmp_path):
    rows = [{"prompt": "Why?", "reference": "So."}, {"prompt": [{"role": "user", "content": "How?"}], "reference": "Thus."}]
    assert read_data(config(tmp_path, rows)).train == [
        {"prompt": [{"role": "user", "content": "Why?"}], "reference": "So.", "wrapper": "sft"},
        {"prompt": [{"role": "user", "content": "How?"}], "reference": "Thus.", "wrapper": "sft"},
    ]
    with pytest.raises(PolarError, match="'prompt' is a string in some rows"):
        read_data(config(tmp_path, rows, **{"policy.kind": "base"}))
    with pytest.raises(PolarError, match=r"rows.jsonl: row 2: field 'reference'"):
        read_data(config(tmp_path, [rows[0], {"prompt": "p", "reference": " "}]))


def test_rows_keep_their_wrapper(tmp_path):
    rows = [{"prompt": "p", "reference": "r", "wrapper": wrapper} for wrapper in ("sft", "pretrain", None)]
    for configured in ("sft", "pretrain"):
        result = read_data(config(tmp_path, rows, **{"reward.wrapper": configured})).train
        assert [row["wrapper"] for row in result] == ["sft", "pretrain", configured]
    with pytest.raises(PolarError, match=r"rows.jsonl: row 1: field 'wrapper'"):
        read_data(config(tmp_path, [{"prompt": "p", "reference": "r", "wrapper": "chat"}]))


def test_without_trl_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(PolarError, match=r"polar rft needs the package (trl|datasets): pip install .*trl"):
        run(config(tmp_path, [{"prompt": "p", "reference": "r"}]))


def test_all_missing_packages_are_told_before_anything_is_loaded(tmp_path, monkeypatch):
    """Each of them stopped a run of its own after torch was loaded."""
    config(tmp_path, [{"prompt": "p", "reference": "r"}])
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm/weights.gguf").write_bytes(b"GGUF")
    for package in ("trl", "gguf"):
        monkeypatch.setitem(sys.modules, package, None)
    common = ["rft", f"data=[{tmp_path}/rows.jsonl]", "reward.source=package:no_such_reward", f"output={tmp_path}/out"]
    for model, line in {
        f"{tmp_path}/lm": r"/lm: a GGUF needs the package gguf: pip install '?gguf(>=[\d.]+'?)?$",
        "package:no_such_policy": "package:no_such_policy: the package no_such_policy is not installed",
    }.items():
        code, _, error = in_process(*common, f"policy.model={model}")
        assert code == 2
        for each in (line, r"polar rft needs the package trl: pip install .*trl", "package:no_such_reward: "):
            assert re.search(each, error, re.MULTILINE), error


def test_a_dry_run_prints_the_plan(tmp_path, monkeypatch, capsys):
    config(tmp_path, [{"prompt": "p", "reference": "r"}])
    tiny.causal_lm(tmp_path / "lm")
    tiny.reward_model(tmp_path / "rmlm").save(tmp_path / "rm")
    base = [
        "policy.kind=base",
        f"policy.model={tmp_path}/lm",
        f"reward.source={tmp_path}/rm",
        f"data=[{tmp_path}/rows.jsonl]",
        f"output={tmp_path}/run",
    ]
    monkeypatch.setattr(sys, "argv", ["polar", "rft", "recipes/rft.yaml", *base, "--dry-run"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code and "prompts: 1" in capsys.readouterr().out
