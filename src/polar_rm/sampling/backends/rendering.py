"""Renders prompts to token ids, for backends that tokenise in this process."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from polar_rm.errors import PolarError
from polar_rm.records import Text
from polar_rm.sampling.base import NoSample, Policy, Request


def check_chat_template(policy: Policy, tokenizer: Any) -> None:
    """Raises PolarError if the tokenizer of a chat policy has no chat template, or its template is damaged or refuses the system
    prompt."""
    if policy.kind != "chat":
        return
    if not tokenizer.chat_template:
        raise PolarError(f"policy {policy.name!r}: {policy.model} has no chat template; kind: base needs none")
    try:
        _rendered(policy, tokenizer, "Hello")
    except TemplateSyntaxError as error:
        raise PolarError(f"policy {policy.name!r}: its chat template is damaged: {_message(error)}") from error
    except Exception as error:  # a template is a program and may raise any exception
        if policy.system is not None or not isinstance(error, TemplateError):
            what = "its system prompt" if policy.system is not None else "any prompt"
            raise PolarError(f"policy {policy.name!r}: the chat template refuses {what}: {_message(error)}") from error


def encode(policy: Policy, tokenizer: Any, request: Request, context: int | None = None) -> list[int] | NoSample:
    """The token ids that the policy continues, or the failure. context: maximum number of tokens of the model; None: no limit."""
    if policy.kind == "base":
        ids: list[int] = tokenizer(policy.text(request.prompt))["input_ids"]
    else:
        try:
            text = _rendered(policy, tokenizer, request.prompt)
        except Exception as error:  # a template is a program and may raise any exception
            return NoSample("refused", f"the chat template refuses the prompt: {_message(error)}")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    new = policy.decoding.max_new_tokens
    if context is not None and len(ids) + new > context:
        return NoSample("too_long", f"{len(ids)} prompt tokens and {new} new tokens exceed the context of {context}")
    return ids


def _rendered(policy: Policy, tokenizer: Any, prompt: Text) -> str:
    text: str = tokenizer.apply_chat_template(policy.messages(prompt), tokenize=False, add_generation_prompt=True)
    return text


def _message(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
