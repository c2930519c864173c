"""Clients for reward servers: ours, vLLM, SGLang and LMDeploy. Needs neither torch nor transformers.

    with RewardClient("http://127.0.0.1:30000") as client:
        outcomes = client.score([ScoreItem("What is the capital of China?", "Beijing.", "Shanghai.")])
        values = rewards(outcomes)  # raises if an item has none

Every item gets one outcome, a Reward or a Failure with its reason. Mistakes in the set-up (a wrong URL, an unknown server, an
encoder that is not the server's) raise a PolarError.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from polar_rm.client.jobs import Ids, Job, Jobs, by_group, encode
from polar_rm.common.http import message_of, retry_after
from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import EncoderMismatch, PolarError
from polar_rm.protocols import engines as protocols
from polar_rm.protocols.engines import BadReply, Engine
from polar_rm.records import ScoreItem
from polar_rm.rewards.outcomes import Cut, Failure, FailureCode, Outcome, Reward

T = TypeVar("T")
# Worth another try: the server is busy, starting or stopping, or a proxy lost it.
_TRANSIENT = {408, 425, 429, 502, 503, 504}
# The same for every item: splitting the request can't help.
_GENERAL = {401, 403, 404, 405}


class _Refused(Exception):
    """The server will not answer this request, however often it is sent."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status


class _Unavailable(Exception):
    """No answer before the deadline."""


@dataclass(frozen=True, slots=True)
class _Server:
    engine: Engine
    model: str | None  # the name it serves under


class AsyncRewardClient:
    """Scores items concurrently over a pool of connections; use it within one event loop.

    url: of the server, with scheme and port. model: checkpoint folder (or its Encoder); needed for foreign engines, which are
    sent token ids, and checked against our own server's encoder. engine: skips the question which server it is.
    timeout: seconds of one try. deadline: seconds of one call with all its tries; transient errors are retried until then, with
    exponential back-off and jitter or as the server's Retry-After says. max_concurrency: requests in flight.
    items_per_request: at most; small requests spread over replicas, the server merges them again.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | Path | Encoder | None = None,
        engine: Engine | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        deadline: float = 600.0,
        max_concurrency: int = 32,
        items_per_request: int = 64,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if engine is not None and engine not in protocols.ENGINES:
            raise PolarError(f"unknown engine {engine!r}; known: {', '.join(protocols.ENGINES)}")
        self.encoder = Encoder.from_pretrained(model) if isinstance(model, (str, Path)) else model
        self._timeout, self._deadline = timeout, deadline
        self._items_per_request = items_per_request
        self._server = _Server(engine, None) if engine else None
        self._probing = asyncio.Lock()
        self._slots = asyncio.Semaphore(max_concurrency)
        try:
            # Rewards come from a named host: a proxy of the environment would only get in the way (the official client agrees).
            self._http = httpx.AsyncClient(
                base_url=url,
                headers=protocols.authorization(api_key),
                limits=httpx.Limits(max_connections=max_concurrency, max_keepalive_connections=max_concurrency),
                trust_env=False,
                transport=transport,
            )
        except httpx.InvalidURL as error:
            raise PolarError(f"{url!r} is not a URL: {error}") from None
        if self._http.base_url.scheme not in ("http", "https") or not self._http.base_url.host:
            raise PolarError(f"{url!r} is not a URL: expected http://HOST:PORT")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        """One outcome per item, in order.

        Raises:
            PolarError: the server is none that we know, or a foreign one and ``model`` was not given.
            EncoderMismatch: ``model`` does not encode as our server does.
        """
        until = time.monotonic() + self._deadline
        server = await self._probe(until)
        if isinstance(server, Failure):
            return [server] * len(items)
        if server.engine == "polar":
            return await self._in_requests(by_group(items), lambda part: self._post_items(part, until))
        if self.encoder is None:
            raise PolarError(
                f"{self._http.base_url} is a {server.engine} server: give model=, the checkpoint folder to encode with"
            )
        encoded = await asyncio.get_running_loop().run_in_executor(None, encode, items, self.encoder)
        return await self._in_requests(encoded, lambda part: self._post_ids(server, part, until))

    async def score_ids(self, sequences: Sequence[list[int]]) -> list[Outcome]:
        """One outcome per sequence of token ids as :mod:`polar_rm.encoding` makes them, in order."""
        until = time.monotonic() + self._deadline
        server = await self._probe(until)
        if isinstance(server, Failure):
            return [server] * len(sequences)
        jobs = Jobs([Ids(ids, Cut()) for ids in sequences], list(range(len(sequences))), {})
        return await self._in_requests(jobs, lambda part: self._post_ids(server, part, until))

    async def _probe(self, until: float) -> _Server | Failure:
        """Which server this is, asked once; a failure where it can't be reached."""
        async with self._probing:
            if self._server is None:
                try:
                    self._server = self._recognised(await self._send("GET", "/v1/models", None, until))
                except _Unavailable as error:
                    return Failure("unavailable", str(error))
                except _Refused as error:
                    return Failure("refused", str(error))
                except BadReply as error:
                    raise PolarError(f"{self._http.base_url}: {error}") from None
            return self._server

    def _recognised(self, models: Any) -> _Server:
        engine, card = protocols.recognise(models)
        theirs = card.get("encoder_hash")
        if self.encoder and theirs not in (None, self.encoder.hash):
            raise EncoderMismatch(
                f"{self._http.base_url}: the server encodes otherwise than the model folder (its encoder's hash is {theirs}, "
                f"the folder's {self.encoder.hash})"
            )
        return _Server(engine, card.get("id"))

    async def _in_requests(self, jobs: Jobs[Job], post: Callable[[Sequence[Job]], Awaitable[list[Outcome]]]) -> list[Outcome]:
        """Outcomes of all items, each at its place."""
        size = self._items_per_request
        parts = [jobs.todo[start : start + size] for start in range(0, len(jobs.todo), size)]
        answers = await asyncio.gather(*(_split_on_refusal(part, post) for part in parts))
        outcomes: dict[int, Outcome] = dict(jobs.failed)
        outcomes.update(zip(jobs.places, (outcome for answer in answers for outcome in answer), strict=True))
        return [outcomes[place] for place in range(len(outcomes))]

    async def _post_items(self, items: Sequence[ScoreItem], until: float) -> list[Outcome]:
        path, body = protocols.score_request(items)
        return protocols.score_outcomes(body, await self._send("POST", path, body, until))

    async def _post_ids(self, server: _Server, jobs: Sequence[Ids], until: float) -> list[Outcome]:
        sequences = [job.ids for job in jobs]
        path, body = protocols.ids_request(server.engine, server.model, sequences)
        try:
            reply = await self._send("POST", path, body, until)
        except _Refused as error:
            if server.engine != "vllm" or error.status != 404:
                raise
            path, body = protocols.pooling_request(server.model, sequences)
            reply = await self._send("POST", path, body, until)
        scores = protocols.ids_scores(reply, len(jobs))
        return [
            score if isinstance(score, Failure) else Reward(score, len(job.ids), job.cut)
            for job, score in zip(jobs, scores, strict=True)
        ]

    async def _send(self, method: str, path: str, body: dict[str, Any] | None, until: float) -> Any:
        """The JSON of a good reply; transient errors are retried until the deadline."""
        attempt = 0
        while True:
            reason, pause = await self._try(method, path, body, until)
            if pause is None:
                return reason
            attempt += 1
            # Full jitter: clients that failed together don't come back together.
            pause = pause or random.uniform(0, min(10.0, 0.2 * 2**attempt))
            if time.monotonic() + pause > until:
                raise _Unavailable(f"{reason} ({attempt} tries)")
            await asyncio.sleep(pause)

    async def _try(self, method: str, path: str, body: dict[str, Any] | None, until: float) -> tuple[Any, float | None]:
        """(JSON, None), or a transient error's reason and the pause that the server wishes (0: no wish)."""
        async with self._slots:
            left = until - time.monotonic()
            if left <= 0:
                raise _Unavailable("the deadline passed while waiting for a connection")
            seconds = min(self._timeout, left)
            try:
                async with asyncio.timeout(seconds):  # httpx's own is one for each read: a trickle would never end
                    reply = await self._http.request(method, path, json=body, timeout=None)
            except TimeoutError:
                return f"no answer within {seconds:.3g} s", 0.0
            except httpx.TransportError as error:
                return f"{type(error).__name__} {error}".strip(), 0.0
            except httpx.DecodingError as error:
                raise BadReply(f"the reply can't be unpacked: {error}") from None
        if reply.status_code in _TRANSIENT:
            return f"HTTP {reply.status_code}: {_message(reply)}", retry_after(reply) or 0.0
        if reply.status_code >= 400:
            raise _Refused(reply.status_code, _message(reply))
        if reply.status_code >= 300:
            where = reply.headers.get("location", "nowhere")
            raise BadReply(f"HTTP {reply.status_code}: a redirect to {where[:300]}; give the URL of the server itself")
        try:
            return json.loads(reply.content), None
        except (ValueError, RecursionError):
            raise BadReply("the reply is not JSON") from None


async def _split_on_refusal(jobs: Sequence[Job], post: Callable[[Sequence[Job]], Awaitable[list[Outcome]]]) -> list[Outcome]:
    """Foreign engines refuse a whole request for one bad item: halves are tried until only the culprits fail."""
    try:
        return await post(jobs)
    except _Unavailable as error:
        return [Failure("unavailable", str(error))] * len(jobs)
    except BadReply as error:
        return [Failure("bad_reply", str(error))] * len(jobs)
    except _Refused as error:
        if len(jobs) == 1 or error.status in _GENERAL:
            code: FailureCode = "model_error" if error.status == 500 else "refused"
            return [Failure(code, str(error))] * len(jobs)
        half = len(jobs) // 2
        answers = await asyncio.gather(_split_on_refusal(jobs[:half], post), _split_on_refusal(jobs[half:], post))
        return [outcome for answer in answers for outcome in answer]


def _message(reply: httpx.Response) -> str:
    return (message_of(reply) or reply.reason_phrase)[:300]
