"""Texts before they are tokenised: rendering of messages, clean-up, and cuts at a token's edge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polar_rm.records import Text, flatten

# Tokenised at once. What comes back holds a hundred bytes a token until its ids are taken.
_BATCH_CHARACTERS = 1 << 22
# What Hugging Face's slow tokenizers do to decoded text (``clean_up_tokenization``). The official client decodes after cutting.
CLEAN_UP = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
]
CLEAN_UP += [(" 've", "'ve"), (" 're", "'re")]


@dataclass(frozen=True, slots=True)
class RenderedTexts:
    """The rendered texts of one comparison, literal special tokens dropped, and what stands between prompt and response."""

    prompt: str
    reference: str
    candidates: list[str]
    glue: str


def chat_prompt(text: Text) -> str:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def chat_response(text: Text) -> str:
    """A single answer is its content (the role stands in the glue); a longer exchange keeps its roles."""
    if isinstance(text, str) or len(text) == 1:
        return flatten(text)
    return chat_prompt(text)


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


def first_tokens(text: str, offsets: Sequence[tuple[int, int]], keep: int) -> str:
    if keep == len(offsets):
        return text
    # A character of several byte tokens is kept whole or not at all; decoding half of it would invent a U+FFFD.
    return text[: min(offsets[keep - 1][1], offsets[keep][0])] if keep else ""


def last_tokens(text: str, offsets: Sequence[tuple[int, int]], keep: int) -> str:
    if keep == len(offsets):
        return text
    first = len(offsets) - keep
    return text[max(offsets[first][0], offsets[first - 1][1]) :] if keep else ""
