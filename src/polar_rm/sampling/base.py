"""The types that backends implement and use: policies, decoding, requests and outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Event
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from polar_rm.common.actors import RayActors
from polar_rm.common.config import Config, Names, PathText
from polar_rm.common.devices import DeviceName
from polar_rm.errors import PolarError
from polar_rm.records import Message, Text, flatten

Precision = Literal["auto", "bf16", "fp32"]


class Decoding(Config):
    """How the next token is drawn; the defaults are the published ones (paper, App. D.1.1)."""

    temperature: float = Field(1.0, gt=0, description="Divisor of the logits; below 1 likely tokens become more likely.")
    top_p: float = Field(0.9, gt=0, le=1, description="Sample from the likeliest tokens of this total probability; 1: from all.")
    top_k: NonNegativeInt = Field(50, description="Sample from this many of the likeliest tokens; 0: from all.")
    max_new_tokens: PositiveInt = Field(4096, description="Maximum number of tokens of a sample, finished or not.")


class Policy(Config):
    """A model, the text around the prompt, and a decoding. Each backend adds keys of its own."""

    name: str = Field(min_length=1, description="Name of the policy in the rows; unique in the config.")
    family: str = Field(description="Model family, such as qwen; models of one family resemble each other more than others.")
    kind: Literal["chat", "base"] = Field(
        description="chat: renders the model's chat template, with system in front. base: continues template as plain text."
    )
    backend: str = Field(description="What runs the model: transformers, openai (a server) or vllm.")
    model: Annotated[PathText, Names("model")] = Field(
        description="A folder, package:NAME or an id of the Hub; with backend openai the server's name of the model."
    )
    revision: str | None = Field(None, description="Revision of the weights, where the backend can choose one.")
    checkpoint_of: str | None = Field(None, description="The policy or training run that this policy is a checkpoint of.")
    step: NonNegativeInt | None = Field(None, description="The training step of a checkpoint.")
    system: str | None = Field(None, description="System prompt of a chat policy.")
    template: str = Field("{prompt}", description="The text that a base policy continues; {prompt} stands for the prompt.")
    stop: tuple[str, ...] = Field((), description="Stop strings: a sample ends before the first of them.")
    decoding: Decoding = Field(Decoding(), description="How tokens are sampled.")
    samples: PositiveInt = Field(2, description="Samples per prompt.")
    weight: float = Field(1.0, gt=0, description="Relative frequency with which the policy is drawn (assignment.method: draw).")
    licence: str | None = Field(None, description="A note for the manifest: the licence under which its texts may be used.")
    ray: RayActors = Field(RayActors(), description="Resources of the policy on a Ray cluster.")

    # No sample depends on these keys: they may change between two runs into one folder.
    NOT_IN_IDENTITY: ClassVar[frozenset[str]] = frozenset(
        {"name", "family", "checkpoint_of", "step", "samples", "weight", "licence", "ray"}
    )
    # Whether the policy computes on this machine. Local policies run one after another, the others concurrently.
    IS_LOCAL: ClassVar[bool] = True

    @model_validator(mode="after")
    def _is_consistent(self) -> Policy:
        if self.kind == "base" and self.system is not None:
            raise ValueError(f"policy {self.name!r}: a base policy has no system prompt; write it into the template")
        if self.kind == "chat" and self.template != "{prompt}":
            raise ValueError(f"policy {self.name!r}: a chat policy takes the template of its model; use system")
        if "{prompt}" not in self.template:
            raise ValueError(f"policy {self.name!r}: the template must contain {{prompt}}")
        return self

    def settings(self, machine: Machine) -> dict[str, Any]:
        """The settings that its samples depend on, as JSON."""
        precision = {"precision": machine.precision} if self.IS_LOCAL else {}
        return self.model_dump(mode="json", exclude=set(self.NOT_IN_IDENTITY)) | precision

    def max_concurrent(self, machine: Machine) -> int:
        """Maximum number of requests in progress."""
        return machine.batch_size

    def open(self, machine: Machine) -> Backend:
        """Load the model, or prepare a client of its server.

        Raises:
            PolarError: the model can't be loaded.
        """
        raise NotImplementedError

    def messages(self, prompt: Text) -> list[Message]:
        """The conversation that a chat policy answers."""
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, *([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)]

    def text(self, prompt: Text) -> str:
        """The text that a base policy continues."""
        return self.template.replace("{prompt}", flatten(prompt))

    def continues(self) -> bool:
        """Whether samples directly continue the prompt's text, as with the paper's prefixes."""
        return self.kind == "base" and self.template == "{prompt}"

    def is_seeded(self) -> bool:
        """Whether the seed of a request is used."""
        return True

    def answer(self, text: str, finish_reason: str | None, n_tokens: int | None) -> Sample | NoSample:
        """The outcome of a request whose generated text is ``text``."""
        stops = [text.find(stop) for stop in self.stop if stop in text]
        if stops:
            text, finish_reason = text[: min(stops)], "stop"
        if self.kind == "base" and not self.continues():  # the space after "Answer:" belongs to the template
            text = text.strip()
        if not text.strip():
            return NoSample("empty", "the policy returned no text")
        return Sample(text, finish_reason, n_tokens)


@dataclass(frozen=True, slots=True)
class Machine:
    """How local policies compute. batch_size: number of sequences generated together."""

    precision: Precision = "auto"
    device: DeviceName = "auto"
    batch_size: int = 64


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to draw. seed: one per request, so that a sample does not depend on the rest of its batch."""

    prompt_id: str
    prompt: Text
    sample_id: int
    seed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A generated text. finish_reason: ``stop`` at the end of text, ``length`` at the limit; a server may report others.
    n_tokens: number of generated tokens."""

    text: str
    finish_reason: str | None
    n_tokens: int | None


FailureKind = Literal["empty", "too_long", "refused", "rate_limited", "server_error", "timeout", "connection", "garbled"]


@dataclass(frozen=True, slots=True)
class NoSample:
    """A request that gave no sample. attempts: how often it was sent.

    empty: the text is empty. too_long: the prompt, or prompt and new tokens, exceed the context. refused: another HTTP 4xx, or
    the chat template can't render the conversation.
    rate_limited: HTTP 429. server_error: HTTP 5xx. garbled: the answer does not follow the protocol (HTML, half a JSON, nothing).
    """

    kind: FailureKind
    message: str
    attempts: int = 1

    @property
    def is_final(self) -> bool:
        """Whether another attempt would fail in the same way."""
        return self.kind in ("empty", "too_long", "refused")


class PolicyDown(PolarError):
    """A policy can't answer any request: its server is gone, its model or key is unknown, or memory is exhausted."""


Outcome = Sample | NoSample
Emit = Callable[[Request, Outcome], None]


class Backend(Protocol):
    """A loaded policy."""

    def run(self, requests: Iterable[Request], emit: Emit, stop: Event) -> None:
        """Answer requests in any order and call ``emit`` with each outcome immediately; return early when ``stop`` is set.

        Raises:
            PolicyDown: no further request can succeed. The next run sends the requests without an outcome again.
        """
        ...
