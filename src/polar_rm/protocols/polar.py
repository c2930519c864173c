"""Our own ``/v1/score``, which takes unrendered texts and replies with a result for each output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.functional_validators import WrapValidator
from pydantic_core import PydanticCustomError

from polar_rm.protocols.base import BadReply, FirstError, OwnBody, Protocol, explain, finite, number
from polar_rm.records import ScoreItem, Text, as_reference, one_reference
from polar_rm.rewards.combining import Combine
from polar_rm.rewards.outcomes import ANCHOR_FIELDS, Cut, Failure, Note, Outcome, Reward
from polar_rm.rewards.transforms import Transform, needs_anchors
from polar_rm.rewards.turns import Turn, TurnOutcome, turns_or_whole

Result = TypeVar("Result")

# The keys of a message that a score can depend on.
_SCORED_KEYS = ("role", "content", "tool_calls")


class MessageBody(BaseModel):
    """A chat message. content: a text, a list of text parts, or null beside `tool_calls`. Further keys are never scored."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: str | Annotated[list[dict[str, Any]], FirstError()] | None


TextBody = str | Annotated[list[MessageBody], Field(min_length=1), FirstError()]


class ItemBody(OwnBody):
    """One prompt with its reference or references, and the outputs to score. An empty reference means scoring without one."""

    prompt: TextBody
    reference: TextBody
    references: Annotated[list[TextBody], FirstError()] | None = Field(
        None, min_length=1, description="Several references in place of `reference`; none may be blank."
    )
    outputs: Annotated[list[TextBody], FirstError()] = Field(min_length=1)
    wrapper: Literal["sft", "pretrain"] = "sft"

    @model_validator(mode="before")
    @classmethod
    def _one_kind_of_reference(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value.get("references") is None:
            texts = value.get("reference")
            if isinstance(texts, list) and texts and isinstance(texts[0], str):
                raise PydanticCustomError("several", "a list of texts; did you mean references: [...]?", {"at": "reference"})
            return value
        if "reference" in value:
            raise PydanticCustomError("two_kinds", "give either reference or references, not both")
        return {**value, "reference": ""}

    @property
    def _references(self) -> list[TextBody]:
        return self.references or [self.reference]

    def sequences(self, *, anchored: bool = False, each_turn: bool = False) -> int:
        """Number of sequences to score. anchored: whether each reference is one more output. each_turn: each turn is one."""
        return (len(self._scored(each_turn)) + anchored) * len(self._references)

    def characters(self, *, anchored: bool = False, each_turn: bool = False) -> int:
        """Number of characters to encode; the prompt counts once per sequence, because each output is tokenised with it.

        anchored: whether each reference is one more output. each_turn: whether a turn is tokenised with all turns before it.
        """
        prompt, *outputs = [text_length(text) for text in (_dumped(self.prompt), *self._scored(each_turn))]
        lengths = [text_length(_dumped(reference)) for reference in self._references]
        of_outputs = sum(prompt + output for output in outputs)
        return sum(length + of_outputs + (prompt + length if anchored else 0) for length in lengths)

    def _scored(self, each_turn: bool) -> list[Any]:
        """The texts that are scored. An output without a turn, which will fail, counts as one."""
        outputs = [_dumped(text) for text in self.outputs]
        return [turn for output in outputs for turn in turns_or_whole(output)] if each_turn else outputs

    def items(self) -> list[ScoreItem]:
        """One record per output."""
        prompt, *outputs = [_dumped(text) for text in (self.prompt, *self.outputs)]
        reference = as_reference([_dumped(reference) for reference in self._references])
        return [ScoreItem(prompt, reference, output, self.wrapper) for output in outputs]


def _or_failure(value: Any, check: Any) -> Any:
    try:
        return check(value)
    except ValidationError as error:
        return Failure("invalid_item", explain(error.errors(include_url=False)))


AnyItem = Annotated[ItemBody, WrapValidator(_or_failure)]
"""An item, or why it is none."""


class ScoreRequest(OwnBody):
    """Body of ``/v1/score``. An invalid item fails alone; the other items are scored."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    items: list[AnyItem]
    transform: Transform = "raw"
    combine: Combine = Field(
        "mean",
        description="How the rewards under several `references` become one. mean: of the raw rewards. best: the highest anchored "
        "reward, whose 0 is the reference itself.",
    )
    anchor: bool = Field(
        False,
        description="Score the references themselves, too: outputs get `anchor`, and where the model is calibrated `probability` "
        "and `deviation`. The transforms `anchored` and `probability` do so anyway.",
    )

    each_turn: bool = Field(
        False,
        description="Outputs also get `turns`: the reward at the end of every message of the assistant. `reward` is the last. "
        "Takes one reference, and neither a transform nor `anchor` nor `combine: best`.",
    )

    @model_validator(mode="after")
    def _turns_are_raw(self) -> Self:
        if self.each_turn and (self.transform != "raw" or self.combine != "mean" or self.anchor):
            reason = "the turns of a conversation have raw rewards only: leave out transform, combine and anchor"
            raise PydanticCustomError("turns_are_raw", reason)
        return self

    @property
    def anchored(self) -> bool:
        """Whether the references themselves have to be scored."""
        return self.anchor or needs_anchors(self.transform) or self.combine == "best"


class CutReply(BaseModel):
    """Numbers of truncated tokens, from the beginning of the prompt and from the end of reference and output."""

    prompt: int
    reference: int
    output: int


class ScoredTurn(BaseModel):
    """The reward at the end of a turn. message: the number of the message that ends it, from 1."""

    message: int
    reward: float
    n_tokens: int
    cut: CutReply
    notes: list[Note]


class ScoredOutput(BaseModel):
    """reward: the raw score. score: after the transform. n_tokens: number of tokens of the whole sequence. notes: caveats. turns:
    with `each_turn`.

    The others are there only where the reference itself was scored. anchor: its raw score. probability: of the output over the
    reference, if the model has a calibration card. deviation: standard deviation of reward - anchor, if its uncertainty is known.
    """

    index: int
    reward: float
    score: float
    n_tokens: int
    cut: CutReply
    notes: list[Note] = Field(
        description="truncated: a text was truncated to the encoder's limits. beyond_positions: the sequence is longer than the "
        "backbone's number of positions, where scores are unreliable. thinking_stripped: thinking was left out of reference or "
        "output. unfinished_thinking: the output opens its thinking and never closes it. empty: the output is blank."
    )
    anchor: float | None = None
    probability: float | None = None
    deviation: float | None = None
    turns: list[ScoredTurn] | None = None


class ItemError(BaseModel):
    """The reason for a missing reward."""

    code: Literal["invalid_item", "non_finite", "model_error"]
    message: str


class FailedOutput(BaseModel):
    """An output without a reward."""

    index: int
    error: ItemError


class ScoredItem(BaseModel):
    """The results of the outputs of one item."""

    index: int
    outputs: list[ScoredOutput | FailedOutput]


class FailedItem(BaseModel):
    """An invalid item."""

    index: int
    error: ItemError


class ScoreReply(BaseModel):
    """Results in the order of the request."""

    model: str
    transform: str
    results: list[ScoredItem | FailedItem]


def text_length(text: Any) -> int:
    """Number of characters to encode of a text or messages; approximate for content that is not text."""
    if isinstance(text, str):
        return len(text)
    if isinstance(text, dict):
        return (
            sum(text_length(text.get(key)) for key in _SCORED_KEYS[1:])
            if "role" in text
            else sum(map(text_length, text.values()))
        )
    return sum(map(text_length, text)) if isinstance(text, (list, tuple)) else 0


def request_for_items(items: Sequence[ScoreItem], *, anchored: bool = False, each_turn: bool = False) -> dict[str, Any]:
    """The body for these items. Adjacent items with the same prompt, reference and wrapper form one group.

    anchored: score the references themselves, too. each_turn: score every turn of the outputs.
    """
    groups: list[dict[str, Any]] = []
    for item in items:
        shared = {
            "prompt": _scored_keys(item.prompt),
            "reference": _scored_keys(one_reference(item)),
            "wrapper": item.wrapper,
        }
        if not groups or any(groups[-1][key] != value for key, value in shared.items()):
            groups.append({**shared, "outputs": []})
        groups[-1]["outputs"].append(_scored_keys(item.output))
    return {"items": groups, **({"anchor": True} if anchored else {}), **({"each_turn": True} if each_turn else {})}


def read_outcomes(body: dict[str, Any], reply: Any) -> list[Outcome]:
    """Outcomes in the order of the items that ``body`` was built from.

    Raises:
        BadReply: another shape or another number of results.
    """
    return _read_outputs(body, reply, _outcome)


def read_turns(body: dict[str, Any], reply: Any) -> list[TurnOutcome]:
    """As :func:`read_outcomes`, with the rewards of all turns of each item."""
    return _read_outputs(body, reply, _turns)


def _read_outputs(body: dict[str, Any], reply: Any, read: Callable[[dict[str, Any]], Result | Failure]) -> list[Result | Failure]:
    outcomes: list[Result | Failure] = []
    try:
        for group, result in zip(body["items"], reply["results"], strict=True):
            if "error" in result:
                outcomes += [_failure(result["error"])] * len(group["outputs"])
                continue
            if len(result["outputs"]) != len(group["outputs"]):
                raise ValueError
            outcomes += [read(row) for row in result["outputs"]]
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise BadReply(f"results can't be read from the reply: {type(error).__name__}") from None
    return outcomes


def group_reply(
    index: int,
    group: list[Outcome] | Failure,
    scores: Sequence[float],
    turns: Sequence[TurnOutcome] | Failure = (),
) -> dict[str, Any]:
    """The result of one item. scores: after the transform, of the outputs that have a reward. turns: of each output."""
    if isinstance(group, Failure):
        return {"index": index, "error": {"code": group.code, "message": group.message}}
    remaining = iter(scores)
    rows: list[dict[str, Any]] = []
    for output_index, outcome in enumerate(group):
        if isinstance(outcome, Failure):
            rows.append({"index": output_index, "error": {"code": outcome.code, "message": outcome.message}})
            continue
        row: dict[str, Any] = {"index": output_index, **_measured(outcome), "score": next(remaining), **outcome.anchor_fields()}
        if turns and not isinstance(turns, Failure) and not isinstance(of_output := turns[output_index], Failure):
            row["turns"] = [{"message": message, **_measured(turn)} for message, turn in of_output]
        rows.append(row)
    return {"index": index, "outputs": rows}


def _measured(outcome: Reward) -> dict[str, Any]:
    cut = {"prompt": outcome.cut.prompt, "reference": outcome.cut.reference, "output": outcome.cut.output}
    return {"reward": outcome.reward, "n_tokens": outcome.n_tokens, "cut": cut, "notes": list(outcome.notes)}


def _turns(row: dict[str, Any]) -> TurnOutcome:
    if "error" in row:
        return _failure(row["error"])
    turns = [(int(turn["message"]), _outcome(turn)) for turn in row["turns"]]
    if not turns:
        raise ValueError
    failed = next((outcome for _, outcome in turns if isinstance(outcome, Failure)), None)
    return failed or [Turn(message, outcome) for message, outcome in turns if isinstance(outcome, Reward)]


def _outcome(row: dict[str, Any]) -> Outcome:
    if "error" in row:
        return _failure(row["error"])
    reward = finite(number(row["reward"]))
    if isinstance(reward, Failure):
        return reward
    notes = row.get("notes", [])  # earlier servers send none
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError
    anchor, probability, deviation = (None if row.get(name) is None else number(row[name]) for name in ANCHOR_FIELDS)
    return Reward(reward, int(row["n_tokens"]), Cut(**row["cut"]), tuple(notes), anchor, probability, deviation)


def _failure(error: dict[str, Any]) -> Failure:
    return Failure(error["code"], error["message"])


def _build_request(model: str | None, items: Sequence[ScoreItem]) -> dict[str, Any]:
    return request_for_items(items)


def _read_reply(reply: Any, count: int) -> list[float | Failure]:
    """The scores of groups of any size, in order."""
    try:
        rows = [row for result in reply["results"] for row in result.get("outputs", [result])]
        outcomes = [finite(number(row["reward"])) if "error" not in row else _failure(row["error"]) for row in rows]
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise BadReply(f"results can't be read from the reply: {type(error).__name__}") from None
    if len(outcomes) != count:
        raise BadReply(f"the reply has {len(outcomes)} results for {count} items")
    return outcomes


def _dumped(text: TextBody) -> Any:
    return text if isinstance(text, str) else [message.model_dump() for message in text]


def _scored_keys(text: Text) -> Any:
    return text if isinstance(text, str) else [{key: message[key] for key in _SCORED_KEYS if key in message} for message in text]


SCORE = Protocol(
    "/v1/score", "/v1/score", "Prompts, references and outputs", ScoreRequest, ScoreReply, _build_request, _read_reply
)
