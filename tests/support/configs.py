"""The keys that each verb's config can't do without, as overrides."""

from __future__ import annotations

REQUIRED = {
    "sample": ["output=o", "prompts=p.jsonl", "source=s", "policies=[{name: a, family: f, kind: chat, model: m}]"],
    "corpus": ["output=o", "inputs=[i]"],
    "encode": ["output=o", "inputs=[i]", "model.init=m"],
    "pretrain": ["output=o", "model.init=m", "data.train=[a]"],
    "finetune": ["output=o", "model.resume_from=m", "data.train=[a]"],
    "serve": ["model=m"],
    "audit": [],
    "references": ["output=o", "inputs=[a]", "reference={kind: sibling}"],
    "select": ["output=o", "inputs=[a]"],
    "scaling": [
        "output=o",
        "corpus=c",
        "sizes=[1m]",
        "budgets.tokens=[1e6]",
        "learning_rates.base=1e-3",
        "training.model.tokenizer=t",
    ],
    "rft": ["output=o", "policy.model=m", "reward.source=s", "data=[a]"],
}
