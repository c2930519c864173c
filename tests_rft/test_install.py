"""The package, installed together with a trainer or an engine."""

import subprocess
import sys
from pathlib import Path

import polar_rm

# The parts of the verb itself, which need TRL and load the policy.
OF_THE_VERB = ("__init__", "run", "callbacks", "policy", "baseline", "report")
ADAPTERS = [
    f"polar_rm.rft.{file.stem}" for file in (Path(polar_rm.__file__).parent / "rft").glob("*.py") if file.stem not in OF_THE_VERB
]


def test_it_is_the_installed_package():
    assert Path(sys.prefix) in Path(polar_rm.__file__).parents


def test_client_and_adapters_load_no_heavy_package():
    heavy = {"torch", "transformers", "verl", "trl", "ray", "vllm"}
    code = f"import sys, polar_rm.client, {', '.join(ADAPTERS)}; sys.exit(str({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
