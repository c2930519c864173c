"""TRL's trainers with our reward, and ``polar rft``: ``make test-trl``."""

import json

import pytest
import torch
import trl
from datasets import Dataset
from packaging.version import Version
from support import fakes, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from polar_rm.common.config import load_config
from polar_rm.errors import ConfigError, PolarError, ScoreError
from polar_rm.rft.config import RftConfig
from polar_rm.rft.plan import make_plan
from polar_rm.rft.run import run
from polar_rm.rft.trl import AsyncPolarReward, PolarReward

ENCODER = fakes.encoder(max_length=200, max_response_length=60)
TRAINERS = {"grpo": (trl.GRPOConfig, trl.GRPOTrainer), "rloo": (trl.RLOOConfig, trl.RLOOTrainer)}
SHORT = {
    "max_steps": 2,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_completion_length": 6,
    "gradient_checkpointing": False,
    "logging_steps": 1,
}
SUPPORTS_ASYNC = Version(trl.__version__) >= Version("1.14")
ROWS = [
    {"prompt": f"the {word}", "reference": f"a {word} jumps over", "wrapper": ("sft", "pretrain")[index % 2]}
    for index, word in enumerate(fakes.WORDS[:6])
]


@pytest.fixture(scope="module")
def url():
    with fakes.running(fakes.make(encode=ENCODER)) as address:
        yield address


def trainer(name, policy, output, reward, rows=ROWS):
    settings, kind = TRAINERS[name]
    return kind(
        model=AutoModelForCausalLM.from_pretrained(policy),
        processing_class=AutoTokenizer.from_pretrained(policy),
        reward_funcs=reward,
        args=settings(output_dir=str(output), bf16=False, report_to="none", **SHORT),
        train_dataset=Dataset.from_list(rows),
    )


def recorded(reward):
    """The reward, and a list that collects (items, rewards) of its calls."""
    calls, score = [], reward._score

    def record(items):
        calls.append((items, score(items)))
        return calls[-1][1]

    reward._score = record
    return reward, calls


@pytest.mark.parametrize("name", TRAINERS)
def test_every_completion_is_rewarded_with_its_own_reference_and_wrapper(name, policy, url, tmp_path):
    expected = {row["prompt"]: (row["reference"], row["wrapper"]) for row in ROWS}
    asynchronous = recorded(AsyncPolarReward(url))  # used by two trainers, which have two event loops
    for reward, calls in [*[asynchronous] * (2 * SUPPORTS_ASYNC), recorded(PolarReward(url))]:
        calls.clear()
        run_trainer = trainer(name, policy, tmp_path, reward)
        run_trainer.train()
        assert [len(items) for items, _ in calls] == [8, 8]
        for items, rewards in calls:
            assert [(item.reference, item.wrapper) for item in items] == [expected[item.prompt] for item in items]
            assert len({item.prompt for item in items}) == 2 and len({item.output for item in items}) > 2
            assert [each.reward for each in rewards] == [fakes.fake_score(fakes.ids_of(item, ENCODER)) for item in items]
        means = [row["rewards/polar/mean"] for row in run_trainer.state.log_history if "reward" in row]
        assert means == pytest.approx([sum(each.reward for each in rewards) / 8 for _, rewards in calls], rel=1e-5)


@pytest.mark.parametrize("kind", [PolarReward, *[AsyncPolarReward] * SUPPORTS_ASYNC])
def test_a_failure_ends_the_run(kind, policy, url, tmp_path):
    with fakes.running(fakes.make(encode=ENCODER)) as gone:
        reward = kind(gone, deadline=0.1)
    with pytest.raises(ScoreError, match="8 of 8 items have no reward; .*unavailable"):
        trainer("grpo", policy, tmp_path, reward).train()
    with pytest.raises(PolarError, match="no column 'reference'"):
        trainer("grpo", policy, tmp_path, kind(url), [{"prompt": "the dog", "answer": "a"}] * 2).train()


def config(policy, source, output, *overrides, **trainer):
    (output.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    base = [f"policy.model={policy}", "policy.kind=base", f"reward.source={source}", f"output={output}"]
    settings = [f"data=[{output.parent}/rows.jsonl]", f"trainer={json.dumps({**SHORT, **trainer})}"]
    return load_config(RftConfig, [], [*base, *settings, *overrides])


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(output):
    return AutoModelForCausalLM.from_pretrained(output / "policy").state_dict()


def test_a_run_saves_the_policy_and_repeats(policy, url, tmp_path):
    for name in ("one", "two"):
        run(config(policy, url, tmp_path / name, "lora={rank: 4}", learning_rate=1e-2))
    rewards = [[row["reward"] for row in metrics(tmp_path / name) if "reward" in row] for name in ("one", "two")]
    assert len(rewards[0]) == 2 and rewards[0] == rewards[1]
    before, one, two = (
        AutoModelForCausalLM.from_pretrained(policy).state_dict(),
        *map(weights, [tmp_path / "one", tmp_path / "two"]),
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert before.keys() == one.keys() and not all(torch.equal(before[name], one[name]) for name in one)
    (tmp_path / "one/policy/notes.txt").write_text("mine")
    run(config(policy, url, tmp_path / "one", "lora={rank: 4}", learning_rate=1e-2))  # it is finished
    assert (tmp_path / "one/policy/notes.txt").exists()
    with pytest.raises(PolarError, match="trainer.learning_rate"):
        run(config(policy, url, tmp_path / "one", "lora={rank: 4}", learning_rate=1e-3))


def test_an_interrupted_run_continues(policy, url, tmp_path):
    class Killed(Exception):
        pass

    def interrupt(row):
        if row["step"] == 3:
            raise Killed

    settings = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-3}
    run(config(policy, url, tmp_path / "whole", **settings))
    with pytest.raises(Killed):
        run(config(policy, url, tmp_path / "parts", **settings), interrupt)
    run(config(policy, url, tmp_path / "parts", **settings))
    whole, parts = (metrics(tmp_path / name)[:4] for name in ("whole", "parts"))
    assert [row["step"] for row in parts] == [1, 2, 3, 4]
    assert [row["reward"] for row in parts] == [row["reward"] for row in whole]
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_mistyped_key_gets_a_suggestion(policy, url, tmp_path):
    with pytest.raises(ConfigError, match="trainer.num_generation: .*did you mean 'num_generations'"):
        run(config(policy, url, tmp_path / "run", num_generation=4))
    with pytest.raises(ConfigError, match="trainer.num_generation: .*did you mean 'num_generations'"):
        make_plan(config(policy, url, tmp_path / "run", num_generation=4))
    with pytest.raises(ConfigError, match="trainer: .*num_generations"):
        run(config(policy, url, tmp_path / "run", num_generations=3))
    with pytest.raises(PolarError, match="no chat template"):
        run(config(tiny.causal_lm(tmp_path / "bare"), url, tmp_path / "run", "policy.kind=chat"))


def test_the_reward_model_needs_no_server(policy, tmp_path):
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "rm")
    run(config(policy, tmp_path / "rm", tmp_path / "run", "algorithm=rloo", "policy.kind=chat"))
    assert [row["step"] for row in metrics(tmp_path / "run") if "reward" in row] == [1, 2]
