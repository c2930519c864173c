"""The protocols of reward servers, a file each, read and written; server, client and parity walk this table."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from polar_rm.protocols import lmdeploy, openai, openrlhf, polar, sglang, vllm
from polar_rm.protocols.base import BadReply, InputProtocol, Protocol

__all__ = ["ENGINES", "PROTOCOLS", "BadReply", "ClassifyRequest", "Engine", "InputProtocol", "Protocol", "recognise"]

PROTOCOLS: tuple[Protocol, ...] = (
    polar.SCORE,
    vllm.CLASSIFY,
    vllm.POOLING,
    lmdeploy.POOLING,
    sglang.CLASSIFY,
    openai.EMBEDDINGS,
    openrlhf.GET_REWARD,
)

ClassifyRequest = Annotated[
    Annotated[sglang.SglangClassify, Tag("sglang")] | Annotated[vllm.VllmClassify, Tag("vllm")],
    Discriminator(lambda body: "sglang" if sglang.is_sglang(body) else "vllm"),
]
"""Body of ``/classify``, which two engines have."""

Engine = Literal["polar", "vllm", "sglang", "lmdeploy"]

# How each engine is asked for the scores of token ids, which no server can tokenise differently; the next where a route is not
# there. vLLM has /classify or, served for the official client, the per-token task on /pooling.
ENGINES: dict[Engine, tuple[Protocol, ...]] = {
    "polar": (vllm.CLASSIFY,),
    "vllm": (vllm.CLASSIFY, vllm.POOLING),
    "sglang": (sglang.CLASSIFY,),
    "lmdeploy": (lmdeploy.POOLING_OF_ANY_SHAPE,),
}
_OWNERS: dict[str, Engine] = {"polar-rm": "polar", "vllm": "vllm", "sglang": "sglang", "lmdeploy": "lmdeploy"}


def recognise(models: Any) -> tuple[Engine, dict[str, Any]]:
    """Engine and model card from a reply of ``/v1/models``; each engine signs its cards with ``owned_by``.

    Raises:
        BadReply: it is none of the four.
    """
    try:
        card = models["data"][0]
        return _OWNERS[card["owned_by"]], card
    except (TypeError, KeyError, IndexError):
        raise BadReply("the server's /v1/models is not that of polar-rm, vLLM, SGLang or LMDeploy") from None
