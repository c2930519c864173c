"""Engines that answer requests, one file each. To add one, write its file beside these and name its policy here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Tag

from polar_rm.sampling.backends.openai import OpenAIPolicy
from polar_rm.sampling.backends.transformers import TransformersPolicy
from polar_rm.sampling.backends.vllm import VLLMPolicy
from polar_rm.sampling.base import Policy

DEFAULT = "transformers"
BACKENDS: dict[str, type[Policy]] = {"transformers": TransformersPolicy, "openai": OpenAIPolicy, "vllm": VLLMPolicy}


def _named(value: Any) -> str:
    name = value.get("backend", DEFAULT) if isinstance(value, dict) else getattr(value, "backend", DEFAULT)
    return f"{name} policy"  # with a blank: no key of the user's, see config.py


if TYPE_CHECKING:
    AnyPolicy = Policy
else:
    _tagged = tuple(Annotated[kind, Tag(f"{name} policy")] for name, kind in BACKENDS.items())
    AnyPolicy = Annotated[Union[_tagged], Discriminator(_named)]  # noqa: UP007
"""A policy of the backend that its key ``backend`` names."""


def check_keys(policy: Any) -> None:
    """Of one policy as the user wrote it.

    Raises:
        ValueError: the backend is unknown, or a key belongs to another one.
    """
    if not isinstance(policy, dict):
        return
    name, backend = policy.get("name"), policy.get("backend", DEFAULT)
    if backend not in BACKENDS:
        raise ValueError(f"policy {name!r}: unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    for key in policy:
        owners = [owner for owner, kind in BACKENDS.items() if key in kind.model_fields]
        if owners and backend not in owners:
            raise ValueError(f"policy {name!r}: {key} is a key of backend {', '.join(owners)}, but this policy's is {backend}")
