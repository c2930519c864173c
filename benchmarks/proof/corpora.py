"""The data of all steps: the language model, two corpora of the same texts, and preference pairs, split by prompt and policy."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from polar_rm.common.config import to_config
from polar_rm.common.files import atomic_directory, read_json
from polar_rm.common.progress import show_progress
from polar_rm.corpus import is_held_out
from polar_rm.corpus.build import build
from polar_rm.corpus.config import CorpusConfig
from polar_rm.errors import PolarError
from polar_rm.records import Comparison, flatten, read_comparisons, read_trajectories, write_records
from proof.steps import Row, Run

SAMPLES = "traj_tulu_bon16.parquet"
"""The samples with gold values, on which over-optimisation is measured."""
MANY = 6  # of a set with fewer policies none is held out


def trajectory_file(name: str) -> str:
    """The file of a set of trajectories."""
    return f"traj_{name}.parquet"


def preference_file(name: str) -> str:
    """The file of a set of preferences."""
    return f"pref_train_{name}.parquet"


def make_init(run: Run) -> list[Row]:
    """The first layers of the language model as a folder, from which every training starts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from polar_rm.model.language_models import unpack_gguf

    start = run.size.model
    source = unpack_gguf(start.init, run.output / "whole-lm")
    model = AutoModelForCausalLM.from_pretrained(source, num_hidden_layers=start.layers, dtype="float32", trust_remote_code=False)
    with atomic_directory(run.output / "lm") as folder:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    return [{"measure": "parameters", "value": model.num_parameters(), "layers": start.layers}]


def unseen_policies(run: Run) -> list[str]:
    """Names of policies to hold out, drawn from each set that has many; they are held out of every set."""
    names: set[str] = set()
    for name in run.size.corpus.sets:
        table = pq.read_table(run.data / trajectory_file(name), columns=["policy"])
        policies = sorted(table["policy"].unique().to_pylist())
        if len(policies) >= MANY:
            count = max(2, round(run.size.corpus.held_out_policies * len(policies)))
            names.update(random.Random(0).sample(policies, count))
    return sorted(names)


def make_corpora(run: Run) -> list[Row]:
    """A corpus of policies, and one of continuations of the same training texts; both hold out the same prompts.

    Continuations leave out the texts of unseen policies, too, so that none of the two kinds has read these.
    """
    settings, unseen = run.size.corpus, unseen_policies(run)
    rows: list[Row] = []
    with show_progress(run.console) as progress:
        report = build(corpus_config(policies_config(run) | {"output": str(run.output / "corpus/polar")}), progress=progress)
        rows += [{"corpus": "polar", "split": name, "measure": "size", **counts} for name, counts in report["splits"].items()]
        seen = sorted(name for name, facts in report["policies"].items() if not facts["held_out"])
        if patterns := [name for name in seen if set("*?[") & set(name)]:
            raise PolarError(f"the name of the policy {patterns[0]!r} would be read as a pattern")
        texts = {"pairing": settings.continuations, "policies": seen, "output": str(run.output / "corpus/rbs")}
        report = build(corpus_config(_common(run) | texts), progress=progress)
    rows += [{"corpus": "rbs", "split": name, "measure": "size", **counts} for name, counts in report["splits"].items()]
    return [*rows, {"corpus": "polar", "measure": "unseen policies", "value": len(unseen), "names": unseen}]


def policies_config(run: Run) -> dict[str, Any]:
    """The config of the corpus of policies, without its output."""
    splits = {"prompts": run.size.corpus.held_out_prompts, "policies": unseen_policies(run)}
    return _common(run) | {"pairing": run.size.corpus.pairing, "splits": splits}


def _common(run: Run) -> dict[str, Any]:
    settings = run.size.corpus
    return {
        "inputs": [str(run.data / trajectory_file(name)) for name in settings.sets],
        "splits": {"prompts": settings.held_out_prompts},
        "workers": settings.workers,
        "report": {"pairs": 500},
    }


def corpus_config(values: dict[str, Any]) -> CorpusConfig:
    """The config of a corpus from its values."""
    return to_config(CorpusConfig, values, "proof")


def make_pairs(run: Run) -> list[Row]:
    """Preference pairs with a reference, in equal shares of every file, split by prompt into train, calibrate and test.

    The test prompts are those that the corpora hold out. Prompts of the samples with gold values are never trained on.
    """
    settings = run.size.corpus
    sampled = {flatten(row.prompt) for row in read_trajectories(run.data / SAMPLES)}
    parts: dict[str, list[Comparison]] = {"train": [], "calibrate": [], "test": []}
    for name in settings.preferences:
        rows = [row for row in read_comparisons(run.data / preference_file(name)) if row.reference]
        random.Random(0).shuffle(rows)
        for part, taken in parts.items():
            fitting = [row for row in rows if part_of(row, settings.held_out_prompts) == part]
            if part == "train":
                fitting = [row for row in fitting if flatten(row.prompt) not in sampled]
            taken += fitting[: settings.pairs[part] // len(settings.preferences)]
    made: list[Row] = []
    for part, taken in parts.items():
        random.Random(0).shuffle(taken)
        count = write_records(run.output / f"pairs/{part}.jsonl", taken)
        made.append({"split": part, "measure": "pairs", "value": count, "n_prompts": len({flatten(row.prompt) for row in taken})})
    return made


def part_of(row: Comparison, held_out: float) -> str:
    """The part of a preference pair: test where the corpora hold out the prompt, too."""
    if is_held_out(row.prompt, held_out):
        return "test"
    return "calibrate" if is_held_out(row.prompt, held_out + (1 - held_out) / 4) else "train"


def tokens_of(folder: Path) -> int:
    """The tokens that a finished training run computed: shared prefixes count once."""
    import json

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return int(sum(row.get("tokens", 0) for row in map(json.loads, lines)))


def plan_of(folder: Path) -> dict[str, object]:
    """The plan of a finished training run."""
    plan: dict[str, object] = read_json(folder / "run.json")["plan"]
    return plan
