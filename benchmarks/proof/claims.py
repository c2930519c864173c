"""The two claims that need a GPU or hours: the scaling law, and a policy against SFT on the same references."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow.parquet as pq

from polar_rm.common.files import read_json, write_file
from polar_rm.common.yaml import dump_yaml
from polar_rm.errors import PolarError
from proof.steps import Row, Run
from proof.training import finetuned

PROMPTS = "prompts.parquet"
"""Prompts with references and gold answers."""


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


def run_rft(run: Run) -> list[Row]:
    """Fine-tune the language model as a policy by the reward, and by SFT on the same references; a checker judges both."""
    tasks = [row for row in pq.read_table(run.data / PROMPTS).to_pylist() if row["reference"] and row["gold"]]
    if not tasks:
        raise PolarError(f"{PROMPTS}: no prompt has both a reference and a gold answer")
    lines = [{name: row[name] for name in ("prompt", "reference", "gold")} for row in tasks]
    data, folder = run.output / "rft.jsonl", run.output / "rft"
    write_file(data, "".join(json.dumps(line) + "\n" for line in lines))
    judges = [{"kind": "answer", "column": "gold"}]
    if run.size.encoder.startswith("embedding:"):
        judges.append({"kind": "gold", "name": "likeness", "model": run.size.encoder})
    config = {
        "data": [str(data)],
        "output": str(folder),
        "seed": run.seeds[0],
        "reward": {"source": str(finetuned(run, "polar", "given", run.seeds[0]) / "model")},
        "evaluate": {"share": 0.05, "judges": judges},
        "baseline": "sft",
    }
    file = run.output / "rft.yaml"
    write_file(file, dump_yaml(config))
    polar(run, "rft", "recipe:rft", str(file), *run.size.rft)
    report = read_json(folder / "report.json")
    about = {"seed": run.seeds[0], "steps": report["steps"]}
    rows = [{**about, "measure": f"{judge}: after minus before", **found} for judge, found in report["held_out"].items()]
    baseline = (report["baseline"] or {}).get("difference", {})
    rows += [{**about, "measure": f"{judge}: rft minus sft", **found} for judge, found in baseline.items()]
    return [{**row, "value": row["difference"]} for row in rows]
