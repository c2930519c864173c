"""Our own ``/v1/score``, which takes texts as they are and gives each output its result, and ``/v1/models``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.functional_validators import WrapValidator

from polar_rm.protocols.base import BadReply, Protocol, explain, finite, number
from polar_rm.records import ScoreItem, Text
from polar_rm.rewards.outcomes import Cut, Failure, Outcome, Reward
from polar_rm.rewards.transforms import Transform

# Of a message, what can decide a score; further keys may hold anything.
_SENT_KEYS = ("role", "content", "tool_calls")


class MessageBody(BaseModel):
    """A chat message. content: a text or a list of text parts; null beside `tool_calls`. Further keys are kept, never scored."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: str | list[dict[str, Any]] | None


TextBody = str | Annotated[list[MessageBody], Field(min_length=1)]


class ItemBody(BaseModel):
    """One prompt and reference with the outputs to compare. An empty reference scores without one."""

    model_config = ConfigDict(extra="forbid")
    prompt: TextBody
    reference: TextBody
    outputs: list[TextBody] = Field(min_length=1)
    wrapper: Literal["sft", "pretrain"] = "sft"

    @property
    def characters(self) -> int:
        """To encode: each output is tokenised with the prompt."""
        prompt, reference, *outputs = [text_length(_plain(text)) for text in (self.prompt, self.reference, *self.outputs)]
        return reference + sum(prompt + output for output in outputs)

    def items(self) -> list[ScoreItem]:
        """One record per output."""
        prompt, reference, *outputs = [_plain(text) for text in (self.prompt, self.reference, *self.outputs)]
        return [ScoreItem(prompt, reference, output, self.wrapper) for output in outputs]


def _or_failure(value: Any, check: Any) -> Any:
    try:
        return check(value)
    except ValidationError as error:
        return Failure("invalid_item", explain(error.errors(include_url=False)))


class ScoreRequest(BaseModel):
    """Body of ``/v1/score``. An item that is not as it should be fails alone; its neighbours are scored."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    items: list[Annotated[ItemBody, WrapValidator(_or_failure)]]
    transform: Transform = "raw"


class CutReply(BaseModel):
    """Tokens cut away: from the prompt's beginning and from the end of reference and output."""

    prompt: int
    reference: int
    output: int


class ScoredOutput(BaseModel):
    """reward: raw. score: after the transform. n_tokens: of the whole sequence."""

    index: int
    reward: float
    score: float
    n_tokens: int
    cut: CutReply


class ItemError(BaseModel):
    """Why there is no reward."""

    code: Literal["invalid_item", "non_finite", "model_error"]
    message: str


class FailedOutput(BaseModel):
    """An output without a reward."""

    index: int
    error: ItemError


class ScoredItem(BaseModel):
    """The outputs of one item."""

    index: int
    outputs: list[ScoredOutput | FailedOutput]


class FailedItem(BaseModel):
    """An item that is none."""

    index: int
    error: ItemError


class ScoreReply(BaseModel):
    """Results in the order of the request."""

    model: str
    transform: str
    results: list[ScoredItem | FailedItem]


class ModelCard(BaseModel):
    """owned_by tells clients which server this is; the encoder's hash, whether they encode as it does."""

    id: str
    object: Literal["model"]
    owned_by: Literal["polar-rm"]
    max_model_len: int
    encoder_hash: str
    transforms: list[str]


class ModelsReply(BaseModel):
    """The one model."""

    object: Literal["list"]
    data: list[ModelCard]


def text_length(text: Any) -> int:
    """Characters to encode of a text or of messages, roughly where they hold other than text."""
    if isinstance(text, str):
        return len(text)
    if isinstance(text, dict):
        return (
            sum(text_length(text.get(key)) for key in _SENT_KEYS[1:]) if "role" in text else sum(map(text_length, text.values()))
        )
    return sum(map(text_length, text)) if isinstance(text, (list, tuple)) else 0


def ask_items(items: Sequence[ScoreItem]) -> dict[str, Any]:
    """A body; neighbours with one prompt, reference and wrapper are sent as one group."""
    groups: list[dict[str, Any]] = []
    for item in items:
        shared = {"prompt": _sent(item.prompt), "reference": _sent(item.reference), "wrapper": item.wrapper}
        if not groups or any(groups[-1][key] != value for key, value in shared.items()):
            groups.append({**shared, "outputs": []})
        groups[-1]["outputs"].append(_sent(item.output))
    return {"items": groups}


def read_outcomes(body: dict[str, Any], reply: Any) -> list[Outcome]:
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


def group_reply(index: int, group: list[Outcome] | Failure, scores: Sequence[float]) -> dict[str, Any]:
    """The result of one item. scores: of those outputs that have a reward, after the transform."""
    if isinstance(group, Failure):
        return {"index": index, "error": {"code": group.code, "message": group.message}}
    left = iter(scores)
    rows: list[dict[str, Any]] = []
    for number_of_output, outcome in enumerate(group):
        if isinstance(outcome, Failure):
            rows.append({"index": number_of_output, "error": {"code": outcome.code, "message": outcome.message}})
            continue
        cut = {"prompt": outcome.cut.prompt, "reference": outcome.cut.reference, "output": outcome.cut.output}
        score = {"reward": outcome.reward, "score": next(left), "n_tokens": outcome.n_tokens, "cut": cut}
        rows.append({"index": number_of_output, **score})
    return {"index": index, "outputs": rows}


def _outcome(row: dict[str, Any]) -> Outcome:
    if "error" in row:
        return _failure(row["error"])
    reward = finite(number(row["reward"]))
    if isinstance(reward, Failure):
        return reward
    return Reward(reward, int(row["n_tokens"]), Cut(**row["cut"]))


def _failure(error: dict[str, Any]) -> Failure:
    return Failure(error["code"], error["message"])


def _ask(model: str | None, items: Sequence[ScoreItem]) -> dict[str, Any]:
    return ask_items(items)


def _read(reply: Any, count: int) -> list[float | Failure]:
    """Of groups of any size."""
    try:
        rows = [row for result in reply["results"] for row in result.get("outputs", [result])]
        outcomes = [finite(number(row["reward"])) if "error" not in row else _failure(row["error"]) for row in rows]
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise BadReply(f"results can't be read from the reply: {type(error).__name__}") from None
    if len(outcomes) != count:
        raise BadReply(f"the reply has {len(outcomes)} results for {count} items")
    return outcomes


def _plain(text: TextBody) -> Any:
    return text if isinstance(text, str) else [message.model_dump() for message in text]


def _sent(text: Text) -> Any:
    return text if isinstance(text, str) else [{key: message[key] for key in _SENT_KEYS if key in message} for message in text]


SCORE = Protocol("/v1/score", "/v1/score", "Prompts, references and outputs", ScoreRequest, ScoreReply, _ask, _read)
