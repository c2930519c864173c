"""Settings of ``polar serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from polar_rm.common.config import Config
from polar_rm.protocols.base import PoolingFlavour


class ServeConfig(Config):
    """One server. Each key is an option of the command line, too, which stands above the config."""

    model: Path = Field(description="Folder of a reward model saved by polar.")
    host: str = Field("127.0.0.1", description="Address to bind. Others than loopback need a key.")
    port: int = Field(30000, ge=0, le=65535, description="0 takes any that is free; the log says which.")
    engine: Literal["polar", "vllm"] = Field("polar", description="vllm starts the vLLM of this environment.")
    pooling_flavour: PoolingFlavour | None = Field(
        None,
        description="Shape of /pooling replies: vllm is [[s]] (default), lmdeploy s, vllm-classify [s] (default with vLLM). The "
        "official client needs vllm or lmdeploy, by its server_type.",
    )
    api_key_env: str | None = Field(None, description="NAME of the environment variable that holds the key to ask for.")
    allow_open: bool = Field(False, description="Let other machines in without a key.")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Further names that a server without a key answers to, for instance behind a proxy of one's own."
    )
    precision: Literal["auto", "bf16", "fp32", "fp16"] = Field(
        "fp32", description="Of the backbone's products: auto takes bf16 where the hardware has it, which is faster."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where there is one.")
    row_tokens: int = Field(8192, ge=1, description="Most tokens of one packed row; decides memory, not results.")
    max_items: int = Field(4096, ge=1, description="Sequences in one request.")
    max_body_mib: int = Field(32, ge=1, description="Size of one request's body, a prompt counted for each output.")
    max_queue_tokens: int = Field(2_000_000, ge=1, description="Waiting tokens beyond which requests get 429.")
    max_seconds: float = Field(300.0, ge=0.1, description="Longest time to an answer; later it is 503.")
    log_texts: bool = Field(False, description="Write request bodies into the log.")
