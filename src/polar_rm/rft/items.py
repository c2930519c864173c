"""Shared parts of the adapters: items from a framework's texts, the server's address, and transforms of rewards by group.

It needs neither torch nor transformers, so that a trainer's environment may differ from the reward model's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from polar_rm.common.http import key_from_environment, server_url
from polar_rm.encoding.texts import without_thinking
from polar_rm.errors import PolarError
from polar_rm.records import (
    InvalidRecord,
    ScoreItem,
    Wrapper,
    as_reference,
    check,
    flatten,
    from_cell,
    group_items,
    references_of,
)
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.outcomes import Reward
from polar_rm.rewards.transforms import transform_rewards


def score_item(
    prompt: Any,
    completion: Any,
    reference: Any,
    *,
    wrapper: Wrapper = "sft",
    strip_thinking: bool = False,
    without_reference: bool = False,
) -> ScoreItem:
    """The item of one completion; each text is a string or a list (or array) of messages, and the reference also a list of texts:
    several references.

    strip_thinking: remove thinking from completion and reference. Both, because the thinking in a reference would otherwise have
    no counterpart in the completion. without_reference: an empty reference is allowed.

    Raises:
        PolarError: one of the three is missing or no text, or the reference is empty or holds only thinking. Trainers pass ""
            if a data set has no such column, so that scoring without a reference would go unnoticed.
    """
    # Prompts and references come from tables, where messages may be JSON text. A completion is never parsed.
    prompt, reference = (from_cell(text) if isinstance(text, str) else _to_list(text) for text in (prompt, reference))
    if isinstance(reference, list) and reference and not isinstance(reference[0], Mapping):
        reference = as_reference([_to_list(text) for text in reference])
    try:
        item = check(ScoreItem(prompt, reference, _to_list(completion), wrapper))
    except InvalidRecord as error:
        field = re.sub(r"^output", "completion", error.field)
        raise PolarError(f"field {field!r}: expected {error.expected}") from None
    if not without_reference and not any(flatten(text).strip() for text in references_of(item)):
        raise PolarError("field 'reference': expected the text that completions are compared with, but it is empty")
    if not strip_thinking:
        return item
    output, *answers = (_strip_thinking(text) for text in (item.output, *references_of(item)))
    for given, answer in zip(references_of(item), answers, strict=True):
        if flatten(given).strip() and not flatten(answer).strip():
            raise PolarError("field 'reference': expected an answer to compare completions with, but it holds only thinking")
    return ScoreItem(item.prompt, as_reference(answers), output, wrapper)


def client_options(environment: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """Arguments of a reward client, for trainers that load a single file: POLAR_URL, POLAR_MODEL and POLAR_API_KEY.

    Raises:
        PolarError: POLAR_URL is not set, or POLAR_API_KEY holds no key.
    """
    url = environment.get("POLAR_URL")
    if not url:
        raise PolarError("the environment variable POLAR_URL is not set; set it to the reward server's address, http://HOST:PORT")
    has_key = "POLAR_API_KEY" in environment
    key = key_from_environment("POLAR_API_KEY", "the reward server's key", environment) if has_key else None
    return {"url": server_url(url), "model": environment.get("POLAR_MODEL") or None, "api_key": key}


def transformed(
    name: str, items: Sequence[ScoreItem], rewards: Sequence[Reward], calibration: Calibration | None = None
) -> list[float]:
    """The items' rewards after a transform of :mod:`polar_rm.rewards.transforms`. Items of one prompt and reference form a group.

    Raises:
        PolarError: the name is unknown, or the calibration card or the anchors that it needs are missing.
    """
    groups = group_items(items)
    values = transform_rewards(name, [[rewards[index] for index in group] for group in groups], calibration)
    by_index = {
        index: value for group, part in zip(groups, values, strict=True) for index, value in zip(group, part, strict=True)
    }
    return [by_index[index] for index in range(len(items))]


def _to_list(value: Any) -> Any:
    """A list for an array: Parquet readers return arrays for lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _strip_thinking(text: Any) -> Any:
    """The text without thinking; in messages only the assistant's can contain any."""
    if isinstance(text, str):
        return without_thinking(text)
    return [
        {**message, "content": without_thinking(message["content"])} if message["role"] == "assistant" else message
        for message in text
    ]
