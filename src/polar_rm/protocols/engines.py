"""The client's side of each server's protocol: how it is recognised, what is posted, and how scores are read out of replies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from polar_rm.records import ScoreItem, Text
from polar_rm.rewards.outcomes import Cut, Failure, Outcome, Reward

Engine = Literal["polar", "vllm", "sglang", "lmdeploy"]
ENGINES: tuple[Engine, ...] = ("polar", "vllm", "sglang", "lmdeploy")

_OWNERS: dict[str, Engine] = {"polar-rm": "polar", "vllm": "vllm", "sglang": "sglang", "lmdeploy": "lmdeploy"}


class BadReply(Exception):
    """A reply that is not what the protocol says."""


def recognise(models: Any) -> tuple[Engine, dict[str, Any]]:
    """Engine and model card from a reply of ``/v1/models``; each engine signs its cards with ``owned_by``.

    Raises:
        BadReply: it is none of the four.
    """
    try:
        card = models["data"][0]
        return _OWNERS[card["owned_by"]], card
    except (TypeError, KeyError, IndexError):
        raise BadReply("the server's /v1/models is not that of polar-rm, vLLM, SGLang or LMDeploy") from None


def ids_request(engine: Engine, model: str | None, sequences: Sequence[list[int]]) -> tuple[str, dict[str, Any]]:
    """Route and body that ask for raw scores of token ids, which no server can tokenise differently. model: the served name."""
    named = {"model": model} if model else {}
    match engine:
        case "sglang":
            return "/classify", {"input_ids": list(sequences)}
        case "lmdeploy":
            return "/pooling", {**named, "input": list(sequences)}
    # vLLM, and ours where ids are at hand already. A sigmoid is vLLM's default.
    return "/classify", {**named, "input": list(sequences), "use_activation": False}


def pooling_request(model: str | None, sequences: Sequence[list[int]]) -> tuple[str, dict[str, Any]]:
    """For a vLLM that serves the per-token task (as the official client wants it) and has no ``/classify``."""
    return "/pooling", ids_request("vllm", model, sequences)[1]


def ids_scores(reply: Any, count: int) -> list[float | Failure]:
    """Scores out of a reply to :func:`ids_request` or :func:`pooling_request`, by their index where there is one.

    Raises:
        BadReply: another shape or another number of scores.
    """
    try:
        rows = reply["data"] if isinstance(reply, dict) else reply
        scores = {row.get("index", place): _score(row) for place, row in enumerate(rows)}
    except (TypeError, KeyError, IndexError, AttributeError, ValueError, OverflowError) as error:
        raise BadReply(f"scores can't be read from the reply: {type(error).__name__}") from None
    if len(rows) != count or scores.keys() != set(range(count)):
        raise BadReply(f"the reply has rows {list(scores)[:5]}... for {count} items")
    return [_finite(scores[place]) for place in range(count)]


def score_request(items: Sequence[ScoreItem]) -> tuple[str, dict[str, Any]]:
    """Our own protocol; neighbours with one prompt, reference and wrapper are sent as one group."""
    groups: list[dict[str, Any]] = []
    for item in items:
        shared = {"prompt": _sent(item.prompt), "reference": _sent(item.reference), "wrapper": item.wrapper}
        if not groups or any(groups[-1][key] != value for key, value in shared.items()):
            groups.append({**shared, "outputs": []})
        groups[-1]["outputs"].append(_sent(item.output))
    return "/v1/score", {"items": groups}


def score_outcomes(body: dict[str, Any], reply: Any) -> list[Outcome]:
    """Outcomes in the order of the items that ``body`` was made of.

    Raises:
        BadReply: another shape or another number of results.
    """
    outcomes: list[Outcome] = []
    try:
        for group, result in zip(body["items"], reply["results"], strict=True):
            if "error" in result:
                outcomes += [_failure(result["error"])] * len(group["outputs"])
                continue
            if len(result["outputs"]) != len(group["outputs"]):
                raise ValueError
            outcomes += [_outcome(row) for row in result["outputs"]]
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise BadReply(f"results can't be read from the reply: {type(error).__name__}") from None
    return outcomes


def _outcome(row: dict[str, Any]) -> Outcome:
    if "error" in row:
        return _failure(row["error"])
    reward = _finite(_number(row["reward"]))
    return reward if isinstance(reward, Failure) else Reward(reward, int(row["n_tokens"]), Cut(**row["cut"]))


def _failure(error: dict[str, Any]) -> Failure:
    return Failure(error["code"], error["message"])


def _sent(text: Text) -> Any:
    """Further keys of messages are never encoded, and may hold anything."""
    return text if isinstance(text, str) else [{key: message[key] for key in ("role", "content")} for message in text]


def _score(row: dict[str, Any]) -> float:
    """``embedding: [s]`` (SGLang), ``probs: [s]`` (vLLM), ``data: s | [s] | [[s], ...]`` (LMDeploy, vLLM; the last token's)."""
    [value] = [row[key] for key in ("embedding", "probs", "data") if key in row]
    while isinstance(value, list):
        value = value[-1]
    return _number(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    return float(value)


def _finite(value: float) -> float | Failure:
    return value if math.isfinite(value) else Failure("non_finite", f"the server gave the score {value}")
