"""LMDeploy's ``/pooling``: the body of vLLM without ``use_activation``, and plain numbers in the reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from polar_rm.protocols.base import InputProtocol, field_of, read_rows
from polar_rm.protocols.vllm import PoolingReply, PoolingRequest, inputs, pooling_reply
from polar_rm.rewards.outcomes import Failure


def _build_request(model: str | None, values: Sequence[Any]) -> dict[str, Any]:
    return {**({"model": model} if model else {}), "input": list(values)}


def _read_reply(reply: Any, count: int) -> list[float | Failure]:
    return read_rows(field_of(reply, "data"), count, _plain_number)


def _read_any(reply: Any, count: int) -> list[float | Failure]:
    return read_rows(field_of(reply, "data"), count, lambda row: row["data"])


def _plain_number(row: Any) -> Any:
    if isinstance(row["data"], list):
        raise TypeError
    return row["data"]


POOLING = InputProtocol(
    "LMDeploy /pooling", "/pooling", "LMDeploy", PoolingRequest, PoolingReply, _build_request, _read_reply, inputs, pooling_reply
)
# For clients, which accept a single score in any shape: our own server may have been started with another --pooling-flavour.
POOLING_OF_ANY_SHAPE = replace(POOLING, read_reply=_read_any)
