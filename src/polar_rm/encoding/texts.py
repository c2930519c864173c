"""Texts before they are tokenised: rendering of messages, thinking, clean-up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from polar_rm.errors import PolarError
from polar_rm.records import Text

# Tokenised at once. What comes back holds a hundred bytes a token until its ids are taken.
_BATCH_CHARACTERS = 1 << 22
# What Hugging Face's slow tokenizers do to decoded text (``clean_up_tokenization``). The official client decodes after cutting.
# SentencePiece writes spaces as the first sign, and its decoder makes one of a literal sign.
CLEAN_UP = [
    ("▁", " "),
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
]

Note = Literal["thinking_stripped", "unfinished_thinking", "empty"]
"""What a reader of a score should know of its texts. thinking_stripped: the reference or the candidate had thinking, which was
left out. unfinished_thinking: a candidate opens ``<think>`` and never closes it, so that its answer never came. empty: a
candidate without any text but blanks."""

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class RenderedTexts:
    """The rendered texts of one comparison, what stands between prompt and response, and notes for each candidate."""

    prompt: str
    reference: str
    candidates: list[str]
    glue: str
    notes: tuple[tuple[str, ...], ...]


class Template:
    """How the messages of a text become one string.

    polar: contents, joined by newlines (the official code drops roles). polar-chat: ``role: content``; a response of one message
    is its content, as its role stands in the glue. Its version 2 adds each tool call as a line ``tool_call: {"arguments":
    ..., "name": ...}`` behind the content, as canonical JSON.
    """

    def __init__(self, name: str, version: int) -> None:
        self._name, self._version = name, version
        self.keeps_roles = name == "polar-chat"

    def prompt(self, text: Text) -> str:
        """The prompt's string.

        Raises:
            PolarError: a message holds what the template can't render: an image, or tool calls.
        """
        if not self.keeps_roles:
            return self._flat(text)
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        return "\n".join(f"{message['role']}: {self._content(message)}" for message in messages)

    def response(self, text: Text) -> str:
        """A response's string. Raises as :meth:`prompt`."""
        if not self.keeps_roles or isinstance(text, str) or len(text) == 1:
            return self._flat(text)
        return self.prompt(text)

    def _flat(self, text: Text) -> str:
        return text if isinstance(text, str) else "\n".join(map(self._content, text))

    def _content(self, message: dict[str, Any]) -> str:
        content = content_of(message)
        calls = message.get("tool_calls")
        if not calls:
            return content
        if not self.keeps_roles or self._version < 2:
            raise PolarError(
                f"a message of role {message.get('role')!r} has tool_calls, which the template {self._name} {self._version} does "
                "not render: train with the template polar-chat (version 2), or write the calls into the content"
            )
        return "\n".join([*([content] if content else []), *map(_tool_call, calls)])


def content_of(message: dict[str, Any]) -> str:
    """A message's text: a string as it is, a list of text parts joined as they are, nothing where it has tool calls alone.

    Raises:
        PolarError: a part is no text, for instance an image.
    """
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message.get("tool_calls"):
        return ""
    if not isinstance(content, list):
        raise PolarError(f"a message of role {message.get('role')!r} has no content: expected a string or a list of text parts")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise PolarError(f"a message of role {message.get('role')!r} has a part of type {kind!r}: only text can be scored")
    return "".join(part["text"] for part in content)


def _tool_call(call: Any) -> str:
    """``function`` holds name and arguments in OpenAI's form, whose arguments are JSON text."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise PolarError("a tool call has no name: expected {'function': {'name': ..., 'arguments': ...}}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # what a model wrote may be no JSON; it stays the string that it is
            arguments = json.loads(arguments)
    value = {"name": function["name"], "arguments": arguments}
    return "tool_call: " + json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def without_thinking(text: str) -> str:
    """The answer alone: what stands in ``<think>...</think>`` is removed. A text without tags stays as it is.

    Chat templates may open the tag in the prompt, so all before a lone ``</think>`` is thinking. An unclosed ``<think>`` means
    that the answer never came: what is left is the text before it. The official client's expression needs both tags, and so
    scores the thinking in these two cases.
    """
    if _OPEN not in text and _CLOSE not in text:
        return text
    kept: list[str] = []
    place = 0
    while (start := text.find(_OPEN, place)) >= 0 and (end := text.find(_CLOSE, start)) >= 0:
        kept.append(text[place:start])
        place = end + len(_CLOSE)
    kept.append(text[place:])
    answer = "".join(kept).rpartition(_CLOSE)[2]
    return answer.partition(_OPEN)[0].strip()


def strip_thinking(response: Text) -> Text:
    """A response without its thinking: a string's, or that of each message of the assistant."""
    if isinstance(response, str):
        return without_thinking(response)
    return [_answer(message) if message.get("role") == "assistant" else message for message in response]


def _answer(message: dict[str, Any]) -> dict[str, Any]:
    content = content_of(message)
    answer = without_thinking(content)
    return message if answer == content else {**message, "content": answer}


def is_unfinished(response: Text) -> bool:
    """Whether a response opens its thinking and never closes it."""
    last = response if isinstance(response, str) else content_of(response[-1]) if response else ""
    return last.rfind(_OPEN) > last.rfind(_CLOSE)


def clean_up(text: str) -> str:
    """The official slow tokenizer's clean-up of spaces before punctuation."""
    for spaced, closed in CLEAN_UP:
        text = text.replace(spaced, closed)
    return text


def batches_of_texts(texts: Sequence[str]) -> Iterator[list[str]]:
    """Consecutive texts; a batch ends with the one that brings it to ``_BATCH_CHARACTERS``."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch
