"""Make the demonstration model again that comes with the package, `package:demo`, with its card.

One command in a checkout makes all of it from the packaged corpus, in about ten minutes of one core; finished stages are kept:

    python recipes/demo_model.py --output runs/demo

A tokenizer and a small language model are made of the texts of training prompts, then `polar pretrain` makes the reward model of
it. From random weights the loss hardly left its plateau in 120 steps. The language model has learned to continue in the style of
what it reads, and from it the loss falls within ten steps.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from small_language_model import SmallLanguageModel, train_language_model

from polar_rm.calibration.run import calibrate, save
from polar_rm.common.config import load_config
from polar_rm.common.files import sha256, write_file, write_json
from polar_rm.common.provenance import versions
from polar_rm.corpus.build import build
from polar_rm.corpus.config import CorpusConfig
from polar_rm.corpus.splits import UNSEEN_PROMPTS
from polar_rm.evaluation import ComparisonFiles, evaluate
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import Trajectory, is_held_out, read_comparisons, read_trajectories, write_records
from polar_rm.scoring.scorer import Scorer
from polar_rm.training.config import TrainConfig
from polar_rm.training.trainer import train

DATA = Path("src/polar_rm/quickstart/data")
DEMO = Path("src/polar_rm/demo")
HELD_OUT = DATA / "held_out.jsonl"
SCORED = DATA / "scored.jsonl"
N_HELD_OUT = 96
LANGUAGE_MODEL = SmallLanguageModel(
    size="4x128",
    vocabulary=1536,
    positions=384,
    steps=500,
    rows=10,
    row_tokens=192,
    lr=4e-3,
    prompt_tokens=384,
    answer_tokens=384,
)
CORPUS = ("pairing.per_prompt=24", "pairing.negatives=5", "splits.policies=[]")
TRAINING = (
    "model.encoder={max_length: 384, max_response_length: 96}",
    "data.identical_steps=60",
    "optim={lr: 1.0e-3, weight_decay: 0.05}",
    "batch_size=16",
    "row_tokens=8192",
    "epochs=100",
    "max_steps=320",
    "checkpoint_every=80",
    "log.tensorboard=false",
    "precision=fp32",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the stages")
    output: Path = parser.parse_args().output
    config = load_config(CorpusConfig, [DATA / "corpus.yaml"], [*CORPUS, f"output={output / 'corpus'}"])
    if not (output / "lm/tokenizer_config.json").exists():
        rows = read_trajectories(DATA / "trajectories.parquet")
        train_language_model([row for row in rows if is_for_training(row, config)], LANGUAGE_MODEL, output / "lm")
    if not (output / "corpus/report.json").exists():
        build(config)
    sources = (f"model.init={output / 'lm'}", f"data.train=[{output / 'corpus/train'}]", f"output={output / 'train'}")
    if not (output / "train/model/config.json").exists():
        train(load_config(TrainConfig, [], [*TRAINING, *sources]))
    package(output)


def is_for_training(row: Trajectory, config: CorpusConfig) -> bool:
    """Whether a trajectory is of a policy of the corpus and of a prompt that is not held out."""
    of_corpus = any(fnmatch(row.policy, pattern) for pattern in config.policies)
    return of_corpus and not is_held_out(row.prompt, config.splits.prompts, seed=config.seed)


def package(output: Path) -> None:
    """Put the model in half precision, its calibration, its provenance and its card into the package."""
    shutil.rmtree(DEMO, ignore_errors=True)
    RewardModel.from_pretrained(output / "train/model", dtype="float16").save(DEMO)
    held_out = ComparisonFiles([output / "corpus" / UNSEEN_PROMPTS])
    rows = list(read_comparisons(output / "corpus" / UNSEEN_PROMPTS))
    write_records(HELD_OUT, random.Random(0).sample(rows, N_HELD_OUT))
    scorer = Scorer(RewardModel.from_pretrained(DEMO))
    write_scored(scorer)
    report = evaluate({"package:demo": scorer}, held_out, by="policy").report
    packaged = evaluate({"package:demo": scorer}, ComparisonFiles([HELD_OUT])).report
    calibrated = calibrate(scorer, held_out, model="package:demo")
    save(calibrated.scale, DEMO)
    results = json.loads((output / "train/metrics.jsonl").read_text().splitlines()[-1])
    facts = {
        "schema": "polar-rm/demo/1",
        "licence": "Apache-2.0",
        "made_by": "recipes/demo_model.py",
        "corpus": {"trajectories": sha256(DATA / "trajectories.parquet"), "settings": list(CORPUS)},
        "language_model": LANGUAGE_MODEL.model_dump(),
        "training": {
            "settings": list(TRAINING),
            "steps": results["step"],
            "comparisons": _count(output / "corpus/train"),
        },
        "unseen_prompts": measures(report),
        "by_policy": {name: measures(group) for name, group in report["by"].items()},
        "held_out.jsonl": measures(packaged),
        "temperature": calibrated.report["temperature"],
        "calibration_error": calibrated.report["after"]["error"],
        "parameters": sum(each.numel() for each in scorer.model.backbone.parameters()),
        "sha256": {name: sha256(DEMO / name) for name in ("model.safetensors", "tokenizer.json")},
        **versions(),
    }
    write_json(DEMO / "provenance.json", facts)
    write_file(DEMO / "README.md", card(facts))


def write_scored(scorer: Scorer) -> None:
    """Answers with rewards for ``recipe:select``: of each prompt of the held-out comparisons the first one, whose reference they
    share."""
    first = list({row.prompt: row for row in reversed(list(read_comparisons(HELD_OUT)))}.values())
    lines = [
        json.dumps({"prompt": row.prompt, "output": output, "score": round(score, 4)})
        for row, scores in zip(first, scorer.score_comparisons(first), strict=True)
        for output, score in zip(row.candidates, scores, strict=True)
    ]
    write_file(SCORED, "".join(f"{line}\n" for line in lines))


def _count(folder: Path) -> int:
    return sum(1 for _ in read_comparisons(folder))


def measures(group: Any) -> dict[str, Any]:
    """Accuracy and interval of each contender and baseline of a report or of one of its groups, and what it is above."""
    found = {name: {"accuracy": row["accuracy"], "ci95": row["ci95"]} for name, row in group["contenders"].items()}
    above = {
        each["second"]: {"difference": each["difference"], "ci95": each["ci95"]}
        for each in group["differences"]
        if each["first"] == "package:demo"
    }
    return {"n_pairs": group["n_pairs"], "n_prompts": group["n_prompts"], "measures": found, "above": above}


def accuracy_row(name: str, group: dict[str, Any]) -> str:
    """A row of the card's table."""
    cells = [
        f"{row['accuracy']:.3f}" + (f" [{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}]" if row["ci95"] else "")
        for row in group["measures"].values()
    ]
    return f"| {name} | {group['n_pairs']:,} | {group['n_prompts']} | {' | '.join(cells)} |"


def card(facts: dict[str, Any]) -> str:
    """The text of the model's README.md."""
    groups = {"unseen prompts": facts["unseen_prompts"], "held_out.jsonl": facts["held_out.jsonl"]}
    groups |= {f"reference by {name}": group for name, group in facts["by_policy"].items()}
    names = list(facts["unseen_prompts"]["measures"])
    table = [
        f"| | pairs | prompts | {' | '.join(names)} |",
        "|" + "---|" * (3 + len(names)),
        *(accuracy_row(name, group) for name, group in groups.items()),
    ]
    return CARD.format(table="\n".join(table), **facts, steps=facts["training"]["steps"])


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, polar, polar-rm]
---

# package:demo

A reward model for a first look. It is inside the package: `polar score --model package:demo` needs no download. It was
pre-trained as a policy discriminator: given a prompt, a reference answer and a candidate, it scores how much the candidate
looks as if the reference's author had written it. It judges **style**, in English, from the first 96 tokens of an answer.

**It is no judge of truth or helpfulness, and no reward for training.** It has {parameters:,} parameters, has read 180
prompts, and knows nothing about the world.

## How good it is

Accuracy is the share of pairs in which the candidate of the reference's author gets the higher reward, with 95% intervals by
bootstrap over prompts; chance is 0.5. No text for these prompts was used in training or by the tokenizer; other texts of the
same authors were. `length` and `tfidf` compare the candidates with the reference without a model.

{table}

`polar evaluate package:polar_rm/quickstart/data/held_out.jsonl --model package:demo` gives the second row. A difference of
rewards d means a probability of 1 / (1 + exp(-d / {temperature:.3g})), fitted on the pairs of the first row (calibration
error out of fold {calibration_error:.3f}).

## How it was made

A Llama of four layers and width 128 with a byte-level BPE of 1,538 tokens. First it was a language model of the answers of
twelve policies to 180 prompts (`src/polar_rm/quickstart/data`, sampled from SmolLM2-135M-Instruct, Apache-2.0), two answers
of one policy in a row. Then `polar pretrain` trained it for {steps} steps of 16 comparisons of the same answers.
`recipes/demo_model.py` makes it again; `provenance.json` has settings, versions and checksums. Weights are float16.

## Limits

* Authors that it never saw are told apart less well than these numbers say; nothing here measures them.
* The model reads at most 384 tokens, and the first 96 of an answer; what is longer is cut, and the cut is reported.
* Other languages, code, long answers and facts are outside of what it learned.
"""


if __name__ == "__main__":
    main()
