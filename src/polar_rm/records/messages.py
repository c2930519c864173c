"""Checks of chat messages, and of answers that repeat their prompt."""

from __future__ import annotations

from typing import Any

from polar_rm.records.types import Message, Text, flatten
from polar_rm.records.values import InvalidRecord, check_unicode, kind_of

_TEXT_PARTS = ("text", "input_text", "output_text")  # OpenAI's type names in its two APIs
_MESSAGE = "a message with role and content"


def plain_messages(name: str, messages: list[Any]) -> list[Message]:
    """The messages with their contents as strings; the same list where all contents are strings already.

    Text parts are joined without a separator. A null or missing content beside ``tool_calls`` becomes ``""``.

    Raises:
        InvalidRecord: the list is empty, or a message, key or part, which the error names, is invalid.
    """
    if not messages:
        raise InvalidRecord(name, "text or a list of messages, not an empty list")
    plain: list[Message] | None = None
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRecord(f"{name}[{i}]", f"{_MESSAGE}, not {kind_of(message)}")
        if not isinstance(message.get("role"), str):
            fault = f"not {kind_of(message['role'])}" if "role" in message else "but it is missing"
            raise InvalidRecord(f"{name}[{i}].role", f"a string, {fault}")
        content = message.get("content")
        if not isinstance(content, str):
            plain = list(messages) if plain is None else plain
            plain[i] = {**message, "content": _content(f"{name}[{i}].content", message)}
        elif len(message) == 2 and content.isascii():
            continue
        check_unicode(f"{name}[{i}]", message)
    return messages if plain is None else plain


def _content(name: str, message: Message) -> str:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, list) and content:
        return "".join(_part(f"{name}[{i}]", part) for i, part in enumerate(content))
    if "content" not in message:
        raise InvalidRecord(name, "a string, but it is missing")
    raise InvalidRecord(name, f"a string or a list of text parts, not {'an empty list' if content == [] else kind_of(content)}")


def _part(name: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in _TEXT_PARTS or kind is None:
        fault = kind_of(part) if kind is None else f"one whose text is {kind_of(part.get('text'))}"
        raise InvalidRecord(name, f"a part {{type: text, text: ...}}, not {fault}")
    raise InvalidRecord(name, f"a text part, not one of type {kind!r}: only text is scored")


def without_prompt(name: str, text: Text, prompt: Text, strip: bool) -> tuple[Text, str | None]:
    """An answer (reference, candidate, output) without the prompt's messages at its beginning, and a note about it or None.

    Public preference data often gives whole conversations as ``chosen`` and ``rejected``. Encoded unchanged, every candidate
    would contain the prompt a second time. A list of messages repeats the prompt where it begins with the prompt's messages, or
    with messages, the last of them not the assistant's, that together hold the prompt's text; system messages on either side
    are ignored. A string that begins with the prompt's text may be intended, so it only gets a note.

    strip: return the messages after the prompt's instead of raising.

    Raises:
        InvalidRecord: a list repeats the prompt and ``strip`` is not set, or nothing follows the prompt.
    """
    field = name.partition("[")[0]
    if isinstance(text, list) and (end := _end_of_prompt(text, prompt)):
        if not strip:
            raise InvalidRecord(
                name,
                "the answer alone, but it begins with the prompt; remove those messages, or let strip_prompt drop them where "
                "files are read (--strip-prompt, data.strip_prompt=true)",
            )
        if end == len(text):
            raise InvalidRecord(name, "an answer, but nothing follows the prompt's messages")
        return text[end:], f"the prompt's messages at the beginning of {field!r} were dropped (strip_prompt)"
    start, answer = flatten(prompt), flatten(text)
    # A short prompt may be the beginning of a longer word: "The" and "Therefore".
    if answer.startswith(start) and start.strip() and (len(start) >= 16 or not answer[len(start) : len(start) + 1].isalnum()):
        return text, f"{field!r} begins with the whole text of the prompt, which is then scored as part of the answer"
    return text, None


def _end_of_prompt(text: list[Message], prompt: Text) -> int:
    """The number of messages at the beginning of ``text`` that repeat the prompt; 0 where they don't."""
    prompt_text = flatten(prompt).strip()
    if not prompt_text:
        return 0
    if isinstance(prompt, list) and (end := _matching(text, prompt)):
        return end
    joined = ""
    for i, message in enumerate(text):
        if message["role"] == "system" and message["content"].strip() not in prompt_text:
            continue
        joined = f"{joined}\n{message['content'].strip()}" if joined else message["content"].strip()
        if len(joined) >= len(prompt_text):
            return i + 1 if joined == prompt_text and message["role"] != "assistant" else 0
    return 0


def _matching(text: list[Message], prompt: list[Message]) -> int:
    """The number of messages of ``text`` up to the prompt's last one; 0 where they differ.

    System messages are ignored unless the prompt has no others.
    """
    without_system = [message for message in prompt if message["role"] != "system"]
    expected = without_system or prompt
    n_matched = 0
    for i, message in enumerate(text):
        if without_system and message["role"] == "system":
            continue
        other = expected[n_matched]
        if message["role"] != other["role"] or message["content"].strip() != other["content"].strip():
            return 0
        n_matched += 1
        if n_matched == len(expected):
            return i + 1
    return 0
