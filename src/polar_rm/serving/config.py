"""Settings of ``polar serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from polar_rm.common.config import Config, Names
from polar_rm.common.devices import DEVICE_HELP, DeviceName
from polar_rm.common.limits import MAX_ROW_TOKENS
from polar_rm.protocols.base import PoolingFlavour

MAX_BODY_MIB = 1 << 12
"""Eight bodies are held at the same time."""

MAX_PREFIX_MIB = 1 << 20


class ServeConfig(Config):
    """One server. Each key is also an option of the command line, which takes precedence over the config."""

    model: Annotated[Path, Names("reward")] = Field(
        description="A reward model: a folder saved by polar, an official one, or an id of the Hub."
    )
    host: str = Field("127.0.0.1", description="Address to bind. Addresses other than loopback need a key.")
    port: int = Field(30000, ge=0, le=65535, description="Port to listen on; 0 takes any free port, which the log names.")
    engine: Literal["polar", "vllm"] = Field("polar", description="polar: our server. vllm: starts the vLLM of this environment.")
    pooling_flavour: PoolingFlavour | None = Field(
        None,
        description="Shape of /pooling replies: vllm is [[s]] (default), lmdeploy s, vllm-classify [s] (default with vLLM). The "
        "official client needs vllm or lmdeploy, according to its server_type.",
    )
    api_key_env: str | None = Field(None, description="NAME of the environment variable with the key that clients must send.")
    allow_open: bool = Field(False, description="Accept other machines without a key.")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Further host names that a server without a key answers to, for instance behind your own proxy."
    )
    precision: Literal["auto", "bf16", "fp32", "fp16", "int8"] = Field(
        "fp32",
        description="Precision of the backbone; auto takes bf16 where the hardware has it, which is faster. int8 is for CPUs and "
        "needs `polar quantize` first.",
    )
    device: DeviceName = Field("auto", description=DEVICE_HELP)
    row_tokens: int = Field(
        8192, ge=1, le=MAX_ROW_TOKENS, description="Maximum number of tokens of a packed row; affects memory, not results."
    )
    max_items: int = Field(4096, ge=1, description="Maximum number of sequences in one request.")
    max_body_mib: int = Field(
        32,
        ge=1,
        le=MAX_BODY_MIB,
        description="Maximum size of a request body in MiB; its prompts count once for each output.",
    )
    max_queue_tokens: int = Field(2_000_000, ge=1, description="Number of waiting tokens from which on requests get 429.")
    prefix_memory_mib: int = Field(
        512,
        ge=0,
        le=MAX_PREFIX_MIB,
        description="Memory in MiB for recent prefixes (prompt and reference), so that candidates that arrive in pieces compute "
        "theirs once; 0 keeps none. On CPUs only.",
    )
    max_seconds: float = Field(300.0, ge=0.1, description="Maximum time to an answer in seconds; then the request gets 503.")
    log_texts: bool = Field(False, description="Write request bodies to the log.")
