"""Prepares texts for the tokenizer: rendering of messages, removal of thinking, clean-up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from polar_rm.errors import PolarError
from polar_rm.records import Text

# Characters that are tokenised together. The result takes a hundred bytes a token until its ids are extracted.
_BATCH_CHARACTERS = 1 << 22
# The replacements that Hugging Face's slow tokenizers apply to decoded text (``clean_up_tokenization``). The official client
# decodes after truncation. SentencePiece writes a space as the first character below, and its decoder makes a space of a literal
# one.
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
"""A fact about the texts of a score that its reader should know.

thinking_stripped: the reference or the candidate had thinking, which was removed. unfinished_thinking: the candidate opens
``<think>`` and never closes it, so it has no answer. empty: the candidate has no text, or only blanks.
"""

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class RenderedTexts:
    """The rendered texts of one comparison. glue: the text between prompt and response. notes: the notes of each candidate."""

    prompt: str
    reference: str
    candidates: list[str]
    glue: str
    notes: tuple[tuple[str, ...], ...]


class Template:
    """Renders the messages of a text as one string.

    ``polar`` joins the contents by newlines (the official code drops roles). ``polar-chat`` writes ``role: content``; a response
    of one message is only its content, because its role is in the glue. Version 2 of ``polar-chat`` adds each tool call as a line
    ``tool_call: {"arguments": ..., "name": ...}`` after the content, as canonical JSON.
    """

    def __init__(self, name: str, version: int) -> None:
        self._name, self._version = name, version
        self.keeps_roles = name == "polar-chat"

    def prompt(self, text: Text) -> str:
        """The prompt's string.

        Raises:
            PolarError: a message holds an image, or tool calls that the template can't render.
        """
        if not self.keeps_roles:
            return self._flat(text)
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        return "\n".join(f"{message['role']}: {self._content(message)}" for message in messages)

    def response(self, text: Text) -> str:
        """A response's string. It raises the errors of :meth:`prompt`."""
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
    """A message's text: a string unchanged, text parts joined, and an empty string for a message with only tool calls.

    Raises:
        PolarError: a part is not text, for instance an image.
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
    """The line of a tool call. In OpenAI's form ``function`` holds its name and arguments, and the arguments are JSON text."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise PolarError("a tool call has no name: expected {'function': {'name': ..., 'arguments': ...}}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # a model may write invalid JSON, which stays a string
            arguments = json.loads(arguments)
    value = {"name": function["name"], "arguments": arguments}
    return "tool_call: " + json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def without_thinking(text: str) -> str:
    """The text without ``<think>...</think>``. A text without tags is unchanged.

    Chat templates may open the tag in the prompt, so all text before a lone ``</think>`` is thinking. After an unclosed
    ``<think>`` there is no answer, so only the text before it is kept. The official client's expression needs both tags, so it
    scores the thinking in these two cases.
    """
    if _OPEN not in text and _CLOSE not in text:
        return text
    kept: list[str] = []
    position = 0
    while (start := text.find(_OPEN, position)) >= 0 and (end := text.find(_CLOSE, start)) >= 0:
        kept.append(text[position:start])
        position = end + len(_CLOSE)
    kept.append(text[position:])
    answer = "".join(kept).rpartition(_CLOSE)[2]
    return answer.partition(_OPEN)[0].strip()


def strip_thinking(response: Text) -> Text:
    """A response without thinking. In a list of messages it is removed from those of the assistant."""
    if isinstance(response, str):
        return without_thinking(response)
    return [_answer(message) if message.get("role") == "assistant" else message for message in response]


def _answer(message: dict[str, Any]) -> dict[str, Any]:
    content = content_of(message)
    answer = without_thinking(content)
    return message if answer == content else {**message, "content": answer}


def is_unfinished(response: Text) -> bool:
    """Whether a response opens ``<think>`` and never closes it."""
    last = response if isinstance(response, str) else content_of(response[-1]) if response else ""
    return last.rfind(_OPEN) > last.rfind(_CLOSE)


def clean_up(text: str) -> str:
    """The official slow tokenizer's clean-up of spaces before punctuation."""
    for spaced, closed in CLEAN_UP:
        text = text.replace(spaced, closed)
    return text


def batches_of_texts(texts: Sequence[str]) -> Iterator[list[str]]:
    """Batches of consecutive texts; a batch ends with the text that brings it to ``_BATCH_CHARACTERS``."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch
