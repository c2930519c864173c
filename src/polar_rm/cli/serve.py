"""The verb that serves rewards over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from polar_rm.cli.options import Device, ModelDir, Precision, RowTokens, verb
from polar_rm.cli.output import message
from polar_rm.common.extras import needs
from polar_rm.errors import PolarError

VLLM_DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}


@verb("Use")
def serve(
    model: ModelDir,
    engine_arguments: Annotated[
        list[str] | None, typer.Argument(help="Further options of vLLM, behind `--`.", metavar="[-- VLLM_OPTION...]")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind. Others than loopback need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 30000,
    engine: Annotated[Literal["polar", "vllm"], typer.Option(help="`vllm` starts the vLLM of this environment.")] = "polar",
    pooling_flavour: Annotated[
        Literal["vllm", "lmdeploy", "vllm-classify"] | None,
        typer.Option(
            help="Shape of /pooling replies: `[[s]]` (default), `s` or `[s]` (default with vLLM). The official client needs "
            "`vllm` or `lmdeploy`, by its server_type."
        ),
    ] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the key to ask for.")] = None,
    allow_open: Annotated[bool, typer.Option("--allow-open", help="Let other machines in without a key.")] = False,
    precision: Precision = "fp32",
    device: Device = "auto",
    row_tokens: RowTokens = 8192,
    max_items: Annotated[int, typer.Option(help="Sequences in one request.", min=1)] = 4096,
    max_body_mib: Annotated[int, typer.Option(help="Size of one request's body, a prompt counted for each output.", min=1)] = 32,
    max_queue_tokens: Annotated[int, typer.Option(help="Waiting tokens beyond which requests get 429.", min=1)] = 2_000_000,
    max_seconds: Annotated[float, typer.Option(help="Longest time to an answer; later it is 503.", min=0.1)] = 300.0,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Write request bodies into the log.")] = False,
) -> None:
    """Serve rewards over HTTP, with a page to try them on at `/`.

    Speaks the protocols of SGLang (`/classify`, `/v1/embeddings`), vLLM (`/classify`, `/pooling`), LMDeploy (`/pooling`) and
    OpenRLHF (`/get_reward`), and its own (`/v1/score`); `/openapi.json` describes them. SIGTERM answers what was accepted.

    Examples:

        polar serve --model runs/rm/model

        curl http://127.0.0.1:30000/v1/score --json '{"items": [{"prompt": "2 + 2?", "reference": "4", "outputs": ["4", "5"]}]}'

        polar serve --model DIR --host 0.0.0.0 --api-key-env REWARD_KEY --pooling-flavour lmdeploy

        polar serve --model DIR --engine vllm --precision fp16 -- --enforce-eager
    """
    if engine == "vllm":
        _serve_with_vllm(model, host, port, pooling_flavour, api_key_env, allow_open, precision, engine_arguments or [])
    if engine_arguments:
        raise PolarError(f"unexpected argument {engine_arguments[0]!r}: options behind -- are for --engine vllm")
    with needs("serve", "polar serve"):
        from polar_rm.serving import launch
    from polar_rm.model.devices import claim_device, dtype_name
    from polar_rm.serving.address import api_key
    from polar_rm.serving.guard import Limits

    claimed = claim_device(device)
    launch.serve(
        launch.Options(
            model,
            host,
            port,
            pooling_flavour or "vllm",
            api_key(host, api_key_env, allow_open=allow_open),
            dtype=dtype_name(precision, claimed),
            device=claimed,
            token_budget=row_tokens,
            max_waiting_tokens=max_queue_tokens,
            limits=Limits(max_body_mib << 20, max_items, max_seconds),
            log_texts=log_texts,
        )
    )


def _serve_with_vllm(
    model: Path,
    host: str,
    port: int,
    flavour: Literal["vllm", "lmdeploy", "vllm-classify"] | None,
    api_key_env: str | None,
    allow_open: bool,
    precision: str,
    further: list[str],
) -> NoReturn:
    """Becomes the vLLM process."""
    from polar_rm.serving import vllm
    from polar_rm.serving.address import api_key

    key = api_key(host, api_key_env, allow_open=allow_open)
    installed = vllm.probe()
    command = vllm.command(
        installed, model, host=host, port=port, dtype=VLLM_DTYPES[precision], flavour=flavour or "vllm-classify"
    )
    message(f"vLLM {installed.version}: {' '.join([*command, *further])}")
    # The key goes by the environment: a command line can be read by everybody on the machine.
    os.execve(command[0], [*command, *further], {**os.environ, **({"VLLM_API_KEY": key} if key else {})})
