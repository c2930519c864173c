"""Small runs of ``polar sample``, in process and behind servers."""

import json

from polar_rm.records import read_trajectories
from polar_rm.sampling.config import SamplingConfig

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant"


def write_prompts(folder, count=5):
    rows = [{"prompt_id": f"p{i}", "prompt": "fox " * (i + 1)} for i in range(count)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "prompts.jsonl"


def config(folder, language_model, **changes):
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        write_prompts(folder)
    decoding = {"max_new_tokens": 6}
    policies = [
        {"name": "chat", "kind": "chat", "system": "Be brief."},
        {"name": "base", "kind": "base", "template": "Q: {prompt}\nA:"},
    ]
    policies = [policy | {"family": "t", "model": str(language_model), "decoding": decoding} for policy in policies]
    values = {"output": folder / "out", "prompts": str(prompts), "source": "test", "policies": policies, "precision": "fp32"}
    return SamplingConfig.model_validate(values | changes)


def served(folder, *urls, prompts=5, changes=None, **top):
    """A config of chat policies ``a``, ``b`` ... behind the servers at ``urls``."""
    policies = [
        {"name": name, "family": f"f{name}", "kind": "chat", "backend": "openai", "model": "m", "base_url": url, "retries": 1}
        | {"decoding": {"max_new_tokens": 6}, "concurrency": 2}
        | (changes or {})
        for name, url in zip("abcdef", urls, strict=False)
    ]
    values = {"output": folder / "out", "prompts": str(write_prompts(folder, prompts)), "source": "test", "policies": policies}
    return SamplingConfig.model_validate(values | top)


def rows(path):
    return {(row.policy, row.prompt_id, row.sample_id): row.text for row in read_trajectories(path)}
