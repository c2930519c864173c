"""Prompts to token ids, for backends that hold the tokenizer themselves."""

from __future__ import annotations

from typing import Any

from polar_rm.errors import PolarError
from polar_rm.sampling.base import Failure, Policy, Request


def check_chat_template(policy: Policy, tokenizer: Any) -> None:
    """Raises PolarError where a chat policy's tokenizer can't render a conversation."""
    if policy.kind == "chat" and not tokenizer.chat_template:
        raise PolarError(f"policy {policy.name!r}: {policy.model} has no chat template; a base policy needs none")


def encode(policy: Policy, tokenizer: Any, request: Request) -> list[int]:
    """The ids that the policy continues."""
    if policy.kind == "base":
        ids: list[int] = tokenizer(policy.text(request.prompt))["input_ids"]
        return ids
    text = tokenizer.apply_chat_template(policy.messages(request.prompt), tokenize=False, add_generation_prompt=True)
    rendered: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return rendered


def too_long(policy: Policy, ids: list[int], context: int) -> Failure | None:
    """The failure of a request that does not fit the model's context of so many tokens."""
    new = policy.decoding.max_new_tokens
    if len(ids) + new <= context:
        return None
    return Failure("too_long", f"{len(ids)} tokens and {new} new ones exceed the context of {context}")
