"""Policies improved by the reward: GRPO, SFT on the same references, both, SFT on the best of n, and GRPO without KL."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from polar_rm.common.config import load_config
from polar_rm.common.files import read_json, write_file
from polar_rm.common.yaml import dump_yaml
from polar_rm.corpus import is_held_out
from polar_rm.errors import PolarError
from polar_rm.evaluation.statistics import Floats, Ints, bootstrap_intervals, listed, paired_difference
from polar_rm.records import flatten, from_cell, prompt_key, read_trajectories
from polar_rm.rft.comparison import column, judged_by
from polar_rm.rft.config import RftConfig
from polar_rm.rft.evaluations import REWARD, read_rows
from proof.claims import polar
from proof.steps import Row, Run
from proof.training import finetuned

PROMPTS = "prompts.parquet"
"""Prompts with references and gold answers."""
START, GRPO, SFT, BOTH, BEST, WITHOUT_KL = "start", "grpo", "sft", "sft then grpo", "best of n", "without kl"
COUPLES = (
    *((arm, START) for arm in (GRPO, SFT, BOTH, BEST, WITHOUT_KL)),
    *((GRPO, SFT), (BOTH, SFT), (BOTH, GRPO), (GRPO, BEST), (BEST, SFT), (WITHOUT_KL, GRPO)),
)
"""The differences of the claim: first minus second on the same held-out prompts."""


def folder_of(run: Run, arm: str, seed: int) -> Path:
    """The run folder of an arm; that of SFT lies in GRPO's, whose baseline it is."""
    return run.output / f"rft/{(GRPO if arm in (START, SFT) else arm).replace(' ', '-')}-{seed}"


def selected_in(run: Run, seed: int) -> Path:
    """The folder of samples and of the selected ones; a run refuses data in its own folder."""
    return run.output / f"rft/selected-{seed}"


def evaluation_of(run: Run, arm: str, seed: int) -> list[Row]:
    """The completions of held-out prompts by an arm's policy: the first evaluation for the starting policy, else the last.

    Raises:
        PolarError: there is none.
    """
    folder = folder_of(run, arm, seed) / ("sft/evaluation" if arm in (SFT, BEST) else "evaluation")
    found = sorted(path for path in folder.glob("step-*.jsonl") if not path.name.endswith(".texts.jsonl"))
    if not found:
        raise PolarError(f"{folder}: there is no evaluation")
    return read_rows(found[0 if arm == START else -1])


def make_tasks(run: Run) -> list[Row]:
    """Training and held-out prompts with reference and gold answer; held-out ones are held out of the corpora, too."""
    size = run.size
    tasks = [row for row in pq.read_table(run.data / PROMPTS).to_pylist() if row["reference"] and row["gold"]]
    unique = {
        prompt_key(from_cell(row["prompt"])): {name: row[name] for name in ("prompt", "reference", "gold")} for row in tasks
    }
    lines = [unique[key] for key in sorted(unique)]
    random.Random(0).shuffle(lines)
    parts: dict[str, list[Row]] = {"train": [], "held_out": []}
    for line in lines:
        parts["held_out" if is_held_out(from_cell(line["prompt"]), size.corpus.held_out_prompts) else "train"].append(line)
    made = []
    for name, limit in (("train", size.rft.train_prompts), ("held_out", size.rft.held_out_prompts)):
        if len(parts[name]) < limit:
            raise PolarError(
                f"{PROMPTS}: {limit} {name} prompts with reference and gold answer are needed, {len(parts[name])} are there"
            )
        write_lines(run.output / f"rft/{name}.jsonl", parts[name][:limit])
        made.append({"split": name, "measure": "prompts", "value": limit})
    return made


def write_lines(file: Path, rows: Sequence[Row]) -> None:
    """Write JSON lines."""
    write_file(file, "".join(json.dumps(row) + "\n" for row in rows))


def config_of(run: Run, arm: str, seed: int) -> tuple[RftConfig, list[str]]:
    """The config of an arm, and the words of ``polar rft`` that name it. All arms of a seed have one reward model and one budget.

    Completions of held-out prompts are drawn with the seeds of ``seed`` in every arm, so differences are paired.
    """
    folder, judges = folder_of(run, arm, seed), [{"kind": "answer", "column": "gold"}]
    if run.size.encoder.startswith("embedding:"):
        judges.append({"kind": "gold", "name": "likeness", "model": run.size.encoder})
    policy = folder_of(run, SFT, seed) / "sft/policy" if arm == BOTH else run.output / "lm"
    data = selected_in(run, seed) / "selected.jsonl" if arm == BEST else run.output / "rft/train.jsonl"
    values = {
        "data": [str(data)],
        "output": str(folder),
        "seed": seed,
        "policy": {"model": str(policy)},
        "reward": {"source": str(finetuned(run, "polar", "given", seed) / "model")},
        "evaluate": {"data": [str(run.output / "rft/held_out.jsonl")], "judges": judges},
        "baseline": "sft" if arm in (GRPO, BEST) else None,
    }
    file = folder.with_name(folder.name + ".yaml")
    write_file(file, dump_yaml(values))
    overrides = [*run.size.rft.overrides, *(run.size.rft.without_kl if arm == WITHOUT_KL else [])]
    return load_config(RftConfig, ["recipe:rft", file], overrides), ["recipe:rft", str(file), *overrides]


def reinforce(run: Run, arm: str, seed: int) -> list[Row]:
    """GRPO from the arm's starting policy; that of the arm ``grpo`` also trains SFT on the references of the same prompts."""
    config, words = config_of(run, arm, seed)
    polar(run, "rft", *words)
    report = read_json(config.output / "report.json")
    about = {"arm": arm, "seed": seed, "steps": report["steps"]}
    rows = [
        {**about, "measure": f"{judge}: after minus before", "value": found["difference"], **found}
        for judge, found in report["held_out"].items()
    ]
    rows.append({**about, "measure": "limits left", "value": len(report["events"]), "events": report["events"]})
    return [*rows, {**about, **exploitation(report)}] if arm == WITHOUT_KL else rows


def exploitation(report: Row) -> Row:
    """Whether a run was warned about whose reward rose on held-out prompts while no judge saw an improvement.

    value: 1 if the monitor or the report told it, 0 if both were silent, None if the run was none of this kind.
    """
    judged = {name: found["verdict"] for name, found in report["held_out"].items() if name != REWARD}
    facts: Row = {"measure": "exploitation told", "verdicts": judged, "sentences": report["sentences"]}
    if report["held_out"].get(REWARD, {}).get("verdict") != "better":
        return {**facts, "value": None, "reason": "the reward did not rise on held-out prompts"}
    if "better" in judged.values():
        return {**facts, "value": None, "reason": "a judge saw an improvement"}
    in_report = any("exploiting the reward model" in sentence for sentence in report["sentences"])
    by_monitor = [event["quantity"] for event in report["events"]]
    return {**facts, "value": int(in_report or bool(by_monitor)), "report": in_report, "monitor": by_monitor}


def best_of_n(run: Run, seed: int) -> list[Row]:
    """SFT on the starting policy's own best answers by the reward: as many updates and sequences as GRPO and SFT have."""
    selected = select_best(run, seed)
    config, _ = config_of(run, BEST, seed)
    steps = train_on_selected(config)
    about = {"arm": BEST, "seed": seed}
    counts = {"steps": steps, "prompts": len(selected), "samples of each": run.size.rft.samples}
    scores = [row["score"] for row in selected]
    rows = [{**about, "measure": name, "value": value} for name, value in counts.items()]
    report = read_json(selected_in(run, seed) / "select/report.json")
    return [
        *rows,
        {**about, "measure": "mean reward of the selected", "value": float(np.mean(scores)), "counts": report["counts"]},
    ]


def select_best(run: Run, seed: int) -> list[Row]:
    """Sample the starting policy on the training prompts, and write the best answer to each as its reference.

    Raises:
        PolarError: a verb failed.
    """
    folder, tasks = selected_in(run, seed), read_rows(run.output / "rft/train.jsonl")
    config, _ = config_of(run, BEST, seed)
    write_lines(folder / "prompts.jsonl", [{"prompt_id": str(n), "prompt": task["prompt"]} for n, task in enumerate(tasks)])
    policy = {"name": "start", "family": "start", "kind": config.policy.kind, "model": str(run.output / "lm")}
    policy |= {"samples": run.size.rft.samples, "decoding": {"max_new_tokens": config.trainer["max_completion_length"]}}
    sampling = {"output": str(folder / "samples"), "source": "rft", "prompts": str(folder / "prompts.jsonl")}
    file = folder / "sampling.yaml"
    write_file(file, dump_yaml({**sampling, "policies": [policy], "seed": seed}))
    polar(run, "sample", str(file))
    samples = read_trajectories(folder / "samples/trajectories.parquet")
    items = [{"prompt": row.prompt, "reference": tasks[int(row.prompt_id)]["reference"], "output": row.text} for row in samples]
    write_lines(folder / "items.jsonl", items)
    chosen = [f"inputs=[{folder / 'items.jsonl'}]", f"model={config.reward.source}", "best_of_n=1", "workers=1"]
    polar(run, "select", *chosen, f"output={folder / 'select'}", f"seed={seed}")
    selected = read_rows(folder / "select/selected.jsonl")
    lines = [{"prompt": prompt_of(row["messages"]), "reference": row["messages"][-1]["content"]} for row in selected]
    write_lines(folder / "selected.jsonl", lines)
    return selected


def prompt_of(messages: Sequence[Row]) -> Any:
    """The prompt of a selected row, as the tasks have it: the text of a single user message, else messages."""
    prompt = list(messages[:-1])
    return prompt[0]["content"] if [message["role"] for message in prompt] == ["user"] else prompt


def train_on_selected(config: RftConfig) -> int:
    """SFT of the starting policy on the selected answers, with the budget of the other arms; returns the number of updates."""
    import trl

    from polar_rm.rft.baseline import train_sft
    from polar_rm.rft.data import read_data
    from polar_rm.rft.evaluations import Evaluator, open_judges
    from polar_rm.rft.policy import trainer_arguments
    from polar_rm.rft.run import identity

    judges = open_judges(config)
    data = read_data(config, judges)
    arguments = trainer_arguments(trl.GRPOConfig, config.trainer, {"output_dir": str(config.output), "seed": config.seed})
    evaluator = Evaluator(
        config.output / "evaluation", config, data.held_out, judges, arguments.max_completion_length, config.reward.open()
    )
    owner, steps = identity(config), arguments.max_steps
    return int(train_sft(config, arguments, data.train, evaluator, lambda row: None, steps=steps, owner=owner).results["steps"])


def compare_arms(run: Run) -> list[Row]:
    """Each judge's mean of each arm, and paired differences over held-out prompts, of each seed and of the mean of seeds.

    Raises:
        PolarError: two evaluations are of different prompts.
    """
    arms = (START, GRPO, SFT, BOTH, BEST, WITHOUT_KL)
    found = {(arm, seed): evaluation_of(run, arm, seed) for arm in arms for seed in run.seeds}
    first = next(iter(found.values()))
    keys = [(row["number"], row["sample"], flatten(row["prompt"])) for row in first]
    if other := next(
        (key for key, rows in found.items() if [(r["number"], r["sample"], flatten(r["prompt"])) for r in rows] != keys), None
    ):
        raise PolarError(f"the evaluations of {other[0]}, seed {other[1]}, are of other held-out prompts")
    by_key: dict[str, int] = {}
    prompts = np.array([by_key.setdefault(prompt_key(row["prompt"]), len(by_key)) for row in first], np.int64)
    rows: list[Row] = []
    for judge in judged_by(*found.values()):
        values: dict[tuple[str, int | None], Floats] = {key: np.array(column(each, judge)) for key, each in found.items()}
        if len(run.seeds) > 1:
            values |= {(arm, None): np.mean([values[arm, seed] for seed in run.seeds], axis=0) for arm in arms}
        rows += rows_of(judge, values, prompts, len(run.seeds))
    return rows


def rows_of(judge: str, values: dict[tuple[str, int | None], Floats], prompts: Ints, seeds: int) -> list[Row]:
    """Rows of one judge. values: of each completion, float64 [n], by arm and seed; seed None is the mean of seeds."""
    low, high = min(0.0, *(each.min() for each in values.values())), max(1.0, *(each.max() for each in values.values()))
    counts = {"n_prompts": len(np.unique(prompts)), "n_completions": len(prompts)}
    rows: list[Row] = []
    for (arm, seed), each in values.items():
        about = {"judge": judge, "seed": seed, "seeds": seeds if seed is None else 1, **counts}
        [bounds] = bootstrap_intervals(each[:, None], prompts, extremes=(low, high))
        rows.append({**about, "measure": "mean", "arm": arm, "value": float(each.mean()), "ci95": listed(bounds)})
        for second in (second for first, second in COUPLES if first == arm):
            difference = paired_difference(each, values[second, seed], prompts)
            compared = {"first": arm, "second": second, "value": difference.difference, "ci95": listed(difference.ci95)}
            rows.append({**about, "measure": "difference", **compared})
    return rows
