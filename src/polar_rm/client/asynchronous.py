"""Clients for reward servers: ours, vLLM, SGLang and LMDeploy. They need neither torch nor transformers.

    with RewardClient("http://127.0.0.1:30000") as client:
        outcomes = client.score([ScoreItem("What is the capital of China?", "Beijing.", "Shanghai.")])
        values = rewards(outcomes)  # raises if an item has no reward

Every item gets one outcome: a Reward, or a Failure with its reason. Mistakes in the set-up (a wrong URL, an unknown server, a
model whose encoder differs from the server's) raise a PolarError.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from polar_rm.client.batches import Batch, EncodedItem, Entry, by_group, encode
from polar_rm.client.outages import Outage
from polar_rm.common.http import Reply, Transport, checked_key, server_url
from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import EncoderMismatch, PolarError
from polar_rm.protocols import ENGINES, BadReply, Engine, polar, recognise
from polar_rm.records import ScoreItem
from polar_rm.rewards.anchors import AnchoredItems
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.combining import Combine, ReferencedItems
from polar_rm.rewards.outcomes import Cut, Failure, FailureCode, Outcome, Reward
from polar_rm.rewards.scale import Scale
from polar_rm.rewards.turns import TurnItems, TurnOutcome

T = TypeVar("T")
# Worth another attempt: the server is busy, starting or stopping, or a proxy lost it.
_TRANSIENT = {408, 425, 429, 502, 503, 504}
# These refuse every item: splitting the request can't help.
_GENERAL = {401, 403, 404, 405}

# Timeout of one attempt of the first request, which every server answers immediately.
_PROBE_SECONDS = 10.0

_log = logging.getLogger("polar_rm.client")


class _Refused(Exception):
    """The server refuses this request; another attempt would not change that."""

    def __init__(self, status: int, url: str, message: str) -> None:
        super().__init__(f"HTTP {status} from {url}: {message}")
        self.status = status


class _Unavailable(Exception):
    """No answer before the deadline."""


class _Absent(_Unavailable):
    """No server listens at the address, and none has answered there before."""


@dataclass(frozen=True, slots=True)
class _Server:
    engine: Engine
    model: str | None  # the name under which the server offers the model
    calibration: Calibration | None = None


class AsyncRewardClient:
    """Scores items concurrently over a pool of connections; use it within one event loop.

    url: the server's, ``http://HOST:PORT`` or ``HOST:PORT``. model: checkpoint folder (or its Encoder). Foreign engines need it,
    because the client sends them token ids; for our own server its encoder is compared with the server's. engine: the kind of
    server, instead of asking it. timeout: seconds of one attempt. deadline: seconds of one call with all its attempts; transient
    errors are logged and retried until then, with exponential back-off and jitter, or after the server's Retry-After.
    first_contact: seconds after which a refused connection is an error, as long as no server has ever answered.
    max_concurrency: maximum number of requests in flight. items_per_request: maximum; small requests spread over replicas, and
    the server merges them again.
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
        first_contact: float = 5.0,
        max_concurrency: int = 32,
        items_per_request: int = 64,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if engine is not None and engine not in ENGINES:
            raise PolarError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
        self.url = server_url(url)
        self._deadline, self._first_contact = deadline, first_contact
        self._items_per_request = items_per_request
        self._engine = engine
        self._server: _Server | None = None
        self._has_answered = False  # whether a server has ever answered at this URL
        self._outage = Outage(self.url)
        self._probing = asyncio.Lock()
        self._slots = asyncio.Semaphore(max_concurrency)
        # No proxies: the server is named explicitly, and the official client does not use them either.
        self._transport = Transport(
            self.url,
            api_key=None if api_key is None else checked_key(api_key, "api_key"),
            timeout=timeout,
            max_connections=max_concurrency,
            client_transport=transport,
        )
        self.encoder = Encoder.from_pretrained(model) if isinstance(model, (str, Path)) else model
        self.folder = model if isinstance(model, (str, Path)) else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    async def check(self) -> None:
        """Find the server, within about ``first_contact`` seconds. A silent server passes: it may be loading its model.

        Raises:
            PolarError: no server listens there, it refuses us, or it is of an unknown kind.
            EncoderMismatch: the encoder of ``model`` differs from that of our server.
        """
        try:
            await self._find(time.monotonic() + self._first_contact)
        except (_Absent, _Refused) as error:
            raise PolarError(str(error)) from None
        except _Unavailable as error:
            _log.warning("reward server %s: %s", self.url, error)

    async def calibration(self) -> Calibration | None:
        """The calibration card of the model: the one that our server tells, or of other engines the one in the folder ``model``.

        Raises:
            PolarError: the server can't be reached or is of an unknown kind, or the folder's card belongs to another model.
        """
        server = await self._probe(time.monotonic() + self._deadline)
        if isinstance(server, Failure):
            raise PolarError(server.message)
        if server.engine == "polar":
            return server.calibration
        return self._folder_card

    @cached_property
    def _folder_card(self) -> Calibration | None:
        return Calibration.load(self.folder) if self.folder else None

    async def score(self, items: Sequence[ScoreItem], *, anchored: bool = False, combine: Combine = "mean") -> list[Outcome]:
        """One outcome per item, in order.

        anchored: score the references themselves, too: rewards get their ``anchor``, and where there is a calibration card their
        ``probability``; our server also tells the ``deviation``. Items with an empty reference fail then. combine: how rewards
        under several references become one; ``best`` scores the references, too.

        Raises:
            PolarError: the server is of an unknown kind, or foreign while ``model`` is None.
            EncoderMismatch: the encoder of ``model`` differs from that of our server.
        """
        until = time.monotonic() + self._deadline
        server = await self._probe(until)
        if isinstance(server, Failure):
            return [server] * len(items)
        # Each reference is an item of its own on the way: so every engine can do it, and requests stay small.
        plan = ReferencedItems.of(items)
        outcomes = await self._score_on(server, plan.to_score, until, anchored or combine == "best")
        if plan.is_plain(combine):
            return outcomes
        return plan.outcomes(outcomes, combine, Scale(server.calibration if server.engine == "polar" else self._folder_card))

    async def score_turns(self, items: Sequence[ScoreItem]) -> list[TurnOutcome]:
        """For each item the rewards of all turns of the assistant in its output, as :meth:`Scorer.score_turns`, or a failure.

        Our server computes a conversation once. To other engines each turn goes as an item of its own, with the same result. An
        item with several references, or whose output has no turn, fails.

        Raises:
            PolarError, EncoderMismatch: as for :meth:`score`.
        """
        until = time.monotonic() + self._deadline
        server = await self._probe(until)
        if isinstance(server, Failure):
            return [server] * len(items)
        plan = TurnItems.of(items)
        if server.engine == "polar":
            whole = [item for item, ends in zip(items, plan.ends, strict=True) if not isinstance(ends, Failure)]
            found = iter(await self._post(by_group(whole), lambda part: self._post_turns(part, until)))
            return [ends if isinstance(ends, Failure) else next(found) for ends in plan.ends]
        return plan.outcomes(await self._score_on(server, plan.to_score, until, anchored=False))

    async def _score_on(self, server: _Server, items: Sequence[ScoreItem], until: float, anchored: bool) -> list[Outcome]:
        """The outcomes of items with one reference each."""
        if server.engine == "polar":
            return await self._post(by_group(items), lambda part: self._post_items(part, until, anchored))
        if self.encoder is None:
            raise PolarError(f"{self.url} is a {server.engine} server: set model=, the checkpoint folder to encode with")
        if not anchored:
            return await self._encode_and_post(server, items, self.encoder, until)
        scale = Scale(self._folder_card)  # refuses the card of another model before anything is sent
        plan = AnchoredItems.of(items)
        return plan.outcomes(await self._encode_and_post(server, plan.to_score, self.encoder, until), scale)

    async def score_ids(self, sequences: Sequence[list[int]]) -> list[Outcome]:
        """One outcome per sequence of token ids (from :mod:`polar_rm.encoding`), in order."""
        until = time.monotonic() + self._deadline
        server = await self._probe(until)
        if isinstance(server, Failure):
            return [server] * len(sequences)
        batch = Batch([EncodedItem(ids, Cut()) for ids in sequences], list(range(len(sequences))), {})
        return await self._post(batch, lambda part: self._post_ids(server, part, until))

    async def _probe(self, until: float) -> _Server | Failure:
        """The server, or a failure if it can't be reached."""
        try:
            return await self._find(until)
        except _Unavailable as error:
            return Failure("unavailable", str(error))
        except _Refused as error:
            return Failure("refused", str(error))

    async def _find(self, until: float) -> _Server:
        """The server, determined once. With a named engine any answer is enough."""
        async with self._probing:
            if self._server is None:
                try:
                    self._server = self._recognised(await self._send("GET", "/v1/models", None, until))
                except _Refused as error:
                    if self._engine is None or error.status in (401, 403):
                        raise
                    self._server = _Server(self._engine, None)
                except BadReply as error:
                    if self._engine is None:
                        raise PolarError(f"{self.url}: {error}") from None
                    self._server = _Server(self._engine, None)
            return self._server

    def _recognised(self, models: Any) -> _Server:
        if self._engine is not None:
            return _Server(self._engine, None)
        engine, card = recognise(models)
        server_hash = card.get("encoder_hash")
        if self.encoder and server_hash not in (None, self.encoder.hash):
            raise EncoderMismatch(
                f"{self.url}: the server's encoder (hash {server_hash}) differs from that of the model folder "
                f"(hash {self.encoder.hash})"
            )
        return _Server(engine, card.get("id"), self._card(card.get("calibration")))

    def _card(self, values: Any) -> Calibration | None:
        try:
            return None if values is None else Calibration.from_json(values)
        except (PolarError, ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
            raise PolarError(f"{self.url}: the server's calibration card can't be read: {error!r}") from None

    async def _post(
        self, batch: Batch[Entry], post: Callable[[Sequence[Entry]], Awaitable[list[T | Failure]]]
    ) -> list[T | Failure]:
        """Send a batch in several requests; returns the outcomes of all items in their original order."""
        size = self._items_per_request
        parts = [batch.entries[start : start + size] for start in range(0, len(batch.entries), size)]
        answers = await asyncio.gather(*(_split_on_refusal(part, post) for part in parts))
        outcomes: dict[int, T | Failure] = dict(batch.failed)
        outcomes.update(zip(batch.indices, (outcome for answer in answers for outcome in answer), strict=True))
        return [outcomes[index] for index in range(len(outcomes))]

    async def _encode_and_post(
        self, server: _Server, items: Sequence[ScoreItem], encoder: Encoder, until: float
    ) -> list[Outcome]:
        encoded = await asyncio.get_running_loop().run_in_executor(None, encode, items, encoder)
        return await self._post(encoded, lambda part: self._post_ids(server, part, until))

    async def _post_items(self, items: Sequence[ScoreItem], until: float, anchored: bool) -> list[Outcome]:
        body = polar.request_for_items(items, anchored=anchored)
        return polar.read_outcomes(body, await self._send("POST", polar.SCORE.path, body, until))

    async def _post_turns(self, items: Sequence[ScoreItem], until: float) -> list[TurnOutcome]:
        body = polar.request_for_items(items, each_turn=True)
        return polar.read_turns(body, await self._send("POST", polar.SCORE.path, body, until))

    async def _post_ids(self, server: _Server, items: Sequence[EncodedItem], until: float) -> list[Outcome]:
        sequences = [item.ids for item in items]
        *others, last = ENGINES[server.engine]
        for protocol in (*others, last):
            try:
                reply = await self._send("POST", protocol.path, protocol.build_request(server.model, sequences), until)
                break
            except _Refused as error:
                if error.status != 404 or protocol is last:
                    raise
        scores = protocol.read_reply(reply, len(items))
        return [
            score if isinstance(score, Failure) else Reward.noted(score, len(item.ids), item.cut, item.notes)
            for item, score in zip(items, scores, strict=True)
        ]

    async def _send(self, method: str, path: str, body: dict[str, Any] | None, until: float) -> Any:
        """The JSON of a successful reply; transient errors are retried until the deadline."""
        started, attempt = time.monotonic(), 0
        cause = ""  # the last reason that is no timeout
        while True:
            async with self._slots:
                latest = until if self._has_answered else min(until, time.monotonic() + _PROBE_SECONDS)
                reply = await self._transport.send(method, path, body, latest)
            if isinstance(reply, Reply) and reply.status not in _TRANSIENT:
                self._has_answered = True
                self._outage.answered()
                return _content(reply, self._transport)
            attempt += 1
            end, pause, absent = until, 0.0, False
            if isinstance(reply, Reply):
                self._has_answered = True
                cause = reason = f"HTTP {reply.status}: {self._transport.error_text(reply, 300)}"
                pause = reply.retry_after or 0.0
            else:
                if reply.kind in ("too_large", "unreadable"):
                    raise BadReply(reply.message)
                # The last attempt may have a moment only: what an earlier one met says more.
                cause = cause if reply.kind == "timeout" else reply.message
                reason = f"{cause}, then {reply.message}" if cause and reply.kind == "timeout" else reply.message
                if absent := reply.kind == "absent" and not self._has_answered:
                    end = min(until, started + self._first_contact)
            # Full jitter, so that clients that failed together do not retry together.
            pause = pause or random.uniform(0, min(10.0, 0.2 * 2**attempt))
            if time.monotonic() + pause > end:
                if absent:
                    raise _Absent(
                        f"no server answers at {self.url}: {reason}; is the reward server running? ({attempt} attempts)"
                    )
                raise _Unavailable(f"{reason} ({attempt} attempts)")
            self._outage.failed(reason, end)
            await asyncio.sleep(pause)


def _content(reply: Reply, transport: Transport) -> Any:
    """The JSON of a reply that is not worth another attempt."""
    if reply.status >= 400:
        raise _Refused(reply.status, reply.url, transport.error_text(reply, 300))
    if reply.status >= 300:
        target = reply.headers.get("location", "nowhere")
        raise BadReply(f"HTTP {reply.status}: a redirect to {target[:300]}; use the URL of the server itself")
    try:
        return json.loads(reply.content)
    except (ValueError, RecursionError):
        raise BadReply("the reply is not JSON") from None


async def _split_on_refusal(
    part: Sequence[Entry], post: Callable[[Sequence[Entry]], Awaitable[list[T | Failure]]]
) -> list[T | Failure]:
    """Foreign engines refuse a whole request for one bad item. A refused request is halved until only the bad items fail."""
    try:
        return await post(part)
    except _Unavailable as error:
        return [Failure("unavailable", str(error))] * len(part)
    except BadReply as error:
        return [Failure("bad_reply", str(error))] * len(part)
    except _Refused as error:
        if len(part) == 1 or error.status in _GENERAL:
            code: FailureCode = "model_error" if error.status == 500 else "refused"
            return [Failure(code, str(error))] * len(part)
        half = len(part) // 2
        answers = await asyncio.gather(_split_on_refusal(part[:half], post), _split_on_refusal(part[half:], post))
        return [outcome for answer in answers for outcome in answer]
