"""The routes of the reward server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import reduce
from importlib import metadata
from importlib.resources import files
from operator import or_
from typing import Annotated, Any, TypeVar

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BeforeValidator
from starlette.exceptions import HTTPException

from polar_rm.errors import PolarError
from polar_rm.protocols import PROTOCOLS, ClassifyRequest, InputProtocol, models, openrlhf, polar
from polar_rm.protocols.base import PoolingFlavour, ReplyContext, explain, inputs_of, is_of_shape
from polar_rm.rewards.calibration import sigmoid
from polar_rm.rewards.combining import check_combine
from polar_rm.rewards.outcomes import Failure, Outcome, Reward
from polar_rm.rewards.transforms import available, check_transform, transform_rewards
from polar_rm.rewards.turns import TurnOutcome
from polar_rm.scoring.examples import example_items, judge, read_examples
from polar_rm.serving import examples, schema
from polar_rm.serving.batching import Overloaded
from polar_rm.serving.guard import Guard, Limits, Metrics, error_reply
from polar_rm.serving.hosts import Hosts
from polar_rm.serving.service import Service

T = TypeVar("T")

# The page contains its style and script, and sends requests only to this server.
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"

_STATUS = {"invalid_item": 400, "non_finite": 500, "model_error": 500}


class _Refused(Exception):
    """An error reply instead of a result."""

    def __init__(self, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.reply = error_reply(status, kind, message, headers)


def create_app(
    service: Service,
    *,
    limits: Limits | None = None,
    flavour: PoolingFlavour = "vllm",
    api_key: str | None = None,
    log_texts: bool = False,
    hosts: Hosts | None = None,
) -> Guard:
    """The ASGI application of a service; it starts and stops the service's queue. ``.app`` is the FastAPI object.

    hosts: the names that a server without a key answers to; default: those of the loopback.
    """
    limits = limits or Limits()
    metrics = Metrics(service.batcher)
    service.batcher.on_batch = metrics.count_batch

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
        docs_url=None,  # FastAPI's documentation pages load scripts from other hosts
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


def _add_engine_routes(app: FastAPI, service: Service, guard: Guard, flavour: PoolingFlavour) -> None:
    """Add one route for each path of the other engines' protocols, which carry rendered texts or token ids."""
    paths: dict[str, list[InputProtocol]] = {}
    for protocol in PROTOCOLS:
        if isinstance(protocol, InputProtocol):
            paths.setdefault(protocol.path, []).append(protocol)
    for path, protocols in paths.items():
        reply = reduce(or_, dict.fromkeys(protocol.reply for protocol in protocols))
        app.post(
            path,
            summary=" and ".join(protocol.summary for protocol in protocols),
            description=examples.DESCRIPTIONS[path],
            responses=schema.reply(reply),
        )(_engine_route(path, protocols, service, guard, flavour))


def _engine_route(path: str, protocols: Sequence[InputProtocol], service: Service, guard: Guard, flavour: PoolingFlavour) -> Any:
    by_body = {protocol.request: protocol for protocol in protocols}  # vLLM and LMDeploy share the body of /pooling
    kind: Any = ClassifyRequest if len(by_body) > 1 else protocols[0].request

    async def route(request: Request, body: Any) -> Any:
        protocol = by_body[type(body)]
        value, add_bos = protocol.inputs(body)
        inputs, single = inputs_of(value)
        _check_size(len(inputs), guard.limits)
        outcomes = await _until_disconnect(request, service.score_inputs(inputs, add_bos=add_bos))
        _record(request, guard.metrics, outcomes)
        return protocol.build_reply(body, _all_rewards(outcomes), ReplyContext(service.name, flavour, single))

    route.__name__ = path.strip("/").replace("/", "_")
    route.__annotations__["body"] = Annotated[kind, Body(openapi_examples=examples.BODIES[path])]
    return route


def _add_item_routes(app: FastAPI, service: Service, guard: Guard) -> None:
    """Add the routes that carry prompts, references and outputs, which the server renders."""

    @app.post(openrlhf.GET_REWARD.path, summary=openrlhf.GET_REWARD.summary, responses=schema.reply(openrlhf.GET_REWARD.reply))
    async def get_reward(
        request: Request, body: Annotated[openrlhf.GetReward, Body(openapi_examples=examples.BODIES["/get_reward"])]
    ) -> Any:
        """The label is the reference, or an object with `reference` and the untemplated `prompt`."""
        if not len(body.query) == len(body.prompts) == len(body.labels):
            raise PolarError("query, prompts and labels must have the same length")
        _check_size(len(body.query), guard.limits)
        rows = list(zip(body.query, body.prompts, body.labels, strict=True))
        work = service.score_rows(rows, polar.text_length, lambda row: openrlhf.openrlhf_item(*row))
        outcomes = await _until_disconnect(request, work)
        _record(request, guard.metrics, outcomes)
        results = _all_rewards(outcomes)
        card = service.calibration
        to_unit = card.percentile if card else sigmoid
        return openrlhf.openrlhf_reply(results, [to_unit(result.reward) for result in results])

    async def score(request: Request, body: Any) -> Any:
        """A result or a typed error for each output, in order. The server renders, tokenises and truncates the texts."""
        good = [group for group in body.items if not isinstance(group, Failure)]
        failed = [group for group in body.items if isinstance(group, Failure)]
        asked = {"anchored": body.anchored, "each_turn": body.each_turn}
        _check_size(sum(group.sequences(**asked) for group in good) + len(failed), guard.limits)
        _check_size(0, guard.limits, characters=sum(group.characters(**asked) for group in good))
        items = [item for group in good for item in group.items()]
        check_transform(body.transform, service.calibration)  # before the work
        check_combine(body.combine, body.transform)
        turns: list[TurnOutcome] = []
        if body.each_turn:
            turns = await _until_disconnect(request, service.score_turns(items))
            outcomes: list[Outcome] = [each if isinstance(each, Failure) else each[-1].reward for each in turns]
        else:
            work = service.score_items(items, anchored=body.anchored, combine=body.combine)
            outcomes = await _until_disconnect(request, work)
        _record(request, guard.metrics, [*outcomes, *failed])
        groups, of_turns = _by_item(body, outcomes), _by_item(body, turns) if turns else [()] * len(body.items)
        scores = transform_rewards(body.transform, [_rewards_in(group) for group in groups], service.calibration)
        rows = enumerate(zip(groups, scores, of_turns, strict=True))
        results = [polar.group_reply(index, group, of_group, turned) for index, (group, of_group, turned) in rows]
        return {"model": service.name, "transform": body.transform, "results": results}

    score.__annotations__["body"] = Annotated[
        _score_request(guard.limits), Body(openapi_examples=examples.BODIES[polar.SCORE.path])
    ]
    app.post(polar.SCORE.path, summary=polar.SCORE.summary, responses=schema.reply(polar.SCORE.reply))(score)


def _by_item(body: polar.ScoreRequest, outcomes: Sequence[T]) -> list[list[T] | Failure]:
    """The outcomes of each item of a body, or why the item is none."""
    remaining = iter(outcomes)
    return [group if isinstance(group, Failure) else [next(remaining) for _ in group.outputs] for group in body.items]


def _score_request(limits: Limits) -> type[polar.ScoreRequest]:
    """Our own body, whose items are counted before they are looked at: what is wrong with each takes its time to tell."""

    def admitted(value: Any) -> Any:
        if isinstance(value, list):
            _check_size(len(value), limits)
        return value

    class ScoreRequest(polar.ScoreRequest):
        items: Annotated[list[polar.AnyItem], BeforeValidator(admitted)]

    ScoreRequest.__doc__ = polar.ScoreRequest.__doc__
    return ScoreRequest


def _add_status_routes(app: FastAPI, service: Service, guard: Guard) -> None:
    page = (files("polar_rm.serving") / "page.html").read_text(encoding="utf-8")

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY})

    known: list[dict[str, Any]] = []

    @app.get("/examples", include_in_schema=False)
    async def page_examples() -> Any:
        """What this model makes of the packaged examples, for the page; scored once, when it is first opened."""
        if known:
            return known[0]
        given = read_examples()
        judged = judge(given, await service.score_items(example_items(given)))
        if not judged["failed"]:
            known.append(judged)
        return judged

    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="The process is running", responses=schema.reply(schema.StatusReply))
    async def health() -> Any:
        return {"status": "ok"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", summary="The server accepts requests", responses=schema.reply(schema.StatusReply))
    async def ready() -> Any:
        if guard.draining or not service.batcher.alive:
            raise _Refused(503, "unavailable", "the server is shutting down" if guard.draining else "the queue has stopped")
        return {"status": "ready"}

    @app.get("/metrics", summary="Prometheus", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        return Response(generate_latest(guard.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", summary="The model", responses=schema.reply(models.ModelsReply))
    async def model_list() -> Any:
        """`owned_by` identifies the server to clients. `encoder_hash` lets them check that they encode as the server does."""
        encoder = service.encoder
        calibration = service.calibration.to_json() if service.calibration else {}
        calibration.pop("schema", None)
        card = {
            "id": service.name,
            "object": "model",
            "owned_by": "polar-rm",
            "max_model_len": encoder.settings.max_length,
            "encoder_hash": encoder.hash,
            "transforms": available(service.calibration),
            "dtype": service.dtype,
            "device": service.device,
            **({"calibration": calibration} if calibration else {}),
        }
        return {"object": "list", "data": [card]}


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        example = examples.hint(request.url.path) if is_of_shape(errors) else ""
        return error_reply(400, "invalid_request", f"{explain(errors)}{example}")

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
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        headers, message = dict(error.headers or {}), str(error.detail)
        if error.status_code == 404:
            message = f"there is no such path here: {schema.paths_of(app)}"
        elif error.status_code == 405:
            message = f"{request.method} is not for this path: use {headers.get('Allow', headers.get('allow', 'another method'))}"
            message += examples.hint(request.url.path)
        return error_reply(error.status_code, "invalid_request", message, headers)

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        return error_reply(500, "internal_error", type(error).__name__)


def _check_size(n_items: int, limits: Limits, *, characters: int = 0) -> None:
    if n_items > limits.items:
        raise _Refused(413, "too_large", f"{n_items:,} items in one request; the limit is {limits.items:,}")
    if characters > limits.body_bytes:  # a small body can cause as much work as a large one
        count = f"{characters:,} characters in one request, where prompts count once for each output"
        raise _Refused(413, "too_large", f"{count}; the limit is {limits.body_bytes:,}")


def _record(request: Request, metrics: Metrics, outcomes: Sequence[Outcome]) -> None:
    """Count the outcomes, and store the numbers for the request's log line."""
    for outcome in outcomes:
        metrics.items.labels(outcome.code if isinstance(outcome, Failure) else "ok").inc()
    tokens = sum(outcome.n_tokens for outcome in outcomes if isinstance(outcome, Reward))
    request.scope.setdefault("state", {})["log"] = {"items": len(outcomes), "tokens": tokens}


async def _until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Cancel the work when the client disconnects, so that clients that time out and retry do not fill the queue."""
    task, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Refused(499, "client_closed_request", "the client closed the connection")
        return task.result()
    finally:
        task.cancel()
        disconnect.cancel()


def _all_rewards(outcomes: Sequence[Outcome]) -> list[Reward]:
    """The rewards. Foreign protocols can't report the failure of one item, so the whole request fails and names the item."""
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, Failure):
            raise _Refused(_STATUS[outcome.code], outcome.code, f"item {index}: {outcome.message}")
    return [outcome for outcome in outcomes if isinstance(outcome, Reward)]


def _rewards_in(group: list[Outcome] | Failure) -> list[Reward]:
    return [] if isinstance(group, Failure) else [outcome for outcome in group if isinstance(outcome, Reward)]
