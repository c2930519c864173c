"""The record types. Both training stages share :class:`Comparison`: the stages differ only in their data (paper, section 3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from polar_rm.errors import PolarError

Message = dict[str, Any]
"""A chat message: ``role`` and ``content`` are strings; ``tool_calls`` and further keys are kept.

Readers also accept a content that is a list of text parts (joined without a separator) or, beside ``tool_calls``, null (the empty
string).
"""

Text = str | list[Message]
"""A string, or the messages of a conversation."""

Reference = Text | tuple[Text, ...]
"""A reference, or several of one prompt: two or more, none of them blank (column ``references``)."""

PROTOCOL_FIELD = "reference_protocol"
"""Metadata of a record that says where its reference came from: gold, own, frontier or sibling (``polar references``)."""

Wrapper = Literal["sft", "pretrain"]
"""``sft``: the response answers the prompt. ``pretrain``: it continues the prompt's text."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prompt, a reference trajectory and K >= 2 different candidates with ranks, 0 the best; equal ranks are not compared.

    A pre-training example has a second sample of the reference's policy at rank 0 and other policies' samples at rank 1; a
    fine-tuning example has chosen 0 and rejected 1; a human ranking of n has 0 to n - 1.
    reference: None means that none was given, ``""`` is an empty one.
    """

    prompt: Text
    reference: Reference | None
    candidates: tuple[Text, ...]
    ranks: tuple[int, ...]
    wrapper: Wrapper = "sft"
    metadata: dict[str, Any] = field(default_factory=dict)

    def pairs(self) -> list[tuple[int, int]]:
        """All ordered pairs (better, worse) of candidate indices with ``ranks[better] < ranks[worse]``."""
        ranks = list(enumerate(self.ranks))
        return [(better, worse) for better, rank in ranks for worse, other in ranks if rank < other]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One sample of one policy, and how it was sampled. None means unknown."""

    source: str
    prompt_id: str
    prompt: Text
    policy: str
    sample_id: int
    text: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    finish_reason: str | None = None
    n_tokens: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """One candidate (``output``) to score against its reference or references; an empty reference scores without one."""

    prompt: Text
    reference: Reference
    output: Text
    wrapper: Wrapper = "sft"
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReferencedPrompt:
    """A prompt with its reference, as reinforcement fine-tuning takes them."""

    prompt: Text
    reference: Text
    wrapper: Wrapper = "sft"
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Samples:
    """One or more samples for a prompt, with their gold values.

    reference: as in :class:`Comparison`. golds: what a reward should lead to, such as a checker's verdict; one value for each
    output. copies: how many equal samples a single output stands for (column ``dup_count``). policy: who sampled them; None means
    unknown.
    """

    prompt: Text
    reference: Reference | None
    outputs: tuple[Text, ...]
    golds: tuple[float, ...]
    copies: int = 1
    policy: str | None = None
    wrapper: Wrapper = "sft"
    metadata: dict[str, Any] = field(default_factory=dict)


Record = Comparison | Trajectory | ScoreItem | ReferencedPrompt


def group_items(items: Sequence[ScoreItem]) -> list[list[int]]:
    """Indices of items with one prompt, reference and wrapper, in order of appearance: they share a prefix."""
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        # Unchecked items may hold any values.
        try:
            key = json.dumps([item.prompt, item.reference, item.wrapper], default=str)
        except (TypeError, ValueError, RecursionError):  # keys that are not strings, values that contain themselves
            key = f"item {index}"
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def as_reference(texts: Sequence[Text]) -> Reference:
    """One or more texts as a record's reference."""
    return tuple(texts) if len(texts) > 1 else texts[0]


def references_of(record: Comparison | ScoreItem | ReferencedPrompt) -> tuple[Text, ...]:
    """All references of a record; a missing one is the empty string."""
    reference = record.reference
    return reference if isinstance(reference, tuple) else ("" if reference is None else reference,)


def items_of(comparison: Comparison) -> list[ScoreItem]:
    """All candidates as items; a missing reference is the empty string."""
    reference = comparison.reference or ""
    return [ScoreItem(comparison.prompt, reference, candidate, comparison.wrapper) for candidate in comparison.candidates]


def one_reference(record: Comparison | ScoreItem | ReferencedPrompt) -> Text:
    """The reference of a record, for code that takes one; a missing one is the empty string.

    Raises:
        PolarError: the record has several.
    """
    references = references_of(record)
    if len(references) != 1:
        raise PolarError(f"one reference is needed, not {len(references)}; several must not be blank")
    return references[0]


def flatten(text: Text) -> str:
    """The text as one string: a string unchanged, messages as their contents joined by newlines (the official template)."""
    return text if isinstance(text, str) else "\n".join(_content(message["content"]) for message in text)


def _content(content: Any) -> str:
    """A content as a string. Records hold strings; unchecked messages may hold a list of parts, or null beside tool calls."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""
