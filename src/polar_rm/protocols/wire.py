"""The wire formats: what each protocol sends, as pydantic models, and what it expects back. Nothing here knows the model.

Sources: SGLang 0.5 ``EmbeddingReqInput``, vLLM 0.33 pooling protocol, LMDeploy 0.18 ``/pooling``, OpenRLHF 0.11
``utils/agent.py`` and ``cli/serve_rm.py``, and the request methods of the official client. Foreign bodies may hold keys that we
don't know (those protocols ignore them too); our own may not.
"""

from __future__ import annotations

import base64
import math
import re
import struct
import time
import uuid
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, Strict, Tag, ValidationError
from pydantic.functional_validators import WrapValidator

from polar_rm.errors import PolarError
from polar_rm.records import ScoreItem, flatten
from polar_rm.rewards.outcomes import Failure, Reward
from polar_rm.rewards.transforms import Transform

PoolingFlavour = Literal["vllm", "lmdeploy", "vllm-classify"]
"""Shape of ``/pooling`` replies: ``[[s]]`` (official client with vLLM), ``s`` (with LMDeploy), ``[s]`` (vLLM's classify task)."""

TokenId = Annotated[int, Strict(), Field(ge=0, lt=2**31)]


class _FirstError(FailFast):
    """The first wrong element ends the check: otherwise a list of ids gives an error for each id when it is tried as texts."""

    __hash__ = object.__hash__  # pydantic's own can't stand in a union before Python 3.13


Texts = Annotated[list[str], _FirstError()]
Ids = Annotated[list[TokenId], _FirstError()]
Input = str | Texts | Ids | Annotated[list[Ids], _FirstError()]


class _Foreign(BaseModel):
    model_config = ConfigDict(extra="ignore")
    model: str | None = Field(None, description="Ignored: the server has one model.")


class SglangClassify(_Foreign):
    """SGLang's body of ``/classify``: rendered texts or token ids."""

    text: str | Texts | None = None
    input_ids: Ids | Annotated[list[Ids], _FirstError()] | None = None


class VllmClassify(_Foreign):
    """vLLM's body of ``/classify``. Unlike vLLM's, the default is the raw score; a sigmoid only on request."""

    input: Input
    use_activation: bool | None = Field(None, description="True asks for sigmoid(score) instead of the raw score.")
    add_special_tokens: bool = Field(True, description="Put BOS before a text. Token ids are taken as they are.")
    truncate_prompt_tokens: Literal[-1] | None = Field(None, description="Cutting here would lose the scoring token.")


class PoolingRequest(VllmClassify):
    """Body of ``/pooling``, the same for vLLM and LMDeploy."""

    encoding_format: Literal["float", "base64"] = "float"


class EmbeddingsRequest(_Foreign):
    """OpenAI's body of ``/v1/embeddings``, as SGLang serves reward models."""

    input: Input
    encoding_format: Literal["float", "base64"] = "float"


class GetReward(_Foreign):
    """OpenRLHF's body of ``/get_reward``; the three lists have one length. See :func:`openrlhf_item` for labels."""

    query: list[str]
    prompts: list[str]
    labels: list[Any]


class MessageBody(BaseModel):
    """A chat message; further keys are kept but never scored."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: str


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
        prompt, reference, *outputs = [_length(text) for text in (self.prompt, self.reference, *self.outputs)]
        return reference + sum(prompt + output for output in outputs)

    def items(self) -> list[ScoreItem]:
        """One record per output."""
        prompt, reference, *outputs = [_plain(text) for text in (self.prompt, self.reference, *self.outputs)]
        return [ScoreItem(prompt, reference, output, self.wrapper) for output in outputs]


def _or_failure(value: Any, check: Any) -> Any:
    try:
        return check(value)
    except ValidationError as error:
        return Failure("invalid_item", explain(error.errors(include_input=False, include_url=False)))


class ScoreRequest(BaseModel):
    """Body of ``/v1/score``. An item that is not as it should be fails alone; its neighbours are scored."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    items: list[Annotated[ItemBody, WrapValidator(_or_failure)]]
    transform: Transform = "raw"


def _plain(text: TextBody) -> str | list[dict[str, Any]]:
    return text if isinstance(text, str) else [message.model_dump() for message in text]


def _length(text: TextBody) -> int:
    return len(text) if isinstance(text, str) else sum(len(message.content) for message in text)


def _classify_kind(body: Any) -> str:
    return "sglang" if isinstance(body, dict) and ("text" in body or "input_ids" in body) else "vllm"


ClassifyRequest = Annotated[
    Annotated[SglangClassify, Tag("sglang")] | Annotated[VllmClassify, Tag("vllm")], Discriminator(_classify_kind)
]


def explain(errors: Sequence[Any]) -> str:
    """The first validation error as one line, without the user's input in it."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "sglang", "vllm"))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{place or 'body'}: {first['msg']}{more}"


def inputs_of(value: Input) -> tuple[list[str] | list[list[int]], bool]:
    """The texts or id lists of a request, and whether it held a single one, not in a list.

    Raises:
        PolarError: there are none.
    """
    if isinstance(value, str):
        return [value], True
    if value and isinstance(value[0], int):
        return [value], True
    if not value:
        raise PolarError("the list of inputs is empty")
    return value, False  # type: ignore[return-value]


def sglang_input(body: SglangClassify) -> Input:
    """Raises PolarError unless exactly one of ``text`` and ``input_ids`` is there."""
    given = [value for value in (body.text, body.input_ids) if value is not None]
    if len(given) != 1:
        raise PolarError("give exactly one of text and input_ids")
    return given[0]


def sglang_reply(results: Sequence[Reward], single: bool) -> Any:
    """``[{"embedding": [s], "meta_info": {...}}, ...]``, or the one object for a single input (as SGLang does)."""
    rows = [
        {"embedding": [result.reward], "meta_info": {"id": uuid.uuid4().hex, "prompt_tokens": result.n_tokens}}
        for result in results
    ]
    return rows[0] if single else rows


def classify_reply(results: Sequence[Reward], model: str, use_activation: bool | None) -> dict[str, Any]:
    """vLLM's ClassificationResponse with one "probability" per item: the raw score, or its sigmoid."""
    rows = [
        {"index": index, "label": "LABEL_0", "probs": [_activated(result.reward, use_activation)], "num_classes": 1}
        for index, result in enumerate(results)
    ]
    return _openai_list("classify", model, rows, results)


def pooling_reply(results: Sequence[Reward], model: str, flavour: PoolingFlavour, body: PoolingRequest) -> dict[str, Any]:
    """``data`` of each row in the shape that ``flavour`` names. In base64 it is always the one float32."""
    rows: list[dict[str, Any]] = []
    for index, result in enumerate(results):
        score = _activated(result.reward, body.use_activation)
        shaped: Any = {"vllm": [[score]], "lmdeploy": score, "vllm-classify": [score]}[flavour]
        rows.append({"index": index, "object": "pooling", "data": _base64(score) if body.encoding_format == "base64" else shaped})
    return _openai_list("pool", model, rows, results)


def embeddings_reply(results: Sequence[Reward], model: str, encoding_format: str) -> dict[str, Any]:
    """OpenAI's embeddings of length one; its own client asks for base64."""
    rows = [
        {
            "index": index,
            "object": "embedding",
            "embedding": _base64(result.reward) if encoding_format == "base64" else [result.reward],
        }
        for index, result in enumerate(results)
    ]
    return _openai_list("embd", model, rows, results)


def openrlhf_reply(results: Sequence[Reward], scores: Sequence[float]) -> dict[str, Any]:
    """Lists for all keys, as OpenRLHF's own server answers. scores: 0 to 1, for its dynamic filtering."""
    logs = {"n_tokens": [result.n_tokens for result in results], "truncated": [int(bool(result.cut)) for result in results]}
    return {"rewards": [result.reward for result in results], "scores": list(scores), "extra_logs": logs}


# Ends of turn and of text that policies' templates put behind an answer.
_END_TOKEN = re.compile(r"(?:<\|[^<>|\s]{1,40}\|>|</s>|<eos>|<end_of_turn>|<\uff5cend\u2581of\u2581sentence\uff5c>)\Z")
_LONGEST_END = 44

_ENOUGH = 40  # characters that mark a place in a prompt


def openrlhf_item(query: str, prompt: str, label: Any) -> ScoreItem:
    """OpenRLHF sends the templated prompt and ``query``, the prompt with the answer and its end tokens.

    label: the reference (text or messages), or ``{"reference": ..., "prompt": ...}`` with the prompt as it was before the
    policy's template, which is what the reward model was trained on. Scoring without a reference has to be said: an object whose
    reference is empty.

    Raises:
        PolarError: no answer can be told from the prompt, or the label is no reference.
    """
    fields = label if isinstance(label, dict) else {"reference": label}
    answer = _without_end_tokens(_behind(query, prompt))
    try:
        body = ItemBody(prompt=fields.get("prompt", prompt), reference=fields.get("reference"), outputs=[answer])
    except ValidationError as error:
        raise PolarError(f"label: {explain(error.errors(include_input=False, include_url=False))}") from None
    item = body.items()[0]
    if not flatten(item.reference).strip() and not (isinstance(label, dict) and item.reference == ""):
        # "" is what OpenRLHF sends where no column of labels is named.
        raise PolarError("the label is empty: name the column of references with --data.label_key")
    return item


def _behind(query: str, prompt: str) -> str:
    if query.startswith(prompt):
        return query[len(prompt) :]
    # A prompt that is too long has lost its beginning in the query.
    place = prompt.find(query[:_ENOUGH]) if query else -1
    if place >= 0 and (shared := _overlap(query, prompt[place:])) >= min(_ENOUGH, len(query)):
        return query[shared:]
    # Decoding encoded text need not give the same bytes back; the template's end still marks the place.
    tail = prompt[-_ENOUGH:]
    place = query.find(tail, max(0, len(prompt) - 200)) if tail.strip() else -1
    if place < 0:
        raise PolarError("the query does not begin with its prompt")
    return query[place + len(tail) :]


def _overlap(first: str, second: str) -> int:
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


def _without_end_tokens(text: str) -> str:
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


def sigmoid(value: float) -> float:
    """Without overflow for very negative values."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def _activated(value: float, use_activation: bool | None) -> float:
    return sigmoid(value) if use_activation else value


def _base64(value: float) -> str:
    return base64.b64encode(struct.pack("<f", value)).decode()


def _openai_list(kind: str, model: str, rows: list[dict[str, Any]], results: Sequence[Reward]) -> dict[str, Any]:
    n_tokens = sum(result.n_tokens for result in results)
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": rows,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }
