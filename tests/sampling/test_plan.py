import json
from collections import Counter
from pathlib import Path

import pytest
from support import tiny

from polar_rm.common.config import load_config
from polar_rm.errors import ConfigError, PolarError
from polar_rm.sampling.config import SamplingConfig
from polar_rm.sampling.plan import make_plan


def config(folder, names, prompts=400, weights=None, **changes):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt_id": f"p{i}", "prompt": f"fox {i}"}) + "\n" for i in range(prompts)))
    weights = weights or {}
    policies = [{"name": name, "family": "f", "kind": "chat", "model": "m", "weight": weights.get(name, 1)} for name in names]
    values = {
        "output": folder / "out",
        "prompts": [{"rows": path}],
        "source": "s",
        "policies": policies,
        "assignment": {"method": "draw"},
    }
    return SamplingConfig.model_validate(values | changes)


def shares(plan):
    return {(name, plan.prompts[index].prompt_id): count for name, share in plan.shares.items() for index, count in share}


def test_a_draw_asks_two_policies_and_the_first_of_them_twice(tmp_path):
    plan = make_plan(config(tmp_path, "abcde"))
    by_prompt: dict[str, list[int]] = {}
    for (_, prompt), count in shares(plan).items():
        by_prompt.setdefault(prompt, []).append(count)
    assert len(by_prompt) == 400 and all(sorted(counts) == [1, 2] for counts in by_prompt.values())
    drawn = Counter(name for name, _ in shares(plan))
    assert all(abs(drawn[name] - 160) < 40 for name in "abcde")
    assert shares(make_plan(config(tmp_path, "edcba"))) == shares(plan)
    assert shares(make_plan(config(tmp_path, "abcde", seed=1))) != shares(plan)


def test_weights_are_respected(tmp_path):
    # Of three policies with weights 2, 1, 1 the first is drawn first with probability 1/2.
    plan = make_plan(config(tmp_path, "abc", prompts=2000, weights={"a": 2}))
    first = Counter(name for (name, _), count in shares(plan).items() if count == 2)
    assert abs(first["a"] - 1000) < 90 and abs(first["b"] - 500) < 80


def test_a_policy_that_joins_asks_nobody_else_for_more(tmp_path):
    before = shares(make_plan(config(tmp_path, "abcd")))
    after = shares(make_plan(config(tmp_path, "abcde")))
    assert all(count <= before.get(key, 0) for key, count in after.items() if key[0] != "e")
    assert 100 < sum(name == "e" for name, _ in after) < 220


def test_seeds_never_collide(tmp_path):
    plan = make_plan(config(tmp_path, "abcd", prompts=2000, assignment={"method": "grid"}))
    seeds = [request.seed for name in plan.shares for request in plan.requests(name)]
    assert len(set(seeds)) == len(seeds) == 4 * 2000 * 2
    assert max(seeds) < 2**63 and min(seeds) >= 0


def test_prompts_ask_the_policies_of_their_pool(tmp_path):
    model = tiny.causal_lm(tmp_path / "lm")
    (tmp_path / "text.txt").write_text("\n\n".join(f"The quick brown fox {i}." for i in range(40)))
    policies = [
        {"name": name, "family": "f", "kind": kind, "model": "m"} for name, kind in [("a", "base"), ("b", "base"), ("c", "chat")]
    ]
    (tmp_path / "rows.jsonl").write_text('{"prompt_id": "p", "prompt": "fox"}\n')
    sources = [{"rows": tmp_path / "rows.jsonl", "pool": "chat"}]
    sources += [{"texts": str(tmp_path / "text.txt"), "tokenizer": str(model), "count": 5, "max_tokens": 5}]
    values = {"output": tmp_path, "prompts": sources, "source": "s", "policies": policies}
    plan = make_plan(SamplingConfig.model_validate(values))
    assert plan.shares == {"a": [(i, 2) for i in range(1, 6)], "b": [(i, 2) for i in range(1, 6)], "c": [(0, 2)]}
    assert plan.counts[0]["texts"] > 5
    sources[0]["pool"] = "base"
    (tmp_path / "c.yaml").write_text(json.dumps(values, default=str))
    with pytest.raises(ConfigError, match="policy 'c': no prompts are for chat policies"):
        load_config(SamplingConfig, [tmp_path / "c.yaml"])
    with pytest.raises(ConfigError, match="prompts of pool base need at least 3 such policies, there are 1"):
        load_config(
            SamplingConfig,
            [tmp_path / "c.yaml"],
            ["assignment={method: draw, policies: 3}", "policies=[{name: a, family: f, kind: base, model: m}]"],
        )


def test_an_id_in_two_sources_is_refused(tmp_path):
    settings = config(tmp_path, "ab")
    twice = settings.model_copy(update={"prompts": settings.prompts * 2})
    with pytest.raises(PolarError, match="the id 'p0' comes from two sources"):
        make_plan(twice)


def test_the_recipe_is_valid():
    settings = load_config(SamplingConfig, [Path(__file__).parents[2] / "recipes/sampling.yaml"])
    assert {policy.backend for policy in settings.policies} == {"transformers", "vllm", "openai"}
