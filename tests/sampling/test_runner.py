import json

import pytest
import tiny
import torch
from transformers import TopPLogitsWarper

from polar_rm.config import load_config
from polar_rm.errors import BadRow, ConfigError, PolarError
from polar_rm.records import read_trajectories
from polar_rm.sampling.backends.transformers import TransformersPolicy, _Draw
from polar_rm.sampling.policies import Decoding, SamplingConfig, requests_of
from polar_rm.sampling.runner import make_plan, sample

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant"


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tiny.causal_lm(tmp_path_factory.mktemp("lm"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def config(folder, language_model, **changes):
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        prompts.write_text("".join(json.dumps({"prompt_id": f"p{i}", "prompt": "fox " * (i + 1)}) + "\n" for i in range(5)))
    decoding = {"max_new_tokens": 6}
    policies = [
        {"name": "chat", "kind": "chat", "system": "Be brief."},
        {"name": "base", "kind": "base", "template": "Q: {prompt}\nA:"},
    ]
    policies = [policy | {"family": "t", "model": str(language_model), "decoding": decoding} for policy in policies]
    values = {"output": folder / "out", "prompts": prompts, "source": "test", "policies": policies, "precision": "fp32"}
    return SamplingConfig.model_validate(values | changes)


def rows(path):
    return {(row.policy, row.prompt_id, row.sample_id): row.text for row in read_trajectories(path)}


def test_a_sample_does_not_depend_on_what_it_was_batched_with(tmp_path, language_model):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    together = rows(sample(config(tmp_path / "a", language_model, batch_size=10)))
    alone = rows(sample(config(tmp_path / "b", language_model, batch_size=1)))
    assert together == alone
    assert len(together) == 2 * 5 * 2
    assert len(set(together.values())) > 10
    assert rows(sample(config(tmp_path / "a", language_model, seed=1, output=tmp_path / "c"))) != together


def test_an_interrupted_run_loses_and_repeats_nothing(tmp_path, language_model):
    settings = config(tmp_path, language_model, batch_size=2)
    seen = []

    def interrupt(policy, done, total, tokens):
        seen.append(done)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(settings, interrupt)
    store = settings.output / "store/chat.jsonl"
    before = store.read_text()
    store.write_text(before + '{"cut')  # the kill came in the middle of a line
    path = sample(settings)
    assert store.read_text().startswith(before)
    whole = config(tmp_path, language_model, output=tmp_path / "whole")
    assert rows(path) == rows(sample(whole))
    assert json.loads((settings.output / "manifest.json").read_text())["n_trajectories"] == 20


def test_other_settings_in_the_same_folder_are_refused(tmp_path, language_model):
    sample(config(tmp_path, language_model, limit=1))
    with pytest.raises(PolarError, match="seed: 0 there, 3 now"):
        sample(config(tmp_path, language_model, limit=1, seed=3))


def test_draws_follow_the_softmax_of_the_nucleus():
    torch.manual_seed(0)
    logits = torch.randn(30) * 2
    decoding = Decoding(temperature=0.7, top_p=0.9, top_k=8)
    count = 20_000
    drawn = _Draw(decoding, range(count))(None, logits.expand(count, -1)).argmax(-1)
    kept = (logits / 0.7).topk(8)
    nucleus = TopPLogitsWarper(0.9)(None, kept.values[None])[0].softmax(-1)
    expected = torch.zeros(30).scatter(0, kept.indices, nucleus)
    observed = torch.bincount(drawn, minlength=30) / count
    assert (observed - expected).abs().max() < 0.012
    assert observed[expected == 0].sum() == 0


def test_prompts_are_rendered_by_kind(tmp_path, language_model):
    settings = config(tmp_path, language_model)
    chat, base = (TransformersPolicy(policy, dtype=torch.float32, device="cpu") for policy in settings.policies)
    [request] = requests_of(settings.policies[0], [("p", "fox")], 0)[:1]
    text = chat.tokenizer.decode(chat._encode(request))
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nfox<|im_end|>\n<|im_start|>assistant"
    assert base.tokenizer.decode(base._encode(request)) == "Q: fox\nA:"


def test_seeds_never_collide(tmp_path, language_model):
    plan = make_plan(config(tmp_path, language_model))
    seeds = [request.seed for requests in plan.requests.values() for request in requests]
    assert len(set(seeds)) == len(seeds) == 20


def test_errors(tmp_path, language_model):
    with pytest.raises(PolarError, match="exceed the context of 2048"):
        policies = [{"name": "x", "family": "t", "kind": "base", "model": str(language_model)}]
        sample(config(tmp_path, language_model, policies=policies))
    bare = tiny.causal_lm(tmp_path / "bare")
    with pytest.raises(PolarError, match="no chat template"):
        policies = [{"name": "x", "family": "t", "kind": "chat", "model": str(bare)}]
        sample(config(tmp_path, language_model, policies=policies, output=tmp_path / "other"))
    (tmp_path / "twice.jsonl").write_text('{"prompt_id": "a", "prompt": "x"}\n' * 2)
    with pytest.raises(BadRow, match="row 2: field 'prompt_id'"):
        make_plan(config(tmp_path, language_model, prompts=tmp_path / "twice.jsonl"))
    with pytest.raises(PolarError, match="not installed; install it with"):
        policies = [{"name": "x", "family": "t", "kind": "base", "model": "package:no_such_weights"}]
        sample(config(tmp_path, language_model, policies=policies, output=tmp_path / "third"))
    policy = "{name: x, family: f, kind: base, model: m, system: s}"
    (tmp_path / "c.yaml").write_text(f"{{output: o, prompts: p, source: s, policies: [{policy}]}}")
    with pytest.raises(ConfigError, match="has no system prompt"):
        load_config(SamplingConfig, [tmp_path / "c.yaml"])
