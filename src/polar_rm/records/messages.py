"""Lists of chat messages: what they may hold, and answers that repeat their prompt."""

from __future__ import annotations

from typing import Any

from polar_rm.records.types import Message, Text, flatten
from polar_rm.records.values import InvalidRecord, check_unicode, kind_of

_TEXT_PARTS = ("text", "input_text", "output_text")  # OpenAI's names in its two APIs
_MESSAGE = "a message with role and content"


def plain_messages(name: str, messages: list[Any]) -> list[Message]:
    """The messages with contents that are strings; the same list where they all are.

    A list of text parts becomes the parts joined as they are; null, or nothing, beside ``tool_calls`` becomes ``""``.

    Raises:
        InvalidRecord: names the message, the key or the part. There must be a message.
    """
    if not messages:
        raise InvalidRecord(name, "text or a list of messages, not an empty list")
    plain: list[Message] | None = None
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRecord(f"{name}[{i}]", f"{_MESSAGE}, not {kind_of(message)}")
        if not isinstance(message.get("role"), str):
            found = f"not {kind_of(message['role'])}" if "role" in message else "but it is missing"
            raise InvalidRecord(f"{name}[{i}].role", f"a string, {found}")
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
        found = kind_of(part) if kind is None else f"one whose text is {kind_of(part.get('text'))}"
        raise InvalidRecord(name, f"a part {{type: text, text: ...}}, not {found}")
    raise InvalidRecord(name, f"a text part, not one of type {kind!r}: only text is scored")


def without_prompt(name: str, text: Text, prompt: Text, strip: bool) -> tuple[Text, str | None]:
    """An answer (reference, candidate, output) without the prompt's messages at its beginning, and what there is to note.

    Public preference data often gives whole conversations as ``chosen`` and ``rejected``; encoded as they are, the prompt would
    stand in each candidate a second time. An answer repeats the prompt where it begins with the prompt's messages, or with
    messages up to one of the user that hold the prompt's text; system messages on either side don't count. A string that begins
    with the prompt's text may be meant, and is noted.

    strip: take the messages behind the prompt's, instead of refusing.

    Raises:
        InvalidRecord: a list repeats the prompt and ``strip`` is not set, or nothing comes behind it.
    """
    field = name.partition("[")[0]
    if isinstance(text, list) and (end := _end_of_prompt(text, prompt)):
        if not strip:
            raise InvalidRecord(
                name,
                "the answer alone, but it begins with the prompt; take those messages out, or let strip_prompt drop them where "
                "files are read (--strip-prompt, data.strip_prompt=true)",
            )
        if end == len(text):
            raise InvalidRecord(name, "an answer, but nothing comes behind the prompt's messages")
        return text[end:], f"the prompt's messages at the beginning of {field!r} were dropped (strip_prompt)"
    start, answer = flatten(prompt), flatten(text)
    # A short prompt may begin a longer word: "The" and "Therefore".
    if answer.startswith(start) and start.strip() and (len(start) >= 16 or not answer[len(start) : len(start) + 1].isalnum()):
        return text, f"{field!r} begins with the whole text of the prompt, which is then scored as part of the answer"
    return text, None


def _end_of_prompt(text: list[Message], prompt: Text) -> int:
    """How many messages of ``text`` repeat the prompt; 0 where it does not begin with it."""
    wanted = flatten(prompt).strip()
    if not wanted:
        return 0
    if isinstance(prompt, list) and (end := _matching(text, prompt)):
        return end
    held = ""
    for i, message in enumerate(text):
        if message["role"] == "system" and message["content"].strip() not in wanted:
            continue
        held = f"{held}\n{message['content'].strip()}" if held else message["content"].strip()
        if len(held) >= len(wanted):
            return i + 1 if held == wanted and message["role"] != "assistant" else 0
    return 0


def _matching(text: list[Message], prompt: list[Message]) -> int:
    """Messages of ``text`` up to the last of the prompt's, without regard to system messages (unless there are no others)."""
    parts = [message for message in prompt if message["role"] != "system"]
    found = 0
    for i, message in enumerate(text):
        if parts and message["role"] == "system":
            continue
        expected = (parts or prompt)[found]
        if message["role"] != expected["role"] or message["content"].strip() != expected["content"].strip():
            return 0
        found += 1
        if found == len(parts or prompt):
            return i + 1
    return 0
