"""The protocols of reward servers, one file each, in both directions. Server, client and parity use the table ``PROTOCOLS``."""

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
"""Body of ``/classify``, a route of two engines."""

Engine = Literal["polar", "vllm", "sglang", "lmdeploy"]

# The protocols that score token ids with each engine, in the order in which a client tries them. Ids, because no server can
# tokenise them differently. vLLM has /classify or, started for the official client, the per-token task on /pooling.
ENGINES: dict[Engine, tuple[Protocol, ...]] = {
    "polar": (vllm.CLASSIFY,),
    "vllm": (vllm.CLASSIFY, vllm.POOLING),
    "sglang": (sglang.CLASSIFY,),
    "lmdeploy": (lmdeploy.POOLING_OF_ANY_SHAPE,),
}
_OWNERS: dict[str, Engine] = {"polar-rm": "polar", "vllm": "vllm", "sglang": "sglang", "lmdeploy": "lmdeploy"}


def recognise(models: Any) -> tuple[Engine, dict[str, Any]]:
    """Engine and model card from a reply of ``/v1/models``. Each engine has its own value of ``owned_by`` in the card.

    Raises:
        BadReply: the reply comes from none of the four engines.
    """
    try:
        card = models["data"][0]
        return _OWNERS[card["owned_by"]], card
    except (TypeError, KeyError, IndexError):
        raise BadReply("the server's /v1/models is not that of polar-rm, vLLM, SGLang or LMDeploy") from None
