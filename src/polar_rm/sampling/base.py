"""What a backend is written against: policies and their decoding, requests, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Event
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from polar_rm.common.config import Config
from polar_rm.errors import PolarError
from polar_rm.records import Message, Text, flatten

Precision = Literal["auto", "bf16", "fp32"]


class Decoding(Config):
    """How the next token is drawn; the defaults are the published ones (paper, App. D.1.1). top_k 0: all tokens."""

    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.9, gt=0, le=1)
    top_k: NonNegativeInt = 50
    max_new_tokens: PositiveInt = 4096


class RayActors(Config):
    """With ``engine: ray``: how many actors load the policy, and what each of them occupies."""

    actors: PositiveInt = 1
    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)


class Policy(Config):
    """A way to answer: a model, what is put around the prompt, and a decoding. Each backend adds keys of its own.

    kind: ``chat`` renders the model's chat template, with ``system`` in front; ``base`` continues ``template``, plain text in
    which ``{prompt}`` stands for the prompt. Both end at the first of ``stop``.
    revision: of the weights. checkpoint_of, step: a checkpoint of a training run is named by the run and the step.
    samples: per prompt. weight: how often it is drawn, relative to the others. licence: a note for the manifest.
    """

    name: str = Field(min_length=1)
    family: str
    kind: Literal["chat", "base"]
    backend: str
    model: str
    revision: str | None = None
    checkpoint_of: str | None = None
    step: NonNegativeInt | None = None
    system: str | None = None
    template: str = "{prompt}"
    stop: tuple[str, ...] = ()
    decoding: Decoding = Decoding()
    samples: PositiveInt = 2
    weight: float = Field(1.0, gt=0)
    licence: str | None = None
    ray: RayActors = RayActors()

    # Keys that no sample depends on: they may change between two runs into one folder.
    NOT_IN_IDENTITY: ClassVar[frozenset[str]] = frozenset(
        {"name", "family", "checkpoint_of", "step", "samples", "weight", "licence", "ray"}
    )
    # Whether the policy computes on this machine: such policies run one after another, the others all at once.
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
        """What its samples depend on, as JSON."""
        precision = {"precision": machine.precision} if self.IS_LOCAL else {}
        return self.model_dump(mode="json", exclude=set(self.NOT_IN_IDENTITY)) | precision

    def max_concurrent(self, machine: Machine) -> int:
        """Requests that it works on together."""
        return machine.batch_size

    def open(self, machine: Machine) -> Backend:
        """Load the model, or make ready to ask a server.

        Raises:
            PolarError: it can't be loaded.
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
        """Whether samples are the very next text of the prompt, as in the paper's prefixes."""
        return self.kind == "base" and self.template == "{prompt}"

    def is_seeded(self) -> bool:
        """Whether a sample is drawn with its request's seed."""
        return True

    def answer(self, text: str, finish_reason: str | None, n_tokens: int | None) -> Sample | NoSample:
        """The outcome of a request whose generated text is ``text``."""
        cuts = [text.find(stop) for stop in self.stop if stop in text]
        if cuts:
            text, finish_reason = text[: min(cuts)], "stop"
        if self.kind == "base" and not self.continues():  # the blank behind "Answer:" belongs to the template
            text = text.strip()
        if not text.strip():
            return NoSample("empty", "the policy returned no text")
        return Sample(text, finish_reason, n_tokens)


@dataclass(frozen=True, slots=True)
class Machine:
    """How policies of this process compute. batch_size: sequences generated together."""

    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = 64


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to draw. seed: its own, so that a sample does not depend on what it was batched with."""

    prompt_id: str
    prompt: Text
    sample_id: int
    seed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """finish_reason: ``stop`` at the end of text, ``length`` at the limit; a server may have others. n_tokens: generated."""

    text: str
    finish_reason: str | None
    n_tokens: int | None


FailureKind = Literal["empty", "too_long", "refused", "rate_limited", "server_error", "timeout", "connection", "garbled"]


@dataclass(frozen=True, slots=True)
class NoSample:
    """A request without a sample. attempts: how often it was asked.

    empty: no text came. too_long: the prompt, or prompt and new tokens, exceed the context. refused: another HTTP 4xx, or the
    chat template takes no such conversation.
    rate_limited: HTTP 429. server_error: HTTP 5xx. garbled: no answer of the protocol (HTML, half a JSON, nothing).
    """

    kind: FailureKind
    message: str
    attempts: int = 1

    @property
    def is_final(self) -> bool:
        """Asking again would change nothing."""
        return self.kind in ("empty", "too_long", "refused")


class PolicyDown(PolarError):
    """A policy can't answer at all: a server is gone, a model or key is unknown, memory is exhausted."""


Outcome = Sample | NoSample
Emit = Callable[[Request, Outcome], None]


class Backend(Protocol):
    """A policy that is ready to answer."""

    def run(self, requests: Iterable[Request], emit: Emit, stop: Event) -> None:
        """Answer requests in any order, calling ``emit`` with each outcome at once; returns early when ``stop`` is set.

        Raises:
            PolicyDown: going on is pointless. Requests without an outcome are asked again by the next run.
        """
        ...
