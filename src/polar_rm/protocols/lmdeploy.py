"""LMDeploy's ``/pooling``: vLLM's body without an activation, and bare numbers in the reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from polar_rm.protocols.base import InputProtocol, part_of, read_rows
from polar_rm.protocols.vllm import PoolingReply, PoolingRequest, inputs, pooled
from polar_rm.rewards.outcomes import Failure


def _ask(model: str | None, values: Sequence[Any]) -> dict[str, Any]:
    return {**({"model": model} if model else {}), "input": list(values)}


def _read(reply: Any, count: int) -> list[float | Failure]:
    return read_rows(part_of(reply, "data"), count, _bare)


def _read_any(reply: Any, count: int) -> list[float | Failure]:
    return read_rows(part_of(reply, "data"), count, lambda row: row["data"])


def _bare(row: Any) -> Any:
    if isinstance(row["data"], list):
        raise TypeError
    return row["data"]


POOLING = InputProtocol("LMDeploy /pooling", "/pooling", "LMDeploy", PoolingRequest, PoolingReply, _ask, _read, inputs, pooled)
# For clients, who know that they want the one score: our own server may have been started for another of them.
POOLING_OF_ANY_SHAPE = replace(POOLING, read=_read_any)
