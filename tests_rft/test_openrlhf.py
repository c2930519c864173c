"""OpenRLHF's own executor, data set and reward shaping, with our reward function and server.

``openrlhf.utils.agent``, ``.datasets.prompts_dataset``, ``.trainer.ppo_utils`` and ``.models.utils`` are real and run on a CPU.
The engine that generates is a fake; vLLM and deepspeed are empty modules, so that the files can be imported without CUDA.
"""

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import openrlhf
import pytest
import torch
from openrlhf.datasets.prompts_dataset import PromptDataset
from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer

import polar_rm.rft.openrlhf
from polar_rm.records import ScoreItem

RAW = ["What is the capital?", "How high is it?", "Isn't it?"]
REFERENCES = ["Beijing.", [{"role": "assistant", "content": "7 metres"}], "We don't know."]
ANSWERS = ["Beijing.", "Shanghai is larger.", "12,345.6 metres", "It is not.", "<think>Twice.</think>It is."]
PAIRS = [(index, answer) for index in range(3) for answer in ANSWERS]


@pytest.fixture(scope="module")
def tokenizer(policy):
    return AutoTokenizer.from_pretrained(policy)


@pytest.fixture(params=["file", "route"])
def endpoint(request, served, monkeypatch):
    monkeypatch.setenv("POLAR_URL", served.url)
    return polar_rm.rft.openrlhf.__file__ if request.param == "file" else f"{served.url}/get_reward"


def data_set(tokenizer, labels, inputs=RAW):
    """Prompts in the policy's chat template with labels, read by OpenRLHF with --data.label_key."""
    args = SimpleNamespace(data=SimpleNamespace(input_key="input", label_key="reference", apply_chat_template=True))
    strategy = SimpleNamespace(args=args, is_rank_0=lambda: False)
    return PromptDataset(
        [{"input": raw, "reference": label} for raw, label in zip(inputs, labels, strict=True)], tokenizer, strategy
    )


class Engine:
    """A fake of vLLM that always gives the same answer."""

    def __init__(self, tokenizer, answer):
        self.ids = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.convert_tokens_to_ids("<|im_end|>")]

    async def generate(self, prompt_ids, params, multi_modal_data=None):
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=self.ids, finish_reason="stop", logprobs=None)])


def rollouts(endpoint, tokenizer, labels, inputs=RAW, max_length=1000):
    """Responses of the real executor, called concurrently. max_length: tokens of prompt and answer."""
    executor = SingleTurnAgentExecutor([endpoint])
    data = data_set(tokenizer, labels, inputs)
    params = SimpleNamespace(max_tokens=30, logprobs=None)

    async def run():
        calls = [
            executor.execute(data.prompts[index], data.labels[index], params, max_length, tokenizer, Engine(tokenizer, answer))
            for index, answer in PAIRS
        ]
        return await asyncio.gather(*calls)

    return asyncio.run(run())


def rewards_of(responses):
    return [response["reward"][0] for response in responses]


def test_rewards_are_the_scorers(endpoint, served, tokenizer):
    before = served.requests("/v1/score")
    responses = rollouts(endpoint, tokenizer, REFERENCES)
    prompts = data_set(tokenizer, REFERENCES).prompts
    items = [ScoreItem(prompts[index], REFERENCES[index], answer) for index, answer in PAIRS]
    assert rewards_of(responses) == pytest.approx(served.rewards(items), abs=2e-5)
    if endpoint.endswith(".py"):
        assert 0 < served.requests("/v1/score") - before < len(PAIRS)


def test_labels_can_hold_the_prompt_without_the_template(endpoint, served, tokenizer):
    labels = [{"reference": reference, "prompt": raw} for reference, raw in zip(REFERENCES, RAW, strict=True)]
    items = [ScoreItem(RAW[index], REFERENCES[index], answer) for index, answer in PAIRS]
    assert rewards_of(rollouts(endpoint, tokenizer, labels)) == pytest.approx(served.rewards(items), abs=2e-5)


def test_prompts_that_openrlhf_truncates(endpoint, served, tokenizer):
    """OpenRLHF drops the beginning of a prompt that is too long before it generates, but passes the reward function all of it."""
    long = [" ".join(f"It has {i + len(raw)} metres." for i in range(40)) + raw for raw in RAW]
    labels = [{"reference": reference, "prompt": raw} for reference, raw in zip(REFERENCES, RAW, strict=True)]
    responses = rollouts(endpoint, tokenizer, labels, long, max_length=100)
    assert {response["action_ranges"][0][0] for response in responses} == {70}
    items = [ScoreItem(RAW[index], REFERENCES[index], answer) for index, answer in PAIRS]
    assert rewards_of(responses) == pytest.approx(served.rewards(items), abs=2e-5)


def test_thinking_is_stripped_on_request(served, tokenizer, monkeypatch):
    monkeypatch.setenv("POLAR_URL", served.url)
    monkeypatch.setenv("POLAR_STRIP_THINKING", "1")
    prompts = data_set(tokenizer, REFERENCES).prompts
    items = [ScoreItem(prompts[index], REFERENCES[index], answer.rpartition("</think>")[2]) for index, answer in PAIRS]
    rewards = rewards_of(rollouts(polar_rm.rft.openrlhf.__file__, tokenizer, REFERENCES))
    assert rewards == pytest.approx(served.rewards(items), abs=2e-5)


def test_without_labels_there_is_no_reward(endpoint, tokenizer, monkeypatch):
    async def no_pause(_):
        pass

    monkeypatch.setattr("openrlhf.utils.agent.asyncio.sleep", no_pause)  # OpenRLHF sends a request to the route five times
    assert {response["reward"] for response in rollouts(endpoint, tokenizer, [""] * 3)} == {None}


def module(name, **attributes):
    fake = ModuleType(name)
    vars(fake).update(attributes)
    return fake


def test_responses_become_experiences(endpoint, served, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", module("vllm", SamplingParams=None))
    monkeypatch.setitem(sys.modules, "vllm.inputs", module("vllm.inputs", TokensPrompt=None))
    monkeypatch.setitem(sys.modules, "vllm.utils", module("vllm.utils", random_uuid=None))
    from openrlhf.trainer.ppo_utils.experience import Experience
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    responses = rollouts(endpoint, tokenizer, REFERENCES)
    experiences = [SamplesGenerator._process_response_into_experience(None, response, max_len=1000) for response in responses]
    batch = Experience.concat_experiences(experiences, tokenizer.pad_token_id)
    assert batch.rewards.flatten().tolist() == pytest.approx(rewards_of(responses))
    assert batch.info["truncated"].flatten().tolist() == [0] * len(PAIRS)
    assert all(0 < score < 1 for score in batch.scores.flatten().tolist())


def test_why_the_clip_has_to_be_widened(monkeypatch):
    """The published model's reward of a wrong answer, -11.03, is clipped by the default range and not by the one we recommend."""
    package = Path(openrlhf.__file__).parent
    options = (package / "cli" / "train_ppo_ray.py").read_text()
    assert '"--reward.clip_range", type=float, nargs=2, default=(-10, 10)' in options
    monkeypatch.setitem(sys.modules, "deepspeed", module("deepspeed"))
    spec = importlib.util.spec_from_file_location("openrlhf_models_utils", package / "models" / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    mask, kl = torch.ones(1, 3), torch.zeros(1, 3)

    def last(clip):
        return utils.compute_reward(torch.tensor([-11.03]), 0.0, kl, action_mask=mask, reward_clip_range=clip)[0, -1].item()

    assert last((-10, 10)) == -10 and last((-20, 20)) == pytest.approx(-11.03)
