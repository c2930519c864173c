"""The verb serve, for rewards over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from polar_rm.cli.options import load, verb
from polar_rm.cli.output import message
from polar_rm.common.devices import DEVICE_HELP, DeviceName
from polar_rm.common.extras import needs
from polar_rm.common.limits import MAX_ROW_TOKENS
from polar_rm.errors import PolarError

if TYPE_CHECKING:
    from polar_rm.serving.config import ServeConfig

VLLM_DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}

# None: the value of the config, or its default. `polar config serve` explains all keys.
_Host = Annotated[
    str | None, typer.Option(help="Address to bind, 127.0.0.1 by default. Addresses other than loopback need a key.")
]
_Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port, 30000 by default; 0 takes any free port.")]
_Engine = Annotated[
    Literal["polar", "vllm"] | None, typer.Option(help="`polar`: our server. `vllm`: the vLLM of this environment.")
]
_Flavour = Annotated[
    Literal["vllm", "lmdeploy", "vllm-classify"] | None,
    typer.Option(
        help="Shape of /pooling replies: `[[s]]` (default), `s` or `[s]` (default with vLLM). The official client needs "
        "`vllm` or `lmdeploy`, according to its server_type."
    ),
]
_KeyEnv = Annotated[str | None, typer.Option(help="NAME of the environment variable with the key that clients must send.")]
_AllowOpen = Annotated[bool | None, typer.Option("--allow-open", help="Accept other machines without a key.")]
_Hosts = Annotated[
    list[str] | None,
    typer.Option("--allowed-host", help="A further host name that a server without a key answers to. It may be repeated."),
]
_Precision = Annotated[
    Literal["auto", "bf16", "fp32", "fp16", "int8"] | None,
    typer.Option(
        help="Precision of the backbone, fp32 by default; `auto` takes bf16 where the hardware has it. "
        "`int8` is for CPUs and needs `polar quantize` first."
    ),
]
_Device = Annotated[DeviceName | None, typer.Option(help=f"The default is auto. {DEVICE_HELP}")]
_Rows = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_ROW_TOKENS, help="Maximum number of tokens of a packed row, 8192 by default; affects memory."),
]
_Items = Annotated[int | None, typer.Option(min=1, help="Maximum number of sequences in one request, 4096 by default.")]
_Body = Annotated[
    int | None,
    typer.Option(min=1, help="Maximum size of a request body in MiB, 32 by default; its prompts count once for each output."),
]
_Queue = Annotated[
    int | None,
    typer.Option(min=1, help="Number of waiting tokens from which on requests get 429, 2,000,000 by default."),
]
_Prefixes = Annotated[
    int | None,
    typer.Option(
        min=0, help="Memory in MiB for prefixes of recent requests, 512 by default, on CPUs only; affects speed, not results."
    ),
]
_Seconds = Annotated[
    float | None, typer.Option(min=0.1, help="Maximum time to an answer in seconds, 300 by default; then the request gets 503.")
]
_LogTexts = Annotated[bool | None, typer.Option("--log-texts", help="Write request bodies to the log.")]


@verb("Use")
def serve(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="YAML files and overrides such as `port=8000` (see `polar config serve`); after `--`, options of vLLM.",
            metavar="[CONFIG.yaml... KEY=VALUE...] [-- VLLM_OPTION...]",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A reward model: a folder saved by polar, an official one, or an id of the Hub.")
    ] = None,
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
    prefix_memory_mib: _Prefixes = None,
    max_seconds: _Seconds = None,
    log_texts: _LogTexts = None,
) -> None:
    """Serve rewards over HTTP, with a page for trying the model at `/`.

    It supports the protocols of SGLang (`/classify`, `/v1/embeddings`), vLLM (`/classify`, `/pooling`), LMDeploy (`/pooling`) and
    OpenRLHF (`/get_reward`), and its own (`/v1/score`); `/openapi.json` describes them. After SIGTERM it still answers accepted
    requests.

    Examples:

        polar serve --model package:demo

        polar serve --model runs/rm/model

        curl http://127.0.0.1:30000/v1/score --json '{"items": [{"prompt": "2 + 2?", "reference": "4", "outputs": ["4", "5"]}]}'

        polar serve --model DIR --host 0.0.0.0 --api-key-env REWARD_KEY --pooling-flavour lmdeploy

        polar serve serve.yaml port=8000

        polar serve --model DIR --engine vllm --precision fp16 -- --enforce-eager
    """
    flags = {name: value for name, value in locals().items() if name != "arguments" and value not in (None, [])}
    config, vllm_options = _config(arguments or [], flags)
    if config.engine == "vllm":
        _serve_with_vllm(config, vllm_options)
    if vllm_options:
        raise PolarError(f"unexpected argument {vllm_options[0]!r}: options after -- are for --engine vllm")
    _serve_here(config)


def _config(arguments: list[str], flags: dict[str, Any]) -> tuple[ServeConfig, list[str]]:
    """The config for the arguments, in which flags take precedence, and vLLM's options, which begin at the first option."""
    from polar_rm.common.json import dump_json
    from polar_rm.serving.config import ServeConfig

    first = next((index for index, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    # The value of an override is YAML, which includes JSON.
    overrides = [f"{name}={dump_json(str(value) if isinstance(value, Path) else value)}" for name, value in flags.items()]
    return load(ServeConfig, [*arguments[:first], *overrides]), arguments[first:]


def _serve_here(config: ServeConfig) -> None:
    """Serve in this process. A wrong address or port is told before anything heavy is imported."""
    from polar_rm.serving.address import api_key, bind

    key = api_key(config.host, config.api_key_env, allow_open=config.allow_open)
    with bind(config.host, config.port) as listener:
        with needs("serve", "polar serve"):
            from polar_rm.serving import launch
        launch.serve(config, listener, key)


def _serve_with_vllm(config: ServeConfig, options: list[str]) -> NoReturn:
    """Replace this process by vLLM's."""
    if config.precision == "int8":
        raise PolarError("precision int8 is for our own server (--engine polar); vLLM takes bf16, fp16 or fp32")
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
    message(f"vLLM {installed.version}: {' '.join([*command, *options])}")
    # The key is passed in the environment, because all users of the machine can read a command line.
    os.execve(command[0], [*command, *options], {**os.environ, **({"VLLM_API_KEY": key} if key else {})})
