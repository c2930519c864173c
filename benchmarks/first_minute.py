"""From an empty environment to the first rewards: the package is installed with all it needs, then README's first lines run.

Every installer begins with an empty environment and an empty cache, so that everything is downloaded or read from a folder of
wheels. ``uv`` must be on the path (``pip install uv``). The time depends on the network; ``cpu_s`` does not.

    UV_FIND_LINKS=wheels python benchmarks/first_minute.py --torch torch==2.13.0+cpu --output results/first_minute.json
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import origin, report

from polar_rm.common.files import write_json

ROOT = Path(__file__).resolve().parents[1]


def timed(*commands: list[str], **environment: str) -> tuple[float, float]:
    """The (wall, CPU) seconds of commands, one after another."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    for command in commands:
        subprocess.run(command, check=True, env=os.environ | environment, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu


def measure(installer: str, torch: str, folder: Path) -> dict[str, Any]:
    """One row. folder: an empty one."""
    python = str(folder / "env/bin/python")
    make = {"uv": ["uv", "venv", "-q", "--python", sys.executable], "pip": [sys.executable, "-m", "venv"]}[installer]
    install = {"uv": ["uv", "pip", "install", "-q", "--python", python], "pip": [python, "-m", "pip", "install", "-q"]}[installer]
    caches = {"UV_CACHE_DIR": str(folder / "cache"), "PIP_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": ""}
    installed = timed([*make, str(folder / "env")], [*install, torch, str(ROOT)], **caches)
    rewards = timed([python, str(ROOT / "tools/first_lines.py"), str(ROOT / "README.md")], **caches)
    return {
        "installer": installer,
        "torch": torch,
        "seconds": installed[0] + rewards[0],
        "install_s": installed[0],
        "first_rewards_s": rewards[0],
        "cpu_s": installed[1] + rewards[1],
        "load": os.getloadavg()[0],
        **origin(),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--installers", nargs="+", choices=["uv", "pip"], default=["uv", "pip"])
    parser.add_argument("--torch", default="torch", help="what is installed beside the package, such as torch==2.13.0+cpu")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for installer in arguments.installers:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(installer, arguments.torch, Path(folder)))
        report(rows[-1:], None)
    if arguments.output:
        write_json(arguments.output, rows)


if __name__ == "__main__":
    main()
