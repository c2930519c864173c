"""What all adapters share: a framework's texts to items, where the server is, rewards transformed by group.

Needs neither torch nor transformers, so that a trainer's environment need not agree with the reward model's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from polar_rm.common.http import key_from_environment, server_url
from polar_rm.encoding.texts import without_thinking
from polar_rm.errors import PolarError
from polar_rm.records import InvalidRecord, ScoreItem, Wrapper, check, flatten, from_cell, group_items
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.transforms import transform


def score_item(
    prompt: Any,
    completion: Any,
    reference: Any,
    *,
    wrapper: Wrapper = "sft",
    strip_thinking: bool = False,
    without_reference: bool = False,
) -> ScoreItem:
    """The item of one completion; each text is a string or a list (or array) of messages.

    strip_thinking: of the completion and of the reference; a reference from a thinking model would else be compared with what the
    completion no longer holds. without_reference: an empty reference is meant.

    Raises:
        PolarError: one of the three is missing or no text, or the reference is empty or only thinking. Trainers hand over ""
            where a data set has no such column, so that scoring without a reference would go unnoticed.
    """
    # Prompts and references come out of tables, where messages may be JSON text; what a policy wrote is never read so.
    asked, wanted = (from_cell(text) if isinstance(text, str) else _plain(text) for text in (prompt, reference))
    try:
        item = check(ScoreItem(asked, wanted, _plain(completion), wrapper))
    except InvalidRecord as error:
        field = re.sub(r"^output", "completion", error.field)
        raise PolarError(f"field {field!r}: expected {error.expected}") from None
    if not without_reference and not flatten(item.reference).strip():
        raise PolarError("field 'reference': expected the text that completions are compared with, but it is empty")
    if not strip_thinking:
        return item
    output, given = (_last_without_thinking(text) for text in (item.output, item.reference))
    if flatten(item.reference).strip() and not flatten(given).strip():
        raise PolarError("field 'reference': expected an answer to compare completions with, but it holds only thinking")
    return ScoreItem(item.prompt, given, output, wrapper)


def client_options(environment: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """Arguments of a reward client, for trainers that load a bare file: POLAR_URL, POLAR_MODEL and POLAR_API_KEY.

    Raises:
        PolarError: POLAR_URL is not set, or POLAR_API_KEY holds no key.
    """
    url = environment.get("POLAR_URL")
    if not url:
        raise PolarError("the environment variable POLAR_URL is not set: the reward server's address, http://HOST:PORT")
    keyed = "POLAR_API_KEY" in environment
    key = key_from_environment("POLAR_API_KEY", "the reward server's key", environment) if keyed else None
    return {"url": server_url(url), "model": environment.get("POLAR_MODEL") or None, "api_key": key}


def transformed(
    name: str, items: Sequence[ScoreItem], rewards: Sequence[float], calibration: Calibration | None = None
) -> list[float]:
    """The items' rewards after a transform of :mod:`polar_rm.transforms`; items of one prompt and reference are a group.

    Raises:
        PolarError: an unknown name, or ``percentile`` without a calibration card.
    """
    groups = group_items(items)
    values = transform(name, [[rewards[index] for index in group] for group in groups], calibration)
    placed = {index: value for group, part in zip(groups, values, strict=True) for index, value in zip(group, part, strict=True)}
    return [placed[index] for index in range(len(items))]


def _plain(value: Any) -> Any:
    """Parquet readers give arrays where rows had lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _last_without_thinking(text: Any) -> Any:
    """Of messages, those of the assistant can hold thinking."""
    if isinstance(text, str):
        return without_thinking(text)
    return [
        {**message, "content": without_thinking(message["content"])} if message["role"] == "assistant" else message
        for message in text
    ]
