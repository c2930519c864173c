"""What starts fast, or runs in a trainer's environment, must not load torch and transformers."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers"}


@pytest.mark.parametrize(
    "module",
    [
        "polar_rm.cli.main",
        "polar_rm.model.language_models",
        "polar_rm.corpus.build",
        "polar_rm.rft.items",
        "polar_rm.sampling.estimate",
        "polar_rm.sampling.runner",
        "polar_rm.serving.address",
        "polar_rm.client",
    ],
)
def test_loads_neither_torch_nor_transformers(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.split() == []
