"""The origin of a result: library versions, git state, machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

from polar_rm.common.sources import fetched

_PACKAGES = ("polar-rm", "torch", "transformers", "tokenizers", "numpy", "pyarrow", "peft")


def versions() -> dict[str, Any]:
    """Library versions, the git commit of the working directory (None outside a checkout), what models and data were
    fetched from where, and the kind of machine.

    torch is queried only if it is loaded already, so that commands without torch need not load it.
    """
    torch = sys.modules.get("torch")
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "git": _git(),
        **({"sources": sources} if (sources := fetched()) else {}),
        "machine": {
            "system": platform.platform(),
            "threads": torch.get_num_threads() if torch else os.cpu_count(),
            "accelerator": _accelerator(torch) if torch else None,
        },
    }


def _accelerator(torch: Any) -> str | None:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return "GPU of a Mac (mps)" if torch.backends.mps.is_available() else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    def run(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": run("rev-parse", "HEAD"), "dirty": bool(run("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
