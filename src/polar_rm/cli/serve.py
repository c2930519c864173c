"""The verb that serves rewards over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from polar_rm.cli.options import load, verb
from polar_rm.cli.output import message
from polar_rm.common.extras import needs
from polar_rm.common.paths import check_model
from polar_rm.errors import PolarError

if TYPE_CHECKING:
    from polar_rm.serving.config import ServeConfig

VLLM_DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}

# None: as the config says, or its default. `polar config serve` tells all of them.
_Host = Annotated[str | None, typer.Option(help="Address to bind, 127.0.0.1 by default. Others than loopback need a key.")]
_Port = Annotated[int | None, typer.Option(min=0, max=65535, help="By default 30000.")]
_Engine = Annotated[Literal["polar", "vllm"] | None, typer.Option(help="`vllm` starts the vLLM of this environment.")]
_Flavour = Annotated[
    Literal["vllm", "lmdeploy", "vllm-classify"] | None,
    typer.Option(
        help="Shape of /pooling replies: `[[s]]` (default), `s` or `[s]` (default with vLLM). The official client needs "
        "`vllm` or `lmdeploy`, by its server_type."
    ),
]
_KeyEnv = Annotated[str | None, typer.Option(help="Environment variable that holds the key to ask for.")]
_AllowOpen = Annotated[bool | None, typer.Option("--allow-open", help="Let other machines in without a key.")]
_Hosts = Annotated[
    list[str] | None,
    typer.Option("--allowed-host", help="A further name that a server without a key answers to. May be given several times."),
]
_Precision = Annotated[
    Literal["auto", "bf16", "fp32", "fp16"] | None,
    typer.Option(help="Of the backbone's products, fp32 by default: `auto` takes bf16 where the hardware has it."),
]
_Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None, typer.Option(help="`auto`, the default, takes CUDA where there is one.")
]
_Rows = Annotated[int | None, typer.Option(min=1, help="Most tokens of one packed row, 8192 by default; decides memory.")]
_Items = Annotated[int | None, typer.Option(min=1, help="Sequences in one request, 4096 by default.")]
_Body = Annotated[
    int | None, typer.Option(min=1, help="Size of one request's body, 32 by default, a prompt counted for each output.")
]
_Queue = Annotated[int | None, typer.Option(min=1, help="Waiting tokens beyond which requests get 429, 2,000,000 by default.")]
_Seconds = Annotated[float | None, typer.Option(min=0.1, help="Longest time to an answer, 300 by default; later it is 503.")]
_LogTexts = Annotated[bool | None, typer.Option("--log-texts", help="Write request bodies into the log.")]


@verb("Use")
def serve(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="YAML files and overrides such as `port=8000` (see `polar config serve`); behind `--`, options of vLLM.",
            metavar="[CONFIG.yaml... KEY=VALUE...] [-- VLLM_OPTION...]",
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a reward model saved by polar.")] = None,
    host: _Host = None,
    port: _Port = None,
    engine: _Engine = None,
    pooling_flavour: _Flavour = None,
    api_key_env: _KeyEnv = None,
    allow_open: _AllowOpen = None,
    allowed_hosts: _Hosts = None,
    precision: _Precision = None,
    device: _Device = None,
    row_tokens: _Rows = None,
    max_items: _Items = None,
    max_body_mib: _Body = None,
    max_queue_tokens: _Queue = None,
    max_seconds: _Seconds = None,
    log_texts: _LogTexts = None,
) -> None:
    """Serve rewards over HTTP, with a page to try them on at `/`.

    Speaks the protocols of SGLang (`/classify`, `/v1/embeddings`), vLLM (`/classify`, `/pooling`), LMDeploy (`/pooling`) and
    OpenRLHF (`/get_reward`), and its own (`/v1/score`); `/openapi.json` describes them. SIGTERM answers what was accepted.

    Examples:

        polar serve --model runs/rm/model

        curl http://127.0.0.1:30000/v1/score --json '{"items": [{"prompt": "2 + 2?", "reference": "4", "outputs": ["4", "5"]}]}'

        polar serve --model DIR --host 0.0.0.0 --api-key-env REWARD_KEY --pooling-flavour lmdeploy

        polar serve serve.yaml port=8000

        polar serve --model DIR --engine vllm --precision fp16 -- --enforce-eager
    """
    flags = {name: value for name, value in locals().items() if name != "arguments" and value not in (None, [])}
    config, further = _config(arguments or [], flags)
    check_model(config.model)
    if config.engine == "vllm":
        _serve_with_vllm(config, further)
    if further:
        raise PolarError(f"unexpected argument {further[0]!r}: options behind -- are for --engine vllm")
    with needs("serve", "polar serve"):
        from polar_rm.serving import launch
    launch.serve(config)


def _config(arguments: list[str], flags: dict[str, Any]) -> tuple[ServeConfig, list[str]]:
    """The config that the arguments mean, flags above all, and what is vLLM's: from the first option on."""
    from polar_rm.common.json import dump_json
    from polar_rm.serving.config import ServeConfig

    first = next((index for index, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    # An override's value is YAML, of which JSON is a part.
    overrides = [f"{name}={dump_json(str(value) if isinstance(value, Path) else value)}" for name, value in flags.items()]
    return load(ServeConfig, [*arguments[:first], *overrides]), arguments[first:]


def _serve_with_vllm(config: ServeConfig, further: list[str]) -> NoReturn:
    """Becomes the vLLM process."""
    from polar_rm.serving import vllm
    from polar_rm.serving.address import api_key

    key = api_key(config.host, config.api_key_env, allow_open=config.allow_open)
    installed = vllm.probe()
    command = vllm.command(
        installed,
        config.model,
        host=config.host,
        port=config.port,
        dtype=VLLM_DTYPES[config.precision],
        flavour=config.pooling_flavour or "vllm-classify",
    )
    message(f"vLLM {installed.version}: {' '.join([*command, *further])}")
    # The key goes by the environment: a command line can be read by everybody on the machine.
    os.execve(command[0], [*command, *further], {**os.environ, **({"VLLM_API_KEY": key} if key else {})})
