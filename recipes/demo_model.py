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

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from polar_rm.calibration.run import calibrate, save
from polar_rm.common.config import load_config
from polar_rm.common.files import sha256, write_file, write_json
from polar_rm.common.provenance import versions
from polar_rm.corpus.build import build
from polar_rm.corpus.config import CorpusConfig
from polar_rm.corpus.splits import UNSEEN_PROMPTS
from polar_rm.encoding.settings import REWARD_TOKEN, SEPARATOR_TOKEN
from polar_rm.evaluation import ComparisonFiles, evaluate
from polar_rm.model.native import add_role_tokens
from polar_rm.model.presets import preset_shape
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import is_held_out, read_comparisons, read_trajectories, write_records
from polar_rm.scoring.scorer import Scorer
from polar_rm.training.config import TrainConfig
from polar_rm.training.trainer import train

DATA = Path("src/polar_rm/quickstart/data")
DEMO = Path("src/polar_rm/demo")
HELD_OUT = DATA / "held_out.jsonl"
SCORED = DATA / "scored.jsonl"
N_HELD_OUT = 96
VOCABULARY = 1536
SIZE = "4x128"
LM_STEPS, LM_ROWS, LM_ROW_TOKENS, LM_RATE = 500, 10, 192, 4e-3
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
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the stages")
    output: Path = parser.parse_args().output
    config = load_config(CorpusConfig, [DATA / "corpus.yaml"], [*CORPUS, f"output={output / 'corpus'}"])
    if not (output / "lm/tokenizer_config.json").exists():
        train_language_model(config, output / "lm")
    if not (output / "corpus/report.json").exists():
        build(config)
    sources = (f"model.init={output / 'lm'}", f"data.train=[{output / 'corpus/train'}]", f"output={output / 'train'}")
    if not (output / "train/model/config.json").exists():
        train(load_config(TrainConfig, [], [*TRAINING, *sources]))
    package(output)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE with the two tokens of a reward model's sequences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIALS.values()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=3
    )
    tokenizer.train_from_iterator(texts, trainer)
    return add_role_tokens(tokenizer)


def train_language_model(config: CorpusConfig, folder: Path) -> None:
    """A causal language model of rows in the order of a reward model's sequences: two answers of one policy to a prompt, then two
    to another, so that what comes first tells the style of what follows. Folder: in transformers' layout."""
    rows = [
        row
        for row in read_trajectories(DATA / "trajectories.parquet")
        if not is_held_out(row.prompt, config.splits.prompts, seed=config.seed)
    ]
    tokenizer = train_tokenizer([row.text for row in rows])
    texts: dict[str, dict[Any, list[list[int]]]] = {}
    for row in rows:
        if any(fnmatch(row.policy, pattern) for pattern in config.policies):
            of_prompt = texts.setdefault(row.policy, {}).setdefault(row.prompt, [])
            of_prompt.append(tokenizer.encode(f"{row.prompt}\n{row.text}").ids)
    torch.manual_seed(0)
    model = new_language_model(tokenizer.get_vocab_size())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LM_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    rng = random.Random(0)
    for step in range(1, LM_STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = LM_RATE * min(1, step / 30) * (1 - 0.95 * max(0, step - 30) / (LM_STEPS - 30))
        ids = torch.tensor([language_row(texts, tokenizer, rng) for _ in range(LM_ROWS)])
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"language model: {step}/{LM_STEPS}, loss {loss.item():.3f}")
    model.save_pretrained(folder)
    write_file(folder / "tokenizer.json", tokenizer.to_str())
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIALS})


def new_language_model(vocabulary: int) -> Any:
    """A Llama with random weights."""
    width, layers, heads, key_value_heads, feed_forward = preset_shape(SIZE)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=feed_forward,
        max_position_embeddings=384,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


def language_row(texts: dict[str, dict[Any, list[list[int]]]], tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """The ids of a row: ``[bos] prompt answer <|reward|> prompt answer [score]``, again and again, all of one policy."""
    separator, score = tokenizer.token_to_id(SEPARATOR_TOKEN), tokenizer.token_to_id(REWARD_TOKEN)
    by_prompt = texts[rng.choice(sorted(texts))]
    ids: list[int] = []
    while len(ids) <= LM_ROW_TOKENS:
        answers = by_prompt[rng.choice(sorted(by_prompt))]
        answers = rng.sample(answers, len(answers)) if len(answers) > 1 else answers
        ids += [0, *answers[0], separator, *answers[-1], score]
    return ids[: LM_ROW_TOKENS + 1]


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
        "language_model": {"steps": LM_STEPS, "rows": LM_ROWS, "row_tokens": LM_ROW_TOKENS, "lr": LM_RATE},
        "training": {
            "size": SIZE,
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
