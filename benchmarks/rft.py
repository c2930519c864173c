"""Does GRPO with a served reward model change a policy? `polar rft` on SmolLM2-135M, towards one policy of the packaged corpus.

The reward model is the quickstart's; the references are one policy's answers. Training uses 16 prompts, each once in every
quarter of the run. The test uses held-out prompts, sampled before and after with the same seeds and the published decoding.

    make quickstart test-trl && .venv-trl/bin/python benchmarks/rft.py --output runs/rft
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from threading import Event
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from common import LANGUAGE_MODEL, report, timed

from polar_rm.client.blocking import RewardClient
from polar_rm.common.config import load_config
from polar_rm.common.files import write_json
from polar_rm.corpus import is_held_out
from polar_rm.evaluation.contenders.baselines import BASELINES
from polar_rm.evaluation.statistics import paired_difference
from polar_rm.records import Comparison, ScoreItem, Text, flatten, read_referenced_prompts, read_trajectories
from polar_rm.rewards.outcomes import rewards
from polar_rm.rft.config import RftConfig
from polar_rm.rft.run import run
from polar_rm.sampling.backends.transformers import TransformersPolicy
from polar_rm.sampling.base import Decoding, Machine, Outcome, Request, Sample

TRAIN_PROMPTS = 16
HELD_OUT_PROMPTS = 0.25  # fraction


@contextmanager
def served(model: Path, log: Path) -> Iterator[str]:
    """Start a reward server in a separate process; yields its URL."""
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "polar_rm", "serve", "--model", str(model), "--port", "0"], stderr=file)
    try:
        while not (ready := [line for line in log.read_text().splitlines() if '"message": "ready"' in line]):
            if process.poll() is not None:
                raise SystemExit(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.2)
        yield json.loads(ready[0])["url"]
    finally:
        process.terminate()
        process.wait()


def build(author: str, output: Path) -> None:
    """Write ``train.jsonl`` and ``held_out.jsonl``: prompts with the author's first answer to each."""
    rows = list(read_trajectories(files("polar_rm.quickstart") / "data/trajectories.parquet"))
    answers = {row.prompt_id: row for row in reversed(rows) if row.policy == author and row.text.strip()}
    parts: dict[str, list[str]] = {"train": [], "held_out": []}
    for _, row in sorted(answers.items()):
        part = "held_out" if is_held_out(row.prompt, HELD_OUT_PROMPTS) else "train"
        parts[part].append(json.dumps({"prompt": row.prompt, "reference": row.text}) + "\n")
    for name, lines in parts.items():
        (output / f"{name}.jsonl").write_text("".join(lines[:TRAIN_PROMPTS] if name == "train" else lines), encoding="utf-8")


def held_out(policy: str, tasks: Sequence[tuple[Text, Text]], url: str, max_new_tokens: int) -> tuple[list[str], list[float]]:
    """A policy's answers to all prompts, and their raw rewards. Empty answers are scored too."""
    settings = TransformersPolicy(
        name="policy", family="policy", kind="chat", model=policy, decoding=Decoding(max_new_tokens=max_new_tokens)
    )
    texts = [""] * len(tasks)

    def emit(request: Request, outcome: Outcome) -> None:
        if isinstance(outcome, Sample):
            texts[request.seed] = outcome.text

    requests = [Request(str(index), prompt, 0, seed=index) for index, (prompt, _) in enumerate(tasks)]
    settings.open(Machine("fp32", "cpu")).run(requests, emit, Event())
    with RewardClient(url) as client:
        items = [ScoreItem(prompt, reference, text) for (prompt, reference), text in zip(tasks, texts, strict=True)]
        return texts, rewards(client.score(items))


def quarters(output: Path) -> list[dict[str, float]]:
    """Mean rewards of the training prompts, by quarter of the run, from the completions that TRL logs."""
    paths = sorted((output / "completions").glob("*.parquet"))
    size = len(paths) // 4
    means = []
    for quarter in range(4):
        rewards_by_prompt = defaultdict(list)
        for path in paths[quarter * size : (quarter + 1) * size]:
            for row in pq.read_table(path, columns=["prompt", "polar"]).to_pylist():
                rewards_by_prompt[flatten(row["prompt"])].append(row["polar"])
        means.append({prompt: fmean(values) for prompt, values in rewards_by_prompt.items()})
    return means


def difference(first: list[float], second: list[float]) -> dict[str, Any]:
    """The paired difference of two values of every prompt."""
    result = paired_difference(np.array(second), np.array(first), np.arange(len(first)))
    return {"from": fmean(first), "to": fmean(second), "difference": result.difference, "ci95": list(result.ci95 or ())}


def similarity(
    tasks: Sequence[tuple[Text, Text]], before: Sequence[str], after: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Character TF-IDF similarity of the answers to the references, a judge that was no reward in training."""
    judge = BASELINES["tfidf"]("tfidf")
    rows = [Comparison(*task, tuple(texts), (0, 0)) for task, *texts in zip(tasks, before, after, strict=True)]
    scores = list(judge.score_comparisons(list(judge.fit(rows))))
    return [first for first, _ in scores], [second for _, second in scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/quickstart/pretrain/model"), help="reward model")
    parser.add_argument("--author", default="base-letter", help="policy of the packaged corpus whose answers are the references")
    parser.add_argument("--output", type=Path, default=Path("runs/rft"), help="new folder")
    parser.add_argument("overrides", nargs="*", help="of recipes/rft.yaml, such as trainer.max_steps=8", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True)
    build(arguments.author, output)
    tasks = list(read_referenced_prompts(output / "held_out.jsonl"))
    recipe = Path(__file__).parents[1] / "recipes/rft.yaml"
    with served(arguments.model, output / "server.log") as url:
        paths = [f"data=[{output / 'train.jsonl'}]", f"reward.source={url}", f"output={output / 'run'}"]
        logging = ["trainer.log_completions=true", "trainer.num_completions_to_print=0"]
        config = load_config(RftConfig, [recipe], [*paths, *logging, *arguments.overrides])
        limit = config.trainer["max_completion_length"]
        before, rewards_before = held_out(LANGUAGE_MODEL, tasks, url, limit)
        wall, cpu = timed(lambda: run(config, lambda row: print(row.get("step"), row.get("reward"), flush=True)))
        after, rewards_after = held_out(str(output / "run/policy"), tasks, url, limit)
    by_quarter = quarters(output / "run")
    prompts = sorted(by_quarter[0])
    first, last = ([by_quarter[quarter][prompt] for prompt in prompts] for quarter in (0, 3))
    rows = [
        {"what": "training prompts", "prompts": len(prompts), **difference(first, last)},
        {"what": "held-out prompts", "prompts": len(tasks), **difference(rewards_before, rewards_after)},
        {"what": "their TF-IDF similarity", "prompts": len(tasks), **difference(*similarity(tasks, before, after))},
        {"what": "training", "wall_s": wall, "cpu_s": cpu},
    ]
    report(rows, output / "report.jsonl")
    answers = zip(tasks, before, after, rewards_before, rewards_after, strict=True)
    write_json(output / "answers.json", [[*task, *rest] for task, *rest in answers])


if __name__ == "__main__":
    main()
