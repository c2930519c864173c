"""The claim that loss follows a power law, and how steps call the verbs of polar."""

from __future__ import annotations

import subprocess
import sys

from polar_rm.common.files import read_json, write_file
from polar_rm.common.yaml import dump_yaml
from polar_rm.errors import PolarError
from proof.steps import Row, Run


def polar(run: Run, *words: str) -> None:
    """Run the command `polar`.

    Raises:
        PolarError: it failed; its own message stands above.
    """
    if code := subprocess.run([sys.executable, "-m", "polar_rm", *words], cwd=run.output).returncode:
        raise PolarError(f"polar {' '.join(words[:2])} ended with exit code {code}")


def fit_law(run: Run) -> list[Row]:
    """Train the grid of sizes and budgets, and fit the laws of the loss on unseen prompts and unseen policies."""
    folder, law = run.output / "law", run.size.law
    limits = {"max_length": run.size.model.max_length, "max_response_length": run.size.model.max_response_length}
    model = {"tokenizer": str(run.output / "lm"), "encoder": limits}
    config = {
        "corpus": str(run.output / "corpus/polar"),
        "output": str(folder),
        "sizes": law.sizes,
        "budgets": {"per_parameter": law.per_parameter},
        "fit": law.fit,
        "eval_limit": run.size.test_comparisons,
        "training": run.size.law_training | {"model": model, "data": {"identical_steps": run.size.identical_steps}},
    }
    file = run.output / "law.yaml"
    write_file(file, dump_yaml(config))
    polar(run, "scaling", "run", "recipe:scaling", str(file))
    polar(run, "scaling", "fit", str(folder), "--json", str(run.output / "law.json"))
    report = read_json(run.output / "law.json")
    return [
        {"split": split, "law": name, "measure": parameter, **estimate, "ci95": estimate["ci95_prompts"]}
        for split, facts in report["splits"].items()
        for name, fitted in facts["laws"].items()
        for parameter, estimate in fitted["parameters"].items()
    ]
