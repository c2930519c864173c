"""What a backend is written against: policies and their decoding, requests, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Event
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from polar_rm.common.config import Config, PathText
from polar_rm.errors import PolarError
from polar_rm.records import Message, Text, flatten

Precision = Literal["auto", "bf16", "fp32"]


class Decoding(Config):
    """How the next token is drawn; the defaults are the published ones (paper, App. D.1.1)."""

    temperature: float = Field(1.0, gt=0, description="Divides the logits: below 1 likely tokens become likelier.")
    top_p: float = Field(0.9, gt=0, le=1, description="Draw from the likeliest tokens that hold this probability; 1: from all.")
    top_k: NonNegativeInt = Field(50, description="Draw from so many of the likeliest tokens; 0: from all.")
    max_new_tokens: PositiveInt = Field(4096, description="Tokens after which a sample ends, finished or not.")


class RayActors(Config):
    """With ``engine: ray``: how many actors load the policy, and what each of them occupies."""

    actors: PositiveInt = Field(1, description="Number of actors, each with the model loaded.")
    cpus: float = Field(1.0, gt=0, description="CPU cores that Ray reserves for each.")
    gpus: float = Field(0.0, ge=0, description="GPUs that Ray reserves for each.")


class Policy(Config):
    """A way to answer: a model, what is put around the prompt, and a decoding. Each backend adds keys of its own."""

    name: str = Field(min_length=1, description="Its name in the rows; different for each policy.")
    family: str = Field(description="Models of one family are nearer to each other than to others, such as qwen.")
    kind: Literal["chat", "base"] = Field(
        description="chat: renders the model's chat template, with system in front. base: continues template, plain text."
    )
    backend: str = Field(description="What runs the model: transformers, openai (a server) or vllm.")
    model: PathText = Field(description="A folder or package:NAME; behind a server the name that it knows the model by.")
    revision: str | None = Field(None, description="Of the weights, where the backend can choose one.")
    checkpoint_of: str | None = Field(None, description="The policy or training run that this is a checkpoint of.")
    step: NonNegativeInt | None = Field(None, description="The training step of a checkpoint.")
    system: str | None = Field(None, description="System prompt of a chat policy.")
    template: str = Field("{prompt}", description="What a base policy continues; {prompt} stands for the prompt.")
    stop: tuple[str, ...] = Field((), description="A sample ends before the first of these texts.")
    decoding: Decoding = Field(Decoding(), description="How tokens are drawn.")
    samples: PositiveInt = Field(2, description="Samples per prompt.")
    weight: float = Field(1.0, gt=0, description="How often it is drawn, relative to the others (assignment.method: draw).")
    licence: str | None = Field(None, description="A note for the manifest: under which licence its texts may be used.")
    ray: RayActors = Field(RayActors(), description="What it occupies on a Ray cluster.")

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
