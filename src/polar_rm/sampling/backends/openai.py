"""Policies behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama or a hosted service.

We use httpx rather than the ``openai`` package, because every bad answer must become a typed outcome, and retries must be counted
and spaced in one place.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Iterable, Iterator
from threading import Event
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from polar_rm.common.http import NoReply, Reply, Transport, key_from_environment, server_url
from polar_rm.common.limits import MAX_BATCH
from polar_rm.errors import PolarError
from polar_rm.sampling.base import Emit, Machine, NoSample, Outcome, Policy, PolicyDown, Request, Sample

BACKOFF_S = 1.0  # before the first retry; doubles, with jitter
MAX_BACKOFF_S = 60.0
START_PATIENCE_S = 3.0  # for an address at which nothing has answered yet; then the policy is down
MAX_FAILURES_IN_A_ROW = 3  # requests that failed in all their attempts; then the policy is down

# vLLM and OpenAI ("maximum context length"), SGLang ("longer than the model's context length"), llama.cpp ("context size").
_TOO_LONG = re.compile(r"context.{0,3}(length|size|window)|(prompt|input) is too long", re.IGNORECASE)
_RESERVED_FIELDS = (
    "model",
    "messages",
    "prompt",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
)
# What servers do without a field. If a field is not sent, the decoding must ask for this value.
_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
Unsupported = Literal["temperature", "top_p", "top_k", "seed", "stop", "n", "max_tokens"]
_POLICY_WIDE = {401: "the key was refused", 402: "payment is required", 403: "access was refused", 404: "no such model or URL"}
_NO_REPLY: dict[str, Literal["connection", "timeout", "garbled"]] = {
    "absent": "connection",
    "connection": "connection",
    "timeout": "timeout",
    "broken": "garbled",
    "unreadable": "garbled",
    "too_large": "garbled",
}


class OpenAIPolicy(Policy):
    """A policy behind a server. Base policies use ``/completions``, chat policies ``/chat/completions``.

    Each request asks for one sample, with its own seed. vLLM takes defaults from the model's generation_config.json: start it
    with ``--generation-config vllm``, or set repetition_penalty in ``extra_body``.
    """

    backend: Literal["openai"] = "openai"
    model: str = Field(description="The server's name of the model.")  # no folder, and no id of the Hub
    base_url: str = Field(description="Base URL of the server's API with its version, such as http://localhost:8000/v1.")
    api_key_env: str | None = Field(None, description="NAME of the environment variable with the key, never the key itself.")
    concurrency: PositiveInt = Field(16, le=MAX_BATCH, description="Maximum number of requests in progress.")
    requests_per_minute: float | None = Field(
        None, gt=0, description="Maximum number of requests per minute, retries included; default: no limit."
    )
    timeout: float = Field(600.0, gt=0, description="Seconds that one attempt may take.")
    retries: NonNegativeInt = Field(
        6, description="Further attempts after HTTP 429 and 5xx, timeouts, lost connections and malformed answers."
    )
    unsupported: tuple[Unsupported, ...] = Field(
        (), description="Fields that the server refuses: they are not sent. Their values must then be the server's defaults."
    )
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="The server's name for the limit on new tokens; reasoning models want max_completion_tokens."
    )
    extra_body: dict[str, Any] = Field({}, description="Further fields of every request, such as {repetition_penalty: 1.0}.")

    NOT_IN_IDENTITY: ClassVar[frozenset[str]] = Policy.NOT_IN_IDENTITY | {
        "base_url",
        "api_key_env",
        "concurrency",
        "requests_per_minute",
        "timeout",
        "retries",
        "max_tokens_key",
    }
    IS_LOCAL: ClassVar[bool] = False

    @model_validator(mode="after")
    def _holds_no_secret(self) -> OpenAIPolicy:
        # The messages must not repeat the value, which may be a key.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError(f"policy {self.name!r}: api_key_env is the NAME of an environment variable, never the key")
        try:
            if "://" not in self.base_url:
                raise PolarError("expected a URL such as http://localhost:8000/v1")
            server_url(self.base_url, path=True)
        except PolarError as error:
            raise ValueError(f"policy {self.name!r}: base_url: {error}") from None
        for name, default in _DEFAULTS.items():
            if name in self.unsupported and getattr(self.decoding, name) != default:  # rows would state a wrong value
                raise ValueError(
                    f"policy {self.name!r}: the server takes no {name}; set decoding.{name}: {default:g}, which is how it samples"
                )
        if reserved := [name for name in self.extra_body if name in _RESERVED_FIELDS]:
            raise ValueError(
                f"policy {self.name!r}: extra_body can't hold {', '.join(reserved)}: other keys of the policy set them"
            )
        return self

    def is_seeded(self) -> bool:
        """Whether requests contain a seed."""
        return "seed" not in self.unsupported

    def max_concurrent(self, machine: Machine) -> int:
        """Maximum number of requests in progress; ``machine`` is not used."""
        return self.concurrency

    def open(self, machine: Machine) -> OpenAIBackend:
        """See :meth:`Policy.open`; nothing is sent yet."""
        return OpenAIBackend(self)

    def url(self) -> str:
        """The URL of the requests."""
        return f"{self.base_url.rstrip('/')}/{'chat/completions' if self.kind == 'chat' else 'completions'}"

    def body(self, request: Request) -> dict[str, Any]:
        """The JSON body of a request."""
        decoding = self.decoding
        prompt = {"messages": self.messages(request.prompt)} if self.kind == "chat" else {"prompt": self.text(request.prompt)}
        sampling = {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": decoding.top_k or -1,
            "seed": request.seed,
        }
        limits = {"n": 1, "max_tokens": decoding.max_new_tokens}
        fields = limits | sampling | ({"stop": list(self.stop)} if self.stop else {})
        sent = {name: value for name, value in fields.items() if name not in self.unsupported}
        if "max_tokens" in sent:
            sent[self.max_tokens_key] = sent.pop("max_tokens")
        return {"model": self.model, **prompt, **sent, **self.extra_body}


class OpenAIBackend:
    """Sends requests to one server. Raises PolarError if the key's variable is not set or holds no valid key."""

    def __init__(self, policy: OpenAIPolicy) -> None:
        self.policy = policy
        self.was_reached = False
        variable = policy.api_key_env
        self.key = key_from_environment(variable, f"policy {policy.name!r}: api_key_env") if variable else None

    def run(self, requests: Iterable[Request], emit: Emit, stop: Event) -> None:
        """See :class:`Backend`. PolicyDown: no server, it refuses the key or the model, or no request succeeds any more."""
        asyncio.run(self._run(iter(requests), emit, stop))

    async def _run(self, requests: Iterator[Request], emit: Emit, stop: Event) -> None:
        concurrency = self.policy.concurrency
        self.began = time.monotonic()
        self.limiter, self.failed_in_a_row, self.has_sample = _RateLimiter(self.policy.requests_per_minute), 0, False
        async with Transport(
            self.policy.base_url.rstrip("/"),
            api_key=self.key,
            timeout=self.policy.timeout,
            max_connections=concurrency,
            proxies=True,
        ) as transport:
            workers = [asyncio.create_task(self._work(transport, requests, emit)) for _ in range(concurrency)]
            pending = set(workers)
            try:
                while pending and not stop.is_set():
                    done, pending = await asyncio.wait(pending, timeout=0.2, return_when=asyncio.FIRST_EXCEPTION)
                    for worker in done:
                        worker.result()
            finally:
                for worker in pending:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, transport: Transport, requests: Iterator[Request], emit: Emit) -> None:
        for request in requests:  # all workers share the iterator; they switch only at an await
            outcome = await self._send(transport, request)
            emit(request, outcome)
            self._check_health(outcome)

    def _check_health(self, outcome: Outcome) -> None:
        """Raises PolicyDown after several failures in a row; one failure may be the fault of its request."""
        if isinstance(outcome, Sample):
            self.failed_in_a_row, self.has_sample = 0, True
        elif outcome.kind in ("empty", "too_long") or (outcome.kind == "refused" and self.has_sample):
            return
        else:
            self.failed_in_a_row += 1
            if self.failed_in_a_row >= MAX_FAILURES_IN_A_ROW:
                raise PolicyDown(f"{self.policy.url()}: {outcome.message} ({MAX_FAILURES_IN_A_ROW} requests in a row failed)")

    async def _send(self, transport: Transport, request: Request) -> Outcome:
        """One sample, or the failure of the last attempt."""
        body = json.dumps(self.policy.body(request)).encode()  # escapes: no character can break the request
        attempt = 0
        while True:
            attempt += 1
            await self.limiter.acquire()
            outcome, retry_after = await self._attempt(transport, body)
            if isinstance(outcome, Sample) or outcome.is_final or attempt > self.policy.retries:
                break
            if retry_after is not None:
                self.limiter.pause(retry_after)  # all workers wait, as the server asked
            backoff = min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
            if not self.was_reached:  # the last attempt at the end of the patience
                backoff = min(backoff, max(0.0, self.began + START_PATIENCE_S - time.monotonic()))
            await asyncio.sleep(backoff)
        if isinstance(outcome, NoSample):
            return NoSample(outcome.kind, outcome.message, attempt)
        return outcome

    async def _attempt(self, transport: Transport, body: bytes) -> tuple[Outcome, float | None]:
        """The outcome, and the seconds that the server asked us to wait."""
        answer = await transport.send("POST", self.policy.url().removeprefix(transport.url), body)
        self.was_reached = self.was_reached or not (isinstance(answer, NoReply) and answer.kind == "absent")
        if isinstance(answer, NoReply):
            if not self.was_reached and time.monotonic() - self.began >= START_PATIENCE_S:
                raise PolicyDown(f"{self.policy.url()}: no connection: {answer.message} (no server has answered here)")
            kind = _NO_REPLY[answer.kind]
            return NoSample(kind, f"no connection: {answer.message}" if kind == "connection" else answer.message), None
        if answer.status in _POLICY_WIDE:
            reason = f"{_POLICY_WIDE[answer.status]} (HTTP {answer.status}: {transport.error_text(answer)})"
            raise PolicyDown(f"{self.policy.url()}: model {self.policy.model!r}: {reason}")
        return read_answer(self.policy, answer, transport.error_text(answer)), answer.retry_after


def _joined(content: Any) -> Any:
    """The text of a list of text parts; any other content unchanged."""
    if isinstance(content, list) and all(part["type"] == "text" and isinstance(part["text"], str) for part in content):
        return "".join(part["text"] for part in content)
    return content


def read_answer(policy: Policy, answer: Reply, message: str) -> Outcome:
    """The outcome of a server's answer. message: the server's words, for the messages of failures."""
    status = answer.status
    if status == 429:
        return NoSample("rate_limited", f"HTTP 429: {message}")
    if status in (408, 425) or status >= 500:
        return NoSample("server_error", f"HTTP {status}: {message}")
    if status == 413 or (400 <= status < 500 and _TOO_LONG.search(answer.text)):
        return NoSample("too_long", f"HTTP {status}: {message}")
    if status >= 300:
        target = f" to {answer.headers['location']}" if "location" in answer.headers else ""
        return NoSample("refused", f"HTTP {status}{target}: {message}")
    try:
        content = json.loads(answer.content)
        choice = content["choices"][0]
        text = _joined(choice["message"]["content"]) if policy.kind == "chat" else choice["text"]
        tokens = (content.get("usage") or {}).get("completion_tokens")
        reason = choice.get("finish_reason")
        if not (isinstance(text, str | None) and isinstance(tokens, int | None) and isinstance(reason, str | None)):
            raise TypeError
        (text or "").encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # no JSON, other JSON, half a surrogate pair
        return NoSample("garbled", f"HTTP {status} with an answer that is no completion: {message}")
    is_count = tokens is not None and type(tokens) is int and 0 <= tokens < 2**31  # servers without a count may send -1
    return policy.answer(text or "", reason, tokens if is_count else None)


class _RateLimiter:
    """Spaces requests evenly below a rate, and delays all of them when a server asks for it."""

    def __init__(self, per_minute: float | None) -> None:
        self.gap = 60 / per_minute if per_minute else 0.0
        self.free_at = 0.0
        self.lock = asyncio.Lock()

    async def acquire(self) -> None:
        async with self.lock:  # only one worker waits for a time, so a pause delays all the others too
            while (wait := self.free_at - time.monotonic()) > 0:  # a pause may have moved the time during the sleep
                await asyncio.sleep(wait)
            self.free_at = time.monotonic() + self.gap

    def pause(self, seconds: float) -> None:
        self.free_at = max(self.free_at, time.monotonic() + seconds)
