"""OpenRLHF's ``/get_reward``: prompts in the policy's chat template, queries that append the answers, references as labels."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from polar_rm.encoding.texts import content_of
from polar_rm.errors import PolarError
from polar_rm.protocols.base import ForeignRequest, Protocol, Texts, explain, field_of, read_rows
from polar_rm.protocols.polar import ItemBody
from polar_rm.records import ScoreItem, Text, flatten, from_cell, one_reference
from polar_rm.rewards.outcomes import Failure, Reward

# End-of-turn and end-of-text tokens that chat templates put after an answer.
_END_TOKEN = re.compile(r"(?:<\|[^<>|\s]{1,40}\|>|</s>|<eos>|<end_of_turn>|<\uff5cend\u2581of\u2581sentence\uff5c>)\Z")
_MAX_END_TOKEN_CHARACTERS = 44

_MIN_SHARED_CHARACTERS = 40  # enough to identify a position in a prompt
# The templated prompt that parity sends.
_TEMPLATED_PROMPT = "<|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n"


def openrlhf_item(query: str, prompt: str, label: Any) -> ScoreItem:
    """The item of one row of OpenRLHF, which sends ``prompt`` in the policy's template and ``query``, the prompt with the answer
    and its end tokens.

    label: the reference (text or messages), or ``{"reference": ..., "prompt": ...}`` with the prompt before the policy's
    template, which is what the reward model was trained on. Scoring without a reference must be explicit: an object with an
    empty reference.

    Raises:
        PolarError: the answer can't be separated from the prompt, or the label is no reference.
    """
    fields = label if isinstance(label, dict) else {"reference": label}
    # Labels come from tables, where messages may be JSON text.
    fields = {name: from_cell(value) if isinstance(value, str) else value for name, value in fields.items()}
    answer = strip_end_tokens(answer_after(query, prompt))
    try:
        body = ItemBody(prompt=fields.get("prompt", prompt), reference=fields.get("reference"), outputs=[answer])
    except ValidationError as error:
        raise PolarError(f"label: {explain(error.errors(include_url=False))}") from None
    item = body.items()[0]
    if _is_blank(one_reference(item)) and not (isinstance(label, dict) and item.reference == ""):
        # OpenRLHF sends "" if no column of labels is named.
        raise PolarError("the label is empty: name the column of references with --data.label_key")
    return item


def _is_blank(text: Text) -> bool:
    return not any(content.strip() for content in ([text] if isinstance(text, str) else map(content_of, text)))


def answer_after(query: str, prompt: str) -> str:
    """The part of the query after the prompt.

    Raises:
        PolarError: the query contains neither the prompt nor a long enough suffix of it.
    """
    if query.startswith(prompt):
        return query[len(prompt) :]
    # In the query, a prompt that is too long lacks its beginning.
    start = prompt.find(query[:_MIN_SHARED_CHARACTERS]) if query else -1
    if start >= 0 and (shared := overlap(query, prompt[start:])) >= min(_MIN_SHARED_CHARACTERS, len(query)):
        return query[shared:]
    # Encoding and decoding may change a text; the end of the template still marks where the answer begins.
    tail = prompt[-_MIN_SHARED_CHARACTERS:]
    starts = re.finditer(f"(?={re.escape(tail)})", query) if tail.strip() else ()
    ends = [match.start() + len(tail) for match in starts if match.start() >= len(prompt) - 200]
    if not ends:
        raise PolarError("the query does not begin with its prompt")
    # Turns of a prompt may be equal, and an answer may repeat one: the end of the prompt is near where it was.
    return query[min(ends, key=lambda end: abs(end - len(prompt))) :]


def overlap(first: str, second: str) -> int:
    """Length of the longest prefix of ``first`` that is a suffix of ``second``, in linear time (Knuth, Morris and Pratt)."""
    first = first[: len(second)]
    text = first + second[-len(first) :]
    borders = array("i", [0])  # of every prefix of the text: the length of its longest prefix that is also its suffix
    border = 0
    for character in text[1:]:
        while border and character != text[border]:
            border = borders[border - 1]
        border += character == text[border]
        borders.append(border)
    while border > len(first):
        border = borders[border - 1]
    return border


def strip_end_tokens(text: str) -> str:
    """The text without end tokens and the white space around them; without an end token the text is unchanged.

    It reads every character once. A single regular expression would take quadratic time on long runs of spaces.
    """
    kept = len(text)
    while True:
        end = kept
        while end and text[end - 1].isspace():
            end -= 1
        token = _END_TOKEN.search(text, max(0, end - _MAX_END_TOKEN_CHARACTERS), end)
        if token is None:
            return text if kept == len(text) else text[:end]
        kept = token.start()


class GetReward(ForeignRequest):
    """OpenRLHF's body of ``/get_reward``; the three lists have the same length. See :func:`openrlhf_item` for labels."""

    query: Texts
    prompts: Texts
    labels: list[Any]


class ExtraLogs(BaseModel):
    """Values for OpenRLHF's logs."""

    n_tokens: list[int]
    truncated: list[Literal[0, 1]]


class RewardsReply(BaseModel):
    """rewards: raw. scores: the rewards mapped to 0..1. extra_logs: values for OpenRLHF's logs."""

    rewards: list[float]
    scores: list[float]
    extra_logs: ExtraLogs


def openrlhf_reply(results: Sequence[Reward], scores: Sequence[float]) -> dict[str, Any]:
    """A list for each key, as in the replies of OpenRLHF's own server. scores: 0 to 1, for its dynamic filtering."""
    logs = {"n_tokens": [result.n_tokens for result in results], "truncated": [int(bool(result.cut)) for result in results]}
    return {"rewards": [result.reward for result in results], "scores": list(scores), "extra_logs": logs}


def _build_request(model: str | None, items: Sequence[ScoreItem]) -> dict[str, Any] | None:
    """None for items that the protocol can't carry: answers are texts after a templated prompt, never continuations."""
    if any(item.wrapper != "sft" or not (isinstance(item.output, str) or len(item.output) == 1) for item in items):
        return None
    return {
        "query": [_TEMPLATED_PROMPT + flatten(item.output) for item in items],
        "prompts": [_TEMPLATED_PROMPT] * len(items),
        "labels": [{"reference": item.reference, "prompt": item.prompt} for item in items],
    }


def _read_reply(reply: Any, count: int) -> list[float | Failure]:
    rewards = field_of(reply, "rewards")
    rows = [{"reward": reward} for reward in rewards] if isinstance(rewards, list) else rewards
    return read_rows(rows, count, lambda row: row["reward"])


GET_REWARD = Protocol("OpenRLHF /get_reward", "/get_reward", "OpenRLHF", GetReward, RewardsReply, _build_request, _read_reply)
