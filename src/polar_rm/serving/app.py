"""The routes of the reward server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from importlib import metadata
from importlib.resources import files
from typing import Annotated, Any, TypeVar

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from polar_rm.errors import PolarError
from polar_rm.protocols import wire
from polar_rm.rewards.outcomes import Failure, Outcome, Reward
from polar_rm.rewards.transforms import TRANSFORMS, transform
from polar_rm.serving import examples, schema
from polar_rm.serving.batching import Overloaded
from polar_rm.serving.guard import Guard, Limits, Metrics, error_reply
from polar_rm.serving.hosts import Hosts
from polar_rm.serving.service import Service

T = TypeVar("T")

# The page holds its own style and script and talks to nobody but this server.
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"

_STATUS = {"invalid_item": 400, "non_finite": 500, "model_error": 500}


class _Refused(Exception):
    """An answer that is not a result."""

    def __init__(self, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.reply = error_reply(status, kind, message, headers)


def create_app(
    service: Service,
    *,
    limits: Limits | None = None,
    flavour: wire.PoolingFlavour = "vllm",
    api_key: str | None = None,
    log_texts: bool = False,
    hosts: Hosts | None = None,
) -> Guard:
    """The ASGI application around a service, whose queue it starts and stops. ``.app`` is the FastAPI object.

    hosts: the names that are answered to without a key; by default those of the loopback.
    """
    limits = limits or Limits()
    metrics = Metrics(service.batcher)
    service.batcher.on_batch = metrics.batch

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await service.close()

    app = FastAPI(
        title="polar-rm reward server",
        version=metadata.version("polar-rm"),
        description=examples.DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from other hosts
        redoc_url=None,
        responses=schema.ERRORS,
    )
    guard = Guard(app, limits=limits, metrics=metrics, api_key=api_key, log_texts=log_texts, hosts=hosts)
    _add_error_handlers(app)
    _add_status_routes(app, service, guard)
    _add_engine_routes(app, service, guard, flavour)
    _add_item_routes(app, service, guard)
    guard.json_paths = frozenset(path for path, row in app.openapi()["paths"].items() if "post" in row)
    return guard


def _add_engine_routes(app: FastAPI, service: Service, guard: Guard, flavour: wire.PoolingFlavour) -> None:
    """The protocols of other engines, which carry rendered texts or token ids."""

    async def score(request: Request, value: wire.Input, add_bos: bool = True) -> tuple[list[Reward], bool]:
        inputs, single = wire.inputs_of(value)
        _admit(len(inputs), guard.limits)
        outcomes = await _unless_gone(request, service.score_inputs(inputs, add_bos=add_bos))
        _record(request, guard.metrics, outcomes)
        return _all_rewards(outcomes), single

    @app.post(
        "/classify",
        summary="SGLang and vLLM",
        responses=schema.reply(schema.ClassifyReply | list[schema.SglangReply] | schema.SglangReply),
    )
    async def classify(request: Request, body: Annotated[wire.ClassifyRequest, Body(openapi_examples=examples.CLASSIFY)]) -> Any:
        """SGLang's body (`text` or `input_ids`) gets SGLang's reply, vLLM's (`input`) gets vLLM's."""
        if isinstance(body, wire.SglangClassify):
            results, single = await score(request, wire.sglang_input(body))
            return wire.sglang_reply(results, single)
        results, _ = await score(request, body.input, body.add_special_tokens)
        return wire.classify_reply(results, service.name, body.use_activation)

    @app.post("/pooling", summary="vLLM and LMDeploy", responses=schema.reply(schema.PoolingReply))
    async def pooling(request: Request, body: Annotated[wire.PoolingRequest, Body(openapi_examples=examples.INPUTS)]) -> Any:
        """The same body from both; the shape of the reply is the server's `--pooling-flavour`."""
        results, _ = await score(request, body.input, body.add_special_tokens)
        return wire.pooling_reply(results, service.name, flavour, body)

    @app.post("/v1/embeddings", summary="SGLang and OpenAI", responses=schema.reply(schema.EmbeddingsReply))
    async def embeddings(
        request: Request, body: Annotated[wire.EmbeddingsRequest, Body(openapi_examples=examples.INPUTS)]
    ) -> Any:
        """One embedding of length one per input: the raw score."""
        results, _ = await score(request, body.input)
        return wire.embeddings_reply(results, service.name, body.encoding_format)


def _add_item_routes(app: FastAPI, service: Service, guard: Guard) -> None:
    """Routes that carry prompts, references and outputs, which are rendered here."""

    @app.post("/get_reward", summary="OpenRLHF", responses=schema.reply(schema.RewardsReply))
    async def get_reward(request: Request, body: Annotated[wire.GetReward, Body(openapi_examples=examples.GET_REWARD)]) -> Any:
        """The label is the reference, or an object with `reference` and the untemplated `prompt`."""
        if not len(body.query) == len(body.prompts) == len(body.labels):
            raise PolarError("query, prompts and labels must have one length")
        _admit(len(body.query), guard.limits)
        rows = list(zip(body.query, body.prompts, body.labels, strict=True))
        work = service.score_rows(rows, lambda row: len(row[0]) + len(row[1]), lambda row: wire.openrlhf_item(*row))
        outcomes = await _unless_gone(request, work)
        _record(request, guard.metrics, outcomes)
        results = _all_rewards(outcomes)
        card = service.calibration
        to_unit = card.percentile if card else wire.sigmoid
        return wire.openrlhf_reply(results, [to_unit(result.reward) for result in results])

    @app.post("/v1/score", summary="Prompts, references and outputs", responses=schema.reply(schema.ScoreReply))
    async def score(request: Request, body: Annotated[wire.ScoreRequest, Body(openapi_examples=examples.SCORE)]) -> Any:
        """One result per output, or a typed error, in order; texts are rendered, tokenised and cut here."""
        good = [group for group in body.items if not isinstance(group, Failure)]
        failed = [group for group in body.items if isinstance(group, Failure)]
        items = [item for group in good for item in group.items()]
        _admit(len(items) + len(failed), guard.limits, characters=sum(group.characters for group in good))
        transform(body.transform, [], service.calibration)  # what is refused, is refused before the work
        outcomes = await _unless_gone(request, service.score_items(items))
        _record(request, guard.metrics, [*outcomes, *failed])
        left = iter(outcomes)
        groups = [group if isinstance(group, Failure) else [next(left) for _ in group.outputs] for group in body.items]
        raw = [[outcome.reward for outcome in _rewards_in(group)] for group in groups]
        scores = transform(body.transform, raw, service.calibration)
        results = [_group_reply(index, group, scores[index]) for index, group in enumerate(groups)]
        return {"model": service.name, "transform": body.transform, "results": results}


def _add_status_routes(app: FastAPI, service: Service, guard: Guard) -> None:
    page = (files("polar_rm.serving") / "page.html").read_text(encoding="utf-8")

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY})

    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="The process lives", responses=schema.reply(schema.StatusReply))
    async def health() -> Any:
        return {"status": "ok"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", summary="Requests are taken", responses=schema.reply(schema.StatusReply))
    async def ready() -> Any:
        if guard.draining or not service.batcher.alive:
            raise _Refused(503, "unavailable", "the server is shutting down" if guard.draining else "the queue has stopped")
        return {"status": "ready"}

    @app.get("/metrics", summary="Prometheus", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        return Response(generate_latest(guard.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", summary="The one model", responses=schema.reply(schema.ModelsReply))
    async def models() -> Any:
        """`owned_by` tells clients which server this is; the encoder's hash, whether they encode as it does."""
        encoder = service.encoder
        transforms = [name for name in TRANSFORMS if name != "percentile" or service.calibration]
        card = {
            "id": service.name,
            "object": "model",
            "owned_by": "polar-rm",
            "max_model_len": encoder.settings.max_length,
            "encoder_hash": encoder.hash,
            "transforms": transforms,
        }
        return {"object": "list", "data": [card]}


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_reply(400, "invalid_request", wire.explain(error.errors()))

    @app.exception_handler(PolarError)
    async def mistake(_: Request, error: PolarError) -> JSONResponse:
        return error_reply(400, "invalid_request", str(error))

    @app.exception_handler(_Refused)
    async def refused(_: Request, error: _Refused) -> JSONResponse:
        return error.reply

    @app.exception_handler(Overloaded)
    async def overloaded(_: Request, error: Overloaded) -> JSONResponse:
        return error_reply(429, "overloaded", str(error), {"Retry-After": "1"})

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return error_reply(error.status_code, "invalid_request", str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        return error_reply(500, "internal_error", type(error).__name__)


def _admit(n_items: int, limits: Limits, *, characters: int = 0) -> None:
    if n_items > limits.items:
        raise _Refused(413, "too_large", f"{n_items:,} items in one request; at most {limits.items:,} are taken")
    if characters > limits.body_bytes:  # a small body can ask for as much work as a large one
        counted = f"{characters:,} characters in one request, its prompts counted for each output"
        raise _Refused(413, "too_large", f"{counted}; at most {limits.body_bytes:,} are taken")


def _record(request: Request, metrics: Metrics, outcomes: Sequence[Outcome]) -> None:
    """Count what became of the items, and leave a note for the request's log line."""
    for outcome in outcomes:
        metrics.items.labels(outcome.code if isinstance(outcome, Failure) else "ok").inc()
    tokens = sum(outcome.n_tokens for outcome in outcomes if isinstance(outcome, Reward))
    request.scope.setdefault("state", {})["log"] = {"items": len(outcomes), "tokens": tokens}


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Cancel the work when the client hangs up: clients that time out and try again must not pile up in the queue."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Refused(499, "client_closed_request", "the client closed the connection")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def _all_rewards(outcomes: Sequence[Outcome]) -> list[Reward]:
    """Foreign protocols have no place for one item's failure: the request fails, and says which item did."""
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, Failure):
            raise _Refused(_STATUS[outcome.code], outcome.code, f"item {index}: {outcome.message}")
    return [outcome for outcome in outcomes if isinstance(outcome, Reward)]


def _rewards_in(group: list[Outcome] | Failure) -> list[Reward]:
    return [] if isinstance(group, Failure) else [outcome for outcome in group if isinstance(outcome, Reward)]


def _group_reply(index: int, group: list[Outcome] | Failure, scores: Sequence[float]) -> dict[str, Any]:
    if isinstance(group, Failure):
        return {"index": index, "error": {"code": group.code, "message": group.message}}
    left = iter(scores)
    rows: list[dict[str, Any]] = []
    for number, outcome in enumerate(group):
        if isinstance(outcome, Failure):
            rows.append({"index": number, "error": {"code": outcome.code, "message": outcome.message}})
            continue
        cut = {"prompt": outcome.cut.prompt, "reference": outcome.cut.reference, "output": outcome.cut.output}
        score = {"reward": outcome.reward, "score": next(left), "n_tokens": outcome.n_tokens, "cut": cut}
        rows.append({"index": number, **score})
    return {"index": index, "outputs": rows}
