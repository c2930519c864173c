"""Reward models side by side: published benchmarks as shipped, and pairs of held-out prompts.

Each benchmark needs references for the contenders that read one: a folder of `polar references` per benchmark. A row of the
results is one figure of one contender, or one paired difference; one command makes all of them.

    python benchmarks/contenders.py --model quickstart=runs/quickstart/finetune/model --model classifier=hf:runs/classifier \
        --suite llmbar=LLMBar/Dataset --references runs/references --pairs runs/rewards/test.jsonl \
        --output benchmarks/results/contenders.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import origin
from rich.console import Console

from polar_rm.common.files import write_json
from polar_rm.common.progress import show_progress
from polar_rm.evaluation import evaluate_files, evaluate_suite
from polar_rm.evaluation.contenders import ModelOptions
from polar_rm.model.devices import claim_device


def named(words: list[str]) -> dict[str, str]:
    """Names and values of NAME=VALUE."""
    return dict(word.split("=", 1) for word in words)


def suite_rows(report: Any) -> list[dict[str, Any]]:
    """All figures of all contenders, then the differences of the headline."""
    about = {"data": report["suite"], "references": report["reference"]["mode"] if not report["reference"]["file"] else "own"}
    figures = [
        {**about, "contender": name, "figure": figure, **values}
        for name, measures in report["contenders"].items()
        for figure, values in measures["figures"].items()
    ]
    return figures + [{**about, "figure": report["headline"], **difference} for difference in report["differences"]]


def pair_rows(report: Any, file: Path) -> list[dict[str, Any]]:
    """Accuracy of all contenders and groups, then the differences over all pairs."""
    about = {"data": file.name, "references": report["reference"]["mode"]}
    groups = {"overall": report, **report["by"]}
    figures = [
        {**about, "contender": name, "figure": group, "n": values["n_pairs"], **measure}
        for group, values in groups.items()
        for name, measure in values["contenders"].items()
    ]
    return figures + [{**about, "figure": "overall", **difference} for difference in report["differences"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="as --model of polar evaluate, with a name")
    parser.add_argument("--suite", action="append", default=[], help="NAME=PATH")
    parser.add_argument("--references", type=Path, help="folder of folders NAME with references.jsonl")
    parser.add_argument("--pairs", type=Path, nargs="*", default=[], help="files of comparisons")
    parser.add_argument("--by", default="source", help="metadata field that groups the pairs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    options = ModelOptions(arguments.precision, claim_device(arguments.device))
    rows: list[dict[str, Any]] = []
    with show_progress(Console(stderr=True)) as progress:
        for name, path in named(arguments.suite).items():
            references = arguments.references / name / "references.jsonl"
            found = evaluate_suite(name, path, arguments.model, references=references, options=options, progress=progress)
            rows += suite_rows(found.report)
        for file in arguments.pairs:
            result = evaluate_files(arguments.model, [file], by=arguments.by, options=options, progress=progress)
            rows += pair_rows(result.report, file)
    write_json(arguments.output, {"models": named(arguments.model), **origin(), "rows": rows})


if __name__ == "__main__":
    main()
