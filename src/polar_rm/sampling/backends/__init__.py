"""Backends that answer requests, one file each. To add one, write its file here and enter its policy into ``BACKENDS``."""

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
    return f"{name} policy"  # contains a space, so that it equals no key of a user's config, see config.py


if TYPE_CHECKING:
    AnyPolicy = Policy
else:
    _tagged = tuple(Annotated[kind, Tag(f"{name} policy")] for name, kind in BACKENDS.items())
    AnyPolicy = Annotated[Union[_tagged], Discriminator(_named)]  # noqa: UP007
"""A policy of the backend that is named by its key ``backend``."""


def check_keys(policy: Any) -> None:
    """Check the keys of one policy as written in the config.

    Raises:
        ValueError: the backend is unknown, or a key belongs to another backend.
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
