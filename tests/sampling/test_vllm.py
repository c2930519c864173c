"""The adapter with a fake vLLM, because vLLM is seldom installed on CPU machines."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace

import pytest
from pydantic import ValidationError
from support import tiny

from polar_rm.errors import PolarError
from polar_rm.model.language_models import load_auto_tokenizer
from polar_rm.sampling.backends.vllm import VLLMPolicy
from polar_rm.sampling.base import Machine, Request, Sample


@dataclass
class Parameters:
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    stop: list[str] | None


class LLM:
    def __init__(self, model, **options):
        if unknown := options.keys() - {"revision", "dtype", "tensor_parallel_size", "max_model_len"}:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {min(unknown)!r}")
        if options.get("max_model_len") == 0:
            raise ValueError("max_model_len must be positive\nand more")
        self.model, self.options, self.calls = model, options, []
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=64))

    def get_tokenizer(self):
        return load_auto_tokenizer(self.model)

    def generate(self, prompts, parameters, use_tqdm):
        self.calls.append((prompts, parameters))
        samples = [SimpleNamespace(text=f" {p.seed}", finish_reason="length", token_ids=[1, 2]) for p in parameters]
        return [SimpleNamespace(outputs=[sample]) for sample in samples]


@pytest.fixture
def policy(tmp_path, monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, Parameters
    monkeypatch.setitem(sys.modules, "vllm", module)
    model = tiny.causal_lm(tmp_path / "lm")
    values = {"name": "p", "family": "f", "kind": "base", "model": str(model), "engine": {"tensor_parallel_size": 2}}
    return VLLMPolicy.model_validate(values | {"stop": ["\n"], "decoding": {"max_new_tokens": 9, "top_k": 0}})


def test_each_request_has_its_own_seed_and_the_decoding_of_the_policy(policy):
    backend = policy.open(Machine("bf16", batch_size=2))
    assert backend.llm.options == {"revision": None, "dtype": "bfloat16", "tensor_parallel_size": 2}
    outcomes = {}
    requests = [Request(f"p{i}", "fox " * (100 if i == 3 else 1), 0, 70 + i) for i in range(20)]
    backend.run(requests, lambda request, outcome: outcomes.update({request.prompt_id: outcome}), Event())
    assert outcomes.pop("p3").kind == "too_long"
    assert outcomes == {f"p{i}": Sample(f" {70 + i}", "length", 2) for i in range(20) if i != 3}
    assert [len(prompts) for prompts, _ in backend.llm.calls] == [15, 4]
    prompts, parameters = backend.llm.calls[0]
    assert prompts[0] == {"prompt_token_ids": load_auto_tokenizer(policy.model)("fox ")["input_ids"]}
    assert parameters[0] == Parameters(1.0, 0.9, -1, 9, 70, ["\n"])


def test_a_model_that_does_not_load_is_one_line(policy):
    with pytest.raises(PolarError, match=r"policy 'p': vLLM can't load .*: max_model_len must be positive$"):
        policy.model_copy(update={"engine": {"max_model_len": 0}}).open(Machine())


def test_vllm_gets_no_folder_that_is_damaged_or_a_bomb(policy):
    """F12, F13: what it builds and unpacks by itself is checked before."""
    folder = Path(policy.model)
    written = json.loads((folder / "tokenizer.json").read_text())
    bomb = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    (folder / "tokenizer.json").write_text(json.dumps(written | {"normalizer": bomb}))
    with pytest.raises(PolarError, match="can make a text 1,000 times as long"):
        policy.open(Machine())
    (folder / "tokenizer.json").write_text(json.dumps(written))
    policy.open(Machine())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PolarError, match="not a file of weights only"):
        policy.open(Machine())


def test_reserved_and_unknown_arguments_of_the_engine(policy):
    for key in ("model", "revision", "dtype"):
        with pytest.raises(ValidationError, match=f"policy 'p': engine can't hold {key}; see the key"):
            VLLMPolicy.model_validate(policy.model_dump() | {"engine": {key: "x"}})
    with pytest.raises(PolarError, match="vLLM can't load .*: EngineArgs.*unexpected keyword argument 'tensor_paralel'$"):
        policy.model_copy(update={"engine": {"tensor_paralel": 2}}).open(Machine())
