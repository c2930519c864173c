"""OpenRLHF's ``/get_reward``: prompts in a policy's template, answers behind them, references as labels."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from polar_rm.encoding.texts import content_of
from polar_rm.errors import PolarError
from polar_rm.protocols.base import Foreign, Protocol, explain, part_of, read_rows
from polar_rm.protocols.polar import ItemBody
from polar_rm.records import ScoreItem, Text, flatten, from_cell
from polar_rm.rewards.outcomes import Failure, Reward

# Ends of turn and of text that policies' templates put behind an answer.
_END_TOKEN = re.compile(r"(?:<\|[^<>|\s]{1,40}\|>|</s>|<eos>|<end_of_turn>|<\uff5cend\u2581of\u2581sentence\uff5c>)\Z")
_LONGEST_END = 44

_ENOUGH = 40  # characters that mark a place in a prompt
# What parity sends for the template of a policy.
_TEMPLATED = "<|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n"


def openrlhf_item(query: str, prompt: str, label: Any) -> ScoreItem:
    """OpenRLHF sends the templated prompt and ``query``, the prompt with the answer and its end tokens.

    label: the reference (text or messages), or ``{"reference": ..., "prompt": ...}`` with the prompt as it was before the
    policy's template, which is what the reward model was trained on. Scoring without a reference has to be said: an object whose
    reference is empty.

    Raises:
        PolarError: no answer can be told from the prompt, or the label is no reference.
    """
    fields = label if isinstance(label, dict) else {"reference": label}
    # Labels come out of tables, where messages may be JSON text.
    fields = {name: from_cell(value) if isinstance(value, str) else value for name, value in fields.items()}
    answer = without_end_tokens(behind(query, prompt))
    try:
        body = ItemBody(prompt=fields.get("prompt", prompt), reference=fields.get("reference"), outputs=[answer])
    except ValidationError as error:
        raise PolarError(f"label: {explain(error.errors(include_url=False))}") from None
    item = body.items()[0]
    if _is_blank(item.reference) and not (isinstance(label, dict) and item.reference == ""):
        # "" is what OpenRLHF sends where no column of labels is named.
        raise PolarError("the label is empty: name the column of references with --data.label_key")
    return item


def _is_blank(text: Text) -> bool:
    return not any(content.strip() for content in ([text] if isinstance(text, str) else map(content_of, text)))


def behind(query: str, prompt: str) -> str:
    """The answer: what stands behind the prompt.

    Raises:
        PolarError: the query does not hold the prompt, nor a good part of its end.
    """
    if query.startswith(prompt):
        return query[len(prompt) :]
    # A prompt that is too long has lost its beginning in the query.
    place = prompt.find(query[:_ENOUGH]) if query else -1
    if place >= 0 and (shared := overlap(query, prompt[place:])) >= min(_ENOUGH, len(query)):
        return query[shared:]
    # Decoding encoded text need not give the same bytes back; the template's end still marks the place.
    tail = prompt[-_ENOUGH:]
    place = query.find(tail, max(0, len(prompt) - 200)) if tail.strip() else -1
    if place < 0:
        raise PolarError("the query does not begin with its prompt")
    return query[place + len(tail) :]


def overlap(first: str, second: str) -> int:
    """Length of the longest beginning of ``first`` that ``second`` ends with, in linear time (Knuth, Morris and Pratt)."""
    first = first[: len(second)]
    text = first + second[-len(first) :]
    borders = array("i", [0])  # of every beginning of the text: the longest that it also ends with
    border = 0
    for character in text[1:]:
        while border and character != text[border]:
            border = borders[border - 1]
        border += character == text[border]
        borders.append(border)
    while border > len(first):
        border = borders[border - 1]
    return border


def without_end_tokens(text: str) -> str:
    """Tokens at the end with the blanks around them; without one the text stays as it is. Looks at every character once: one
    expression for all of it would take quadratic time on a long run of blanks."""
    kept = len(text)
    while True:
        end = kept
        while end and text[end - 1].isspace():
            end -= 1
        token = _END_TOKEN.search(text, max(0, end - _LONGEST_END), end)
        if token is None:
            return text if kept == len(text) else text[:end]
        kept = token.start()


class GetReward(Foreign):
    """OpenRLHF's body of ``/get_reward``; the three lists have one length. See :func:`openrlhf_item` for labels."""

    query: list[str]
    prompts: list[str]
    labels: list[Any]


class ExtraLogs(BaseModel):
    """What OpenRLHF's logs should hold."""

    n_tokens: list[int]
    truncated: list[Literal[0, 1]]


class RewardsReply(BaseModel):
    """OpenRLHF's lists: raw rewards, the same between 0 and 1 as `scores`, and what its logs should hold."""

    rewards: list[float]
    scores: list[float]
    extra_logs: ExtraLogs


def openrlhf_reply(results: Sequence[Reward], scores: Sequence[float]) -> dict[str, Any]:
    """Lists for all keys, as OpenRLHF's own server answers. scores: 0 to 1, for its dynamic filtering."""
    logs = {"n_tokens": [result.n_tokens for result in results], "truncated": [int(bool(result.cut)) for result in results]}
    return {"rewards": [result.reward for result in results], "scores": list(scores), "extra_logs": logs}


def _ask(model: str | None, items: Sequence[ScoreItem]) -> dict[str, Any] | None:
    """Answers are text behind a templated prompt there, and never continue it."""
    if any(item.wrapper != "sft" or not (isinstance(item.output, str) or len(item.output) == 1) for item in items):
        return None
    return {
        "query": [_TEMPLATED + flatten(item.output) for item in items],
        "prompts": [_TEMPLATED] * len(items),
        "labels": [{"reference": item.reference, "prompt": item.prompt} for item in items],
    }


def _read(reply: Any, count: int) -> list[float | Failure]:
    rewards = part_of(reply, "rewards")
    rows = [{"reward": reward} for reward in rewards] if isinstance(rewards, list) else rewards
    return read_rows(rows, count, lambda row: row["reward"])


GET_REWARD = Protocol("OpenRLHF /get_reward", "/get_reward", "OpenRLHF", GetReward, RewardsReply, _ask, _read)
