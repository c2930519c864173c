"""Notebooks as programs: their code cells in order, without a kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.documents import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def read(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook, each with its text as ``source`` and its ``tags``."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"]), "tags": cell["metadata"].get("tags", [])} for cell in cells]


def program(path: Path, parameters: dict[str, Any], without: str | None = None) -> str:
    """The code cells, with these parameters behind the cell that is tagged so (papermill's convention).

    without: leave out the cells with this tag.
    """
    parts = []
    for number, cell in enumerate(read(path), 1):
        if cell["cell_type"] == "code" and without not in cell["tags"]:
            parts.append(f"# {path.name}, cell {number}\n{cell['source']}")
            if "parameters" in cell["tags"]:
                parts += [f"{name} = {value!r}" for name, value in parameters.items()]
    return "\n\n".join(parts) + "\n"


def run(path: Path, folder: Path, parameters: dict[str, Any], without: str | None = None) -> str:
    """Run a notebook in ``folder``, in a process of its own; returns what it prints."""
    script = folder / f"{path.stem}.py"
    script.write_text(program(path, parameters, without), encoding="utf-8")
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, script.name], cwd=folder, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
