"""Same ids and same score everywhere: one set of items through every route by which a reward is computed.

Routes share the encoder's token ids and nothing else: packed prefix trees as in training, the Scorer with its own grouping,
stock transformers on each sequence alone, our server over each protocol, vLLM in this process, and each protocol that a running
server speaks. Stock transformers is what the others are compared with. Apart from the scores, transformers' own tokenizer of the
checkpoint has to find the same ids in the rendered text, which is what a server that is sent text will do.
"""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from polar_rm.common.http import checked_key
from polar_rm.errors import PolarError
from polar_rm.model.packing import first_fit, pack
from polar_rm.model.reward_model import RewardModel
from polar_rm.parity.items import Encoded, awkward_items, encode, ids_differ
from polar_rm.parity.report import BASELINE, Parity, Route
from polar_rm.records import ScoreItem, flatten
from polar_rm.scoring.scorer import Scorer

SERVE = "serve"
_ROW_TOKENS = 16384
_TIMEOUT_S = 600


def check(
    directory: str | Path,
    items: Sequence[ScoreItem] = (),
    *,
    against: str = SERVE,
    api_key: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    tolerance: float = 1e-3,
) -> Parity:
    """Score ``items`` (none: :func:`awkward_items`) by every route.

    against: further routes: ``serve``, our server in this process; a server's URL; ``vllm``, in this process;
    ``transformers``, no more than trainer and scorer. api_key: of the server at that URL.

    Raises:
        PolarError: the server does not answer, wants another key or speaks no known protocol, or what ``against`` names is not
            installed.
    """
    model = RewardModel.from_pretrained(directory, dtype=dtype, device=device)
    items = items or awkward_items(model.encoder.settings)
    encoded = [encode(model.encoder, item) for item in items]
    scorer = Scorer(model)
    answers = [
        _Answer("trainer, packed trees", _all(_trainer(model, items))),
        _Answer("scorer", _all([scored.reward for scored in scorer.score(items)])),
    ]
    if against == SERVE:
        answers += _own_server(scorer, encoded)
    del model, scorer  # the other routes load the weights again
    if against == "vllm":
        answers.append(_Answer("vllm", _all(_vllm(directory, encoded, dtype))))
    elif against not in (BASELINE, SERVE):
        answers += _server(
            against, encoded, {} if api_key is None else {"Authorization": f"Bearer {checked_key(api_key, 'api_key')}"}
        )
    baseline = _transformers(directory, encoded, dtype, device)
    routes = [Route(BASELINE, baseline, 0.0)] + [_route(answer, baseline) for answer in answers]
    return Parity(
        str(directory),
        len(encoded),
        sum(bool(one.tree.truncation) for one in encoded),
        sum(len(one.ids) for one in encoded),
        tolerance,
        ids_differ(directory, encoded),
        routes,
    )


@torch.inference_mode()
def _trainer(model: RewardModel, items: Sequence[ScoreItem]) -> list[float]:
    """Rows of several trees, each with all outputs of one prompt and reference, as a training step computes them."""
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(json.dumps([item.prompt, item.reference, item.wrapper]), []).append(index)
    trees, places = [], []
    for indices in groups.values():
        first, outputs = items[indices[0]], [items[i].output for i in indices]
        for part, tree in model.encoder.encode_outputs(first.prompt, first.reference, outputs, first.wrapper):
            trees.append(tree)
            places.append([indices[i] for i in part])
    scores = [math.nan] * len(items)
    for row in first_fit([tree.n_tokens for tree in trees], _ROW_TOKENS):
        values = iter(model.eval()(pack([trees[i] for i in row]).to(model.device)).tolist())
        for place in (index for i in row for index in places[i]):
            scores[place] = next(values)
    return scores


@torch.inference_mode()
def _transformers(directory: str | Path, encoded: Sequence[Encoded], dtype: str, device: str) -> list[float]:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=getattr(torch, dtype), trust_remote_code=False)
    model = model.to(device).eval()
    return [float(model(torch.tensor([one.ids], device=device), use_cache=False).logits) for one in encoded]


def _vllm(directory: str | Path, encoded: Sequence[Encoded], dtype: str) -> list[float]:
    try:
        from vllm import LLM, PoolingParams
    except ImportError as error:
        raise PolarError(f"vLLM is not installed here ({error}): run this in its environment, or give a server's URL") from error
    longest = max(len(one.ids) for one in encoded)
    engine = LLM(str(directory), runner="pooling", convert="classify", dtype=dtype, max_model_len=longest, enforce_eager=True)
    prompts = [{"prompt_token_ids": one.ids} for one in encoded]
    outputs = engine.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    return [float(output.outputs.probs[0]) for output in outputs]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one route gave: scores by the item's index, and the first reason for which one has none."""

    name: str
    scores: dict[int, float]
    refused: str = ""


def _all(scores: Sequence[float]) -> dict[int, float]:
    return dict(enumerate(scores))


@dataclass(frozen=True, slots=True)
class _Wire:
    """One protocol: where to post, the body for one item (None if it can't carry the item), and the score in the reply."""

    name: str
    path: str
    body: Callable[[Encoded], dict[str, Any] | None]
    score: Callable[[Any], Any]


def _wires(name: str | None, encoded: Sequence[Encoded]) -> list[_Wire]:
    """Those that can carry one of the items at least."""
    model = {"model": name} if name else {}
    raw = {**model, "use_activation": False}
    floats = {**model, "encoding_format": "float"}
    probs, data, embedding = (
        lambda reply: reply["data"][0]["probs"],
        lambda reply: reply["data"][0]["data"],
        lambda reply: reply["data"][0]["embedding"],
    )
    wires = [
        _Wire("/v1/score", "/v1/score", _structured, lambda reply: reply["results"][0]["outputs"][0]["reward"]),
        _Wire("vLLM /classify, ids", "/classify", lambda one: {**raw, "input": [one.ids]}, probs),
        _Wire("vLLM /classify, text", "/classify", lambda one: {**raw, "input": [one.text]}, probs),
        _Wire("/pooling, ids", "/pooling", lambda one: {**raw, "input": [one.ids]}, data),
        _Wire("/pooling, text", "/pooling", lambda one: {**raw, "input": [one.text]}, data),
        _Wire("SGLang /classify, ids", "/classify", lambda one: {"input_ids": [one.ids]}, lambda reply: reply[0]["embedding"]),
        _Wire("SGLang /classify, text", "/classify", lambda one: {"text": [one.text]}, lambda reply: reply[0]["embedding"]),
        _Wire("/v1/embeddings, ids", "/v1/embeddings", lambda one: {**floats, "input": [one.ids]}, embedding),
        _Wire("/v1/embeddings, text", "/v1/embeddings", lambda one: {**floats, "input": [one.text]}, embedding),
        _Wire("OpenRLHF /get_reward", "/get_reward", _openrlhf, lambda reply: reply["rewards"][0]),
    ]
    return [wire for wire in wires if any(map(wire.body, encoded))]


def _structured(one: Encoded) -> dict[str, Any]:
    item = one.item
    group = {"prompt": item.prompt, "reference": item.reference, "outputs": [item.output], "wrapper": item.wrapper}
    return {"items": [group]}


def _openrlhf(one: Encoded) -> dict[str, Any] | None:
    """Answers are text behind a templated prompt there, and never continue it."""
    item = one.item
    if item.wrapper != "sft" or not (isinstance(item.output, str) or len(item.output) == 1):
        return None
    templated = "<|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n"
    label = {"reference": item.reference, "prompt": item.prompt}
    return {"query": [templated + flatten(item.output)], "prompts": [templated], "labels": [label]}


class _Refused(Exception):
    """An HTTP error or a reply without a score; the message is what the server said."""


def _own_server(scorer: Scorer, encoded: Sequence[Encoded]) -> list[_Answer]:
    """`polar serve`'s application on a free port, once for every shape of `/pooling` replies, each read as its client does."""
    try:
        from polar_rm.serving.app import create_app
        from polar_rm.serving.batching import Batcher
        from polar_rm.serving.launch import in_thread
        from polar_rm.serving.service import Service
    except ModuleNotFoundError as error:
        raise PolarError(
            f"the package {error.name} is missing: pip install 'polar-rm[serve]', or leave the server out by --against {BASELINE}"
        ) from error
    readings: dict[Any, Callable[[Any], Any]] = {
        "vllm": lambda reply: float(reply["data"][0]["data"][-1][0]),
        "vllm-classify": lambda reply: float(reply["data"][0]["data"][0]),
        "lmdeploy": lambda reply: float(reply["data"][0]["data"]),
    }
    answers: list[_Answer] = []
    for flavour, score in readings.items():
        service = Service("rm", scorer.model.encoder, Batcher(scorer.score_trees, batch_tokens=scorer.token_budget))
        with in_thread(create_app(service, flavour=flavour)) as url:
            if not answers:
                answers += [_asked(url, wire, encoded) for wire in _wires("rm", encoded) if wire.path != "/pooling"]
            answers += [
                _asked(url, replace(wire, name=f"{wire.name} ({flavour})", score=score), encoded)
                for wire in _wires("rm", encoded)
                if wire.path == "/pooling"
            ]
    return answers


def _server(url: str, encoded: Sequence[Encoded], headers: dict[str, str]) -> list[_Answer]:
    """One for each protocol in which the server can score the shortest item that the protocol can carry."""
    url = url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise PolarError(f"{url}: expected serve, vllm, transformers or a server's URL such as http://127.0.0.1:8000")
    by_length = sorted(encoded, key=lambda one: len(one.ids))
    try:
        name = _http(f"{url}/v1/models", None, headers)["data"][0]["id"]
    except (_Refused, LookupError, TypeError):
        name = None  # LightLLM and old SGLang servers have no such route; one model needs no name
    answers, refusals = [], []
    for wire in _wires(name, encoded):
        try:
            _ask(url, wire, next(filter(None, map(wire.body, by_length))), headers)
        except _Refused as refusal:
            refusals.append(f"{wire.name}: {refusal}")
            continue
        answers.append(_asked(url, wire, encoded, headers))
    if not answers:
        raise PolarError(f"{url}: speaks none of the known protocols ({'; '.join(refusals)})")
    return answers


def _asked(url: str, wire: _Wire, encoded: Sequence[Encoded], headers: dict[str, str] | None = None) -> _Answer:
    scores, refused = {}, ""
    for index, one in enumerate(encoded):
        body = wire.body(one)
        if body is None:
            continue
        try:
            scores[index] = _ask(url, wire, body, headers or {})
        except _Refused as refusal:
            scores[index] = math.nan
            refused = refused or f"item {index + 1}: {refusal}"
    return _Answer(wire.name, scores, refused)


def _ask(url: str, wire: _Wire, body: dict[str, Any], headers: dict[str, str]) -> float:
    reply = _http(url + wire.path, body, headers)
    try:
        score = wire.score(reply)
        while isinstance(score, list):  # [s], or a list for every token, of which the last counts
            score = score[-1]
        return float(score)
    except (LookupError, TypeError, ValueError) as error:
        raise _Refused(f"no score in the reply {json.dumps(reply)[:200]}") from error


def _http(url: str, body: dict[str, Any] | None, headers: dict[str, str]) -> Any:
    """GET, or POST of a JSON body; no proxy, as the servers stand next door. headers: for this server, not where it redirects."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    for header, value in headers.items():
        request.add_unredirected_header(header, value)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace").strip()
        if error.code == 401:
            raise PolarError(f"{url}: HTTP 401: the server wants {'another' if headers else 'an'} API key") from error
        raise _Refused(f"HTTP {error.code} {said[:200]}") from error
    except ValueError as error:
        raise _Refused("the reply is not JSON") from error
    except OSError as error:
        raise PolarError(f"{url}: no answer: {getattr(error, 'reason', error)}") from error


def _route(answer: _Answer, baseline: Sequence[float]) -> Route:
    pairs = [(score, baseline[index]) for index, score in answer.scores.items() if not (answer.refused and math.isnan(score))]
    differences = [abs(score - other) for score, other in pairs]
    # max() would pass over a NaN, which must never look like agreement.
    largest = math.nan if any(map(math.isnan, differences)) else max(differences, default=math.nan)
    return Route(answer.name, list(answer.scores.values()), largest, answer.refused)
