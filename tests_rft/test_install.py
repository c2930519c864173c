"""The package as it was installed beside a trainer or an engine."""

import subprocess
import sys
from pathlib import Path

import polar_rm

ADAPTERS = [
    f"polar_rm.rft.{file.stem}" for file in (Path(polar_rm.__file__).parent / "rft").glob("*.py") if file.stem != "__init__"
]


def test_it_is_the_installed_package():
    assert Path(sys.prefix) in Path(polar_rm.__file__).parents


def test_client_and_adapters_load_neither_torch_nor_transformers():
    names = ["polar_rm.serving.client", *ADAPTERS]
    code = f"import sys, {', '.join(names)}; sys.exit(', '.join({{'torch', 'transformers', 'verl', 'trl', 'vllm'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "" and done.returncode == 0
