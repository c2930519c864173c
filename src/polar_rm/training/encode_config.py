"""The settings of ``polar encode``. What training has, too, has the same name and meaning there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from polar_rm.common.config import Config, Names, PathText
from polar_rm.common.limits import MAX_ACTORS
from polar_rm.training.config import ModelConfig


class EncodeConfig(Config):
    """One encoded corpus."""

    output: Path = Field(
        description="Folder of the encoded corpus, which `data.train` or `data.eval` of a training takes. The same command "
        "continues an interrupted one, and several commands on machines that share the folder work together."
    )
    inputs: tuple[Annotated[PathText, Names("data")], ...] = Field(
        min_length=1, description="Files of comparisons (JSONL, Parquet and others), folders of them, or patterns; in this order."
    )
    model: ModelConfig = Field(
        description="The model that will be trained, as in `polar config pretrain`; only its tokenizer and settings are read."
    )
    strip_prompt: bool = Field(
        False,
        description="Drop the prompt's messages where an answer (reference, candidate) begins with them; otherwise such a row "
        "is bad.",
    )
    reference: Literal["given", "empty"] = Field(
        "given", description="`empty` encodes without references, as in the paper's ablation; rows may then lack them."
    )
    shard_mib: PositiveInt | None = Field(
        None,
        le=4096,
        description="MiB of input that become one shard, the unit of resuming. By default a 256th of the input, but at least 4 "
        "and at most 256. JSON lines and Parquet are divided; any other file is one shard.",
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="`local` uses processes of this machine, `ray` a cluster whose nodes all see inputs and output."
    )
    workers: PositiveInt | None = Field(
        None, le=MAX_ACTORS, description="Number of processes; by default one for each core, or what the cluster has."
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error",
        description="Treatment of rows that are not comparisons: `error` stops; `skip` writes them to a side file beside the "
        "output, counts them and continues.",
    )
