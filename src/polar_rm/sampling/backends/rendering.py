"""Prompts to token ids, for backends that hold the tokenizer themselves."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from polar_rm.errors import PolarError
from polar_rm.records import Text
from polar_rm.sampling.base import NoSample, Policy, Request


def check_chat_template(policy: Policy, tokenizer: Any) -> None:
    """Raises PolarError where a chat policy's tokenizer can't render a conversation, or none with its system prompt."""
    if policy.kind != "chat":
        return
    if not tokenizer.chat_template:
        raise PolarError(f"policy {policy.name!r}: {policy.model} has no chat template; a base policy needs none")
    if policy.system is not None:
        try:
            _rendered(policy, tokenizer, "Hello")
        except TemplateError as error:
            raise PolarError(f"policy {policy.name!r}: the chat template refuses its system prompt: {_why(error)}") from error


def encode(policy: Policy, tokenizer: Any, request: Request, context: int | None = None) -> list[int] | NoSample:
    """The ids that the policy continues, or why it can't. context: the most tokens of the model; None where it has no bound."""
    if policy.kind == "base":
        ids: list[int] = tokenizer(policy.text(request.prompt))["input_ids"]
    else:
        try:
            text = _rendered(policy, tokenizer, request.prompt)
        except TemplateError as error:
            return NoSample("refused", f"the chat template refuses the prompt: {_why(error)}")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    new = policy.decoding.max_new_tokens
    if context is not None and len(ids) + new > context:
        return NoSample("too_long", f"{len(ids)} tokens and {new} new ones exceed the context of {context}")
    return ids


def _rendered(policy: Policy, tokenizer: Any, prompt: Text) -> str:
    text: str = tokenizer.apply_chat_template(policy.messages(prompt), tokenize=False, add_generation_prompt=True)
    return text


def _why(error: TemplateError) -> str:
    return " ".join(str(error).split()) or type(error).__name__
