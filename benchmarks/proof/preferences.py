"""What fine-tuned models do on held-out preferences: accuracy, several references, calibration, over-optimisation."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from calibration import on_test_pairs

from polar_rm.calibration import calibrate_files
from polar_rm.common.extras import require
from polar_rm.common.files import read_json, write_file
from polar_rm.common.progress import show_progress
from polar_rm.errors import NoTemperature, PolarError
from polar_rm.evaluation import ModelOptions, evaluate_files
from polar_rm.evaluation.bestofn.run import best_of_n_files
from polar_rm.evaluation.pairs import Pairs
from polar_rm.evaluation.statistics import Floats
from polar_rm.model.devices import claim_device, dtype_name, pick_device
from polar_rm.records import flatten, read_comparisons
from proof.corpora import SAMPLES, preference_file, trajectory_file
from proof.measures import Key, accuracies, paired
from proof.steps import Row, Run
from proof.training import KINDS, REFERENCES, finetuned, pretrained

CLASSIFIER = "classifier"


def script(run: Run, name: str, *arguments: str) -> None:
    """Run another benchmark.

    Raises:
        PolarError: it failed; its own message stands above.
    """
    command = [sys.executable, str(Path(__file__).parents[1] / name), *arguments]
    if code := subprocess.run(command, cwd=run.output).returncode:
        raise PolarError(f"{name} ended with exit code {code}")


def train_classifier(run: Run) -> list[Row]:
    """A stock classifier on the same pairs and from the same language model, by TRL, without references."""
    require("bench", "the stock classifier", "trl")
    folder = run.output / CLASSIFIER
    init = ["--init", str(run.output / "lm")]
    script(run, "classifier.py", str(run.output / "pairs/train.jsonl"), *init, *run.size.classifier, "--output", str(folder))
    facts = read_json(folder / "origin.json")
    return [{"model": CLASSIFIER, "measure": name, "value": facts[name]} for name in ("pairs", "pairs_used", "loss")]


def prefer(run: Run) -> list[Row]:
    """Accuracy on held-out preferences by source, and paired differences; contenders have the names KIND/REFERENCES."""
    correct: dict[Key, Floats] = {}
    pairs: Pairs | None = None
    for references in REFERENCES:
        models = {(kind, seed): finetuned(run, kind, references, seed) / "model" for kind in KINDS for seed in run.seeds}
        specs = [f"{kind}-{seed}={folder}" for (kind, seed), folder in models.items()]
        others = ["tfidf", "length", f"encoder={run.size.encoder}"] if references == "given" else []
        if references == "empty" and run.result(CLASSIFIER).is_file():
            others = [f"{CLASSIFIER}=hf:{run.output / CLASSIFIER}"]
        with show_progress(run.console) as progress:
            result = evaluate_files(
                [*specs, *others],
                [run.output / "pairs/test.jsonl"],
                by="source",
                reference=references,
                baselines=(),
                options=ModelOptions("auto", claim_device("auto")),
                progress=progress,
            )
        if pairs is not None and not np.array_equal(pairs.prompts, result.scores.pairs.prompts):
            raise PolarError("the pairs with and without references differ: they can't be compared")
        pairs = result.scores.pairs
        correct |= {(f"{kind}/{references}", seed): result.scores.correct(f"{kind}-{seed}") for kind, seed in models}
        correct |= {(name.split("=")[0], None): result.scores.correct(name.split("=")[0]) for name in others}
    if pairs is None:
        raise PolarError("nothing was evaluated")
    about: dict[str, Any] = {"data": "held-out preferences"}
    everything = np.arange(len(pairs))
    return accuracies(correct, pairs, everything, about) + paired(correct, pairs, everything, couples(), about)


def couples() -> list[tuple[str, str]]:
    """The comparisons of the claim: between starts, between references, and with the other contenders."""
    starts = [(f"polar/{reference}", f"{kind}/{reference}") for reference in REFERENCES for kind in ("rbs", "none")]
    references = [(f"{kind}/given", f"{kind}/empty") for kind in KINDS]
    others = [(f"polar/{own}", other) for own in REFERENCES for other in ("tfidf", "length", "encoder", CLASSIFIER)]
    best = [("polar/given", "rbs/empty"), ("polar/given", "none/empty")]
    return starts + references + others + best


def several_references(run: Run) -> list[Row]:
    """What more references gain: of one policy (pre-trained models), and of the best by gold (fine-tuned models)."""
    seed = run.seeds[0]
    tasks = {
        ("policy", trajectory_file(run.size.corpus.sets[0])): pretrained(run, "polar", seed),
        ("quality", SAMPLES): finetuned(run, "polar", "given", seed),
    }
    file = run.output / "references.json"
    for (task, data), folder in tasks.items():
        model = f"polar={folder / 'model'}"
        script(run, "references.py", task, str(run.data / data), "--model", model, *run.size.references, "--output", str(file))
    return [
        {**row, "measure": "accuracy", "seed": seed, "value": row["accuracy"], "note": "prompts may have been trained on"}
        for row in read_json(file)["rows"]
    ]


def calibrated(run: Run) -> list[Row]:
    """Calibration error and abstention of the fine-tuned models, on pairs that neither training nor the card has seen."""
    device = pick_device("auto")
    placement = {"device": device, "dtype": dtype_name("auto", device)}
    rows: list[Row] = []
    for kind in KINDS:
        for seed in run.seeds:
            model = finetuned(run, kind, "given", seed) / "model"
            try:
                with show_progress(run.console) as progress:
                    card = calibrate_files(model, [run.output / "pairs/calibrate.jsonl"], progress=progress, **placement)
            except NoTemperature as error:  # a finding about this model, which must not hide the others
                about = {"model": kind, "references": "given", "seed": seed}
                rows.append({**about, "measure": "temperature", "value": None, "reason": str(error)})
                continue
            test = on_test_pairs(model, run.output / "pairs/test.jsonl", **placement)
            about = {
                "model": kind,
                "references": "given",
                "seed": seed,
                "n_pairs": test["n_pairs"],
                "n_prompts": test["n_prompts"],
            }
            measures = ("accuracy", "loss_before", "loss_after", "ece_before", "ece_after", "ece_of_exact_probabilities")
            rows += [{**about, "measure": name, "value": test[name]} for name in measures]
            rows.append({**about, "measure": "temperature", "value": card["temperature"]})
            rows += [{**about, "measure": "accuracy of the most certain", **point} for point in test["abstention"]]
    return rows


def overoptimised(run: Run) -> list[Row]:
    """Best of n on samples with gold values, whose prompts no fine-tuning has seen: gain, regret, drop and gamma.

    References are the answers of the preference set to the same prompts, where it has one; other prompts are left out.
    """
    samples, rows = gold_samples(run), []
    for references in REFERENCES:
        specs = [f"{kind}-{seed}={finetuned(run, kind, references, seed) / 'model'}" for kind in KINDS for seed in run.seeds]
        specs += [f"encoder={run.size.encoder}"] if references == "given" else []
        with show_progress(run.console) as progress:
            found = best_of_n_files(
                specs,
                [samples],
                reference=references,
                options=ModelOptions("auto", claim_device("auto")),
                progress=progress,
            ).report
        for name, curve in found["contenders"].items():
            kind, _, seed = name.partition("-")
            about = {"contender": kind, "seed": int(seed) if seed else None, "references": references}
            about |= {"n_prompts": found["n_complete"], "max_n": found["max_n"], "n_samples": found["n_samples"]}
            for figure in ("gain", "regret", "drop", "area", "gamma"):
                if (estimate := curve[figure]) is not None:  # type: ignore[literal-required]
                    rows.append({**about, "measure": figure, **estimate})
    return rows


def gold_samples(run: Run) -> Path:
    """The judged samples of the prompts that have a reference, as a file for `polar bestofn`.

    Raises:
        PolarError: no prompt has one.
    """
    answers: dict[str, str] = {}
    for name in run.size.corpus.preferences:
        for row in read_comparisons(run.data / preference_file(name)):
            if isinstance(row.reference, str) and row.reference:
                answers.setdefault(flatten(row.prompt), row.reference)
    table = pq.read_table(run.data / SAMPLES, columns=["prompt", "text", "correct"]).to_pylist()
    judged = [row for row in table if row["correct"] is not None and row["prompt"] in answers]
    prompts = sorted({row["prompt"] for row in judged})
    random.Random(0).shuffle(prompts)
    kept = set(prompts[: run.size.gold_prompts])
    lines = [
        {"prompt": row["prompt"], "reference": answers[row["prompt"]], "output": row["text"], "gold": row["correct"]}
        for row in judged
        if row["prompt"] in kept
    ]
    if not lines:
        raise PolarError(f"{SAMPLES}: no prompt has a reference in the preference sets")
    file = run.output / "gold.jsonl"
    write_file(file, "".join(json.dumps(line) + "\n" for line in lines))
    return file
