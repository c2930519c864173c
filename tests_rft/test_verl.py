"""verl's configuration, reward managers, reward loop on Ray and router, with our reward function and server."""

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop import RewardLoopManager
from verl.experimental.reward_loop.router.naive_router import launch_router_process
from verl.trainer.ppo.reward import load_reward_manager
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils import hf_tokenizer
from verl.utils.config import validate_config

import polar_rm.rft.verl
from polar_rm.errors import PolarError
from polar_rm.records import ScoreItem

RECIPES = Path(__file__).parents[1] / "recipes"
QUESTIONS = [[{"role": "user", "content": text}] for text in ("What is the capital?", "How high is it?", "Isn't it?")]
REFERENCES = ["Beijing.", [{"role": "assistant", "content": "7 metres"}], "We don't know."]
ANSWERS = ["Beijing.", "Shanghai is larger.", "12,345.6 metres", "<think>They measured it twice.</think>It is not.", ""]
ROWS = [(index % 3, answer) for index, answer in enumerate(ANSWERS * 6)]


@pytest.fixture(scope="module")
def composed(policy):
    """The recipe, composed by verl's command line."""
    overrides = [f"actor_rollout_ref.model.path={policy}", "data.train_files=train.parquet", "data.val_files=val.parquet"]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-dir", str(RECIPES), "--config-name", "verl_ppo"]
    done = subprocess.run([*command, "--cfg", "job", *overrides], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return OmegaConf.create(done.stdout)


@pytest.fixture
def config(composed, served):
    """The recipe's config for two reward workers and the running server."""
    changes = {"reward": {"num_workers": 2, "custom_reward_function": {"reward_kwargs": {"url": served.url}}}}
    return OmegaConf.merge(composed, changes)


@pytest.fixture(scope="module")
def tokenizer(policy):
    return hf_tokenizer(str(policy))


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def batch_of(tokenizer, rows=ROWS, extra_key="prompt"):
    """The batch that a rollout passes to the reward loop: padded prompts and responses, and the columns of the data set."""
    responses = [[*tokenizer.encode(answer), tokenizer.eos_token_id] for _, answer in rows]
    width = max(map(len, responses))
    padded = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids in responses])
    mask = torch.tensor([[1] * 4 + [1] * len(ids) + [0] * (width - len(ids)) for ids in responses])
    columns = {
        "data_source": ["test"] * len(rows),
        "reward_model": [{"style": "polar", "ground_truth": REFERENCES[index]} for index, _ in rows],
        # Arrays, because pandas reads lists from Parquet as arrays.
        "extra_info": [{extra_key: np.array(QUESTIONS[index], dtype=object), "index": i} for i, (index, _) in enumerate(rows)],
    }
    arrays = {name: np.array(values, dtype=object) for name, values in columns.items()}
    prompts = torch.full((len(rows), 4), 5)
    return DataProto.from_dict({"prompts": prompts, "responses": padded, "attention_mask": mask}, arrays)


def by_manager(config, tokenizer, batch, **router):
    """The results of verl's reward manager, called concurrently for all rows. A manager belongs to the event loop that creates
    it."""

    async def run():
        manager = load_reward_manager(config, tokenizer, **router)
        return await asyncio.gather(*(manager.run_single(batch[i : i + 1]) for i in range(len(batch))))

    return asyncio.run(run())


def expected(served, rows=ROWS):
    answers = [answer.rpartition("</think>")[2] for _, answer in rows]
    return served.rewards([ScoreItem(QUESTIONS[p], REFERENCES[p], a) for (p, _), a in zip(rows, answers, strict=True)])


def test_the_recipe_is_a_valid_ppo_with_our_reward(composed):
    validate_config(composed, need_reference_policy(composed), need_critic(composed))
    assert need_critic(composed) and not need_reference_policy(composed)
    assert composed.reward.custom_reward_function.path == "pkg://polar_rm.rft.verl"
    actor, critic = composed.actor_rollout_ref.actor, composed.critic
    assert (actor.optim.lr, critic.optim.lr) == (1e-6, 1e-5)
    assert (critic.optim.lr_scheduler_type, critic.optim.min_lr_ratio) == ("cosine", 0.1)
    assert composed.data.train_batch_size == actor.ppo_mini_batch_size == 1024 and composed.actor_rollout_ref.rollout.n == 1
    assert critic.model.path == composed.actor_rollout_ref.model.path


@pytest.mark.parametrize("manager", ["naive", "dapo"])
@pytest.mark.parametrize("path", ["pkg://polar_rm.rft.verl", polar_rm.rft.verl.__file__])
def test_reward_managers_get_the_scorers_rewards_in_few_requests(config, served, tokenizer, manager, path):
    config.reward.reward_manager.name = manager
    config.reward.custom_reward_function.path = path
    before = served.requests("/v1/score")
    results = by_manager(config, tokenizer, batch_of(tokenizer))
    assert [result["reward_score"] for result in results] == pytest.approx(expected(served), abs=2e-5)
    assert [result["reward_extra_info"]["truncated"] for result in results] == [0.0] * len(ROWS)
    assert served.requests("/v1/score") - before < len(ROWS) / 3


def test_the_reward_loop_on_ray(cluster, config, served, tokenizer):
    batch = batch_of(tokenizer)
    before = served.requests("/v1/score")
    scored = RewardLoopManager(config).compute_rm_score(batch)
    lengths = batch.batch["attention_mask"][:, 4:].sum(1)
    at_the_end = scored.batch["rm_scores"][torch.arange(len(batch)), lengths - 1]
    assert at_the_end.tolist() == pytest.approx(expected(served), abs=2e-5)
    assert torch.count_nonzero(scored.batch["rm_scores"]) == len(batch)
    assert scored.meta_info["reward_extra_keys"] == ["score", "truncated"]
    assert served.requests("/v1/score") - before < len(ROWS) / 3


def test_a_row_without_a_prompt_stops_training_with_a_reason(config, tokenizer):
    row = batch_of(tokenizer, ROWS[:1], extra_key="question")
    with pytest.raises(PolarError, match="extra_info has no 'prompt'; it holds 'question', 'index'"):
        by_manager(config, tokenizer, row)


@pytest.mark.parametrize("engine", [None, "vllm"])
def test_requests_through_verls_router(cluster, config, served, tokenizer, engine):
    """Requests to a reward model that verl serves go through its router; with engine vllm they contain token ids."""
    address, process = launch_router_process([served.url])
    try:
        options = {"model": str(served.folder), "strip_thinking": True, "engine": engine}
        config.reward.custom_reward_function.reward_kwargs = options
        route = "/classify" if engine else "/v1/score"
        before = served.requests(route)
        router = {"reward_router_address": address, "reward_model_tokenizer": tokenizer}
        results = by_manager(config, tokenizer, batch_of(tokenizer), **router)
        assert [result["reward_score"] for result in results] == pytest.approx(expected(served), abs=2e-5)
        assert 0 < served.requests(route) - before < len(ROWS) / 3
    finally:
        process.terminate()
