"""``polar serve --engine vllm``: the command that serves a native checkpoint with the installed vLLM.

vLLM's options change with almost every release, so they are read from the installed version: ``--task`` became ``--runner`` and
``--convert``, ``--override-pooler-config`` became ``--pooler-config``, and the key that turns the sigmoid off was renamed twice.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from polar_rm.common.sources import model_name
from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import PolarError
from polar_rm.protocols.base import PoolingFlavour

_MODULE = "vllm.entrypoints.openai.api_server"

# A single process, because importing vLLM takes ten seconds: it prints the pooler's settings, then the help of all options.
_PROBE = f"""
import dataclasses, json, runpy, sys
import vllm
from vllm.config import PoolerConfig
print(json.dumps([vllm.__version__, [field.name for field in dataclasses.fields(PoolerConfig)]]), flush=True)
sys.argv = ["vllm", sys.argv[1]]
runpy.run_module({_MODULE!r}, run_name="__main__")
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """The command line options of the installed vLLM, and the settings of its pooler."""

    version: str
    options: frozenset[str]
    pooler: frozenset[str]


def probe(python: str = sys.executable) -> Installed:
    """Read the options of the vLLM in this environment.

    Raises:
        PolarError: vLLM is not installed, or does not start.
    """
    # Newer versions print only a summary without "=all"; older versions print all options and don't know "=all".
    for option in ("--help=all", "--help"):
        done = subprocess.run([python, "-c", _PROBE, option], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            first = next(line for line in done.stdout.splitlines() if line.startswith('["'))
            version, pooler = json.loads(first)
            return Installed(version, frozenset(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", done.stdout)), frozenset(pooler))
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise PolarError(f"vLLM can't be started from {python}: {reason}; install it there: pip install vllm")


def command(
    installed: Installed,
    model: Path,
    *,
    host: str,
    port: int,
    dtype: str,
    flavour: PoolingFlavour = "vllm-classify",
    python: str = sys.executable,
) -> list[str]:
    """The command line of the server.

    flavour: ``vllm-classify`` serves ``/classify`` and uses the prefix cache, which suits our client; ``vllm`` is the per-token
    task that the official client needs on ``/pooling``, without ``/classify`` and without the prefix cache.

    Raises:
        PolarError: this version lacks an option that a reward model needs, or the folder is not one of our checkpoints.
    """
    config = json.loads((model / "config.json").read_text()) if (model / "config.json").is_file() else {}
    max_length = Encoder.from_pretrained(model).settings.max_length
    if flavour == "lmdeploy":
        raise PolarError("vLLM can't reply as LMDeploy does; use --engine polar for --pooling-flavour lmdeploy")
    return [
        python,
        *("-m", _MODULE, "--model", str(model), "--served-model-name", model_name(model)),
        *("--host", host, "--port", str(port), "--dtype", dtype),
        *_task_options(installed),
        *("--max-model-len", str(min(max_length, config.get("max_position_embeddings", max_length)))),
        *_pooler_options(installed, flavour),
    ]


def _task_options(installed: Installed) -> list[str]:
    if {"--runner", "--convert"} <= installed.options:
        return ["--runner", "pooling", "--convert", "classify"]
    if "--task" in installed.options:
        return ["--task", "classify"]
    raise PolarError(f"vLLM {installed.version} can't serve a reward model: it has neither --runner nor --task")


def _pooler_options(installed: Installed, flavour: PoolingFlavour) -> list[str]:
    option = next((name for name in ("--pooler-config", "--override-pooler-config") if name in installed.options), None)
    raw = next((name for name in ("use_activation", "activation", "softmax") if name in installed.pooler), None)
    if option is None or raw is None:
        raise PolarError(f"vLLM {installed.version} has no setting that turns the sigmoid on scores off")
    settings: dict[str, object] = {raw: False}
    if flavour == "vllm":
        if "task" not in installed.pooler:
            raise PolarError(f"vLLM {installed.version} has no per-token task; omit --pooling-flavour")
        settings["task"] = "token_classify"
    return [option, json.dumps(settings)]
