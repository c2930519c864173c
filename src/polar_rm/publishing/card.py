"""The card (README.md) of a saved reward model: what it is, what it was made of, how good it is, and how it is loaded.

Trainings and conversions write one into every model's folder, and ``polar publish`` writes it again with what is known then.
Every number comes from a file of the model or its run, never from memory: ``config.json``, ``run.json`` beside the folder,
``calibration.json``, and reports of ``polar evaluate --json``. A card has names and hashes of data, and no local paths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polar_rm.common.files import read_json, write_file
from polar_rm.common.sources import snapshot_source
from polar_rm.common.yaml import dump_yaml
from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import PolarError
from polar_rm.publishing.evaluations import Evaluation
from polar_rm.publishing.usage import usage
from polar_rm.rewards.calibration import Calibration

MARK = "<!-- written by polar -->"
"""In every card that we write; other cards are not overwritten."""
_OWN = MARK.removesuffix(" -->")  # also in cards of earlier versions
_CARD = "README.md"
_NO_BASE = "not recorded"
_TAGS = ("reward-model", "rlhf", "polar", "polar-rm")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model comes from. base: the model it was made of, an id of the Hub or a folder's name. data: (name, SHA-256)."""

    base: str | None = None
    base_is_id: bool = False
    data: tuple[tuple[str, str], ...] = ()
    datasets: tuple[str, ...] = ()
    run: dict[str, Any] | None = None


def model_card(
    folder: Path,
    name: str,
    *,
    evaluations: Sequence[Evaluation] = (),
    licence: str | None = None,
    converted_from: str | Path | None = None,
) -> str:
    """The card's text. name: the model's name in the examples. licence: of the weights, an id of the Hub such as ``apache-2.0``.
    converted_from: the checkpoint that the folder is a conversion of, if it is one.

    Raises:
        PolarError: the folder holds no reward model saved by polar, or one of its files belongs to another model.
    """
    config = read_json(folder / "config.json")
    encoder = Encoder.from_pretrained(folder)
    origin = _based_on(converted_from) if converted_from else find_origin(folder, encoder.hash)
    front = {
        **({"license": licence} if licence else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": list(_TAGS),
        **({"base_model": origin.base} if origin.base and origin.base_is_id else {}),
        **({"datasets": list(origin.datasets)} if origin.datasets else {}),
    }
    sections = [
        f"---\n{dump_yaml(front).strip()}\n---\n{MARK}\n\n# {name}",
        _introduction(config),
        _made_of(origin, licence),
        _encoder(encoder),
        _evaluation(evaluations),
        _calibration(Calibration.load(folder)),
        usage(name, config, encoder.settings.max_length),
        _limits(config, encoder),
    ]
    return "\n\n".join(sections) + "\n"


def write_card(folder: Path, text: str) -> Path:
    """Write the card into the model's folder.

    Raises:
        PolarError: there is a README.md that polar did not write.
    """
    path = folder / _CARD
    if path.is_file() and _OWN not in path.read_text(encoding="utf-8", errors="replace"):
        raise PolarError(f"{path}: it was not written by polar, and is not overwritten; move it away")
    write_file(path, text)
    return path


def find_origin(folder: Path, encoder_hash: str) -> Origin:
    """What ``run.json`` beside the folder says, if it is the run that saved this model, else what a card in the folder says."""
    path = folder.resolve().parent / "run.json"
    run = read_json(path) if path.is_file() else {}
    if run.get("encoder_hash") != encoder_hash:
        return _noted_origin(folder)
    config = run.get("config", {})
    model = config.get("model", {}) if isinstance(config, dict) else {}
    source = next((str(model[key]) for key in ("resume_from", "init") if model.get(key)), None)
    based = _based_on(source) if source else Origin(f"random weights ({model['preset']})" if model.get("preset") else None)
    data = run.get("data", {})
    files = tuple((_short_name(str(file)), str(digest)) for file, digest in data.items()) if isinstance(data, dict) else ()
    ids = dict.fromkeys(found[0] for file in data if (found := snapshot_source(file, "dataset")))
    return replace(based, data=files, datasets=tuple(ids), run=run)


def _noted_origin(folder: Path) -> Origin:
    """The base that the folder's own card names: a converted model has no run, and only its conversion knew the checkpoint."""
    path = folder / _CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    base = re.search(r"^\* base: (.+)$", text, re.MULTILINE) if _OWN in text else None
    if base is None or base[1] == _NO_BASE:
        return Origin()
    return Origin(base[1], base_is_id=f"\nbase_model: {base[1]}\n" in text)


def _based_on(source: str | Path) -> Origin:
    """A model by its id on the Hub where it was downloaded, else by the end of its path."""
    found = snapshot_source(source, "model")
    return Origin(found[0], base_is_id=True) if found else Origin(_short_name(str(source)))


def _short_name(path: str) -> str:
    """A path without the folders of its author: the last two parts."""
    return "/".join(part for part in Path(path).parts[-2:] if part != "/")


def _introduction(config: dict[str, Any]) -> str:
    architecture = (config.get("architectures") or ["?"])[0]
    size = f"{config.get('num_hidden_layers', '?')} layers, width {config.get('hidden_size', '?')}"
    return (
        "A reward model of the POLAR kind ([Policy Discriminative Learning](https://arxiv.org/abs/2507.05197)): given a prompt, "
        "a reference answer and a candidate, it scores how much the candidate looks as if the reference's author had written it. "
        f"It is a stock `{architecture}` ({size}) with one label and safetensors, and runs without remote code. Rewards are "
        "unbounded: only differences under one prompt and reference mean something."
    )


def _made_of(origin: Origin, licence: str | None) -> str:
    lines = [f"* base: {origin.base or _NO_BASE}"]
    for name, digest in origin.data:
        lines.append(f"* data: `{name}`, SHA-256 `{digest}`")
    if not origin.data:
        lines.append("* data: not recorded")
    run = origin.run or {}
    if objective := run.get("config", {}).get("loss", {}).get("objective"):
        steps, batch = run.get("results", {}).get("steps", "?"), run["config"].get("batch_size", "?")
        lines.append(f"* objective: {objective}, {steps} steps of {batch} comparisons, seed {run.get('seed')}")
    if measured := run.get("results", {}).get("eval"):
        values = ", ".join(f"{name} {measured[name]:.3f}" for name in ("accuracy", "loss"))
        lines.append(f"* on the run's evaluation data, at the end: {values}")
    if versions := run.get("versions"):
        names = ("polar-rm", "torch", "transformers")
        lines.append(f"* made with {', '.join(f'{name} {versions[name]}' for name in names if versions.get(name))}")
    lines.append(f"* licence: {licence or 'not stated; that of the base model and of the data applies'}")
    return "## What it was made of\n\n" + "\n".join(lines)


def _encoder(encoder: Encoder) -> str:
    settings = encoder.settings
    return (
        "## Encoder\n\n"
        f"* hash `{encoder.hash}`: tokenizer, template and limits; checked when the model is loaded\n"
        f"* template `{settings.template}`: `[bos] prompt reference {settings.separator_token} prompt candidate "
        f"{settings.reward_token}`\n"
        f"* at most {settings.max_length:,} tokens, {settings.max_response_length:,} of the reference and of the candidate; "
        "scores of truncated texts are noted"
    )


def _evaluation(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return "## Evaluation\n\nNone was published: measure the model on your data (`polar evaluate`, `polar audit`)."
    rows = [f"| {each.data} | {each.reference} | {each.n:,} | {each.shown()} |" for each in evaluations]
    head = "| data | reference | pairs | accuracy [95% interval] |\n|---|---|---|---|"
    return "## Evaluation\n\n" + "\n".join([head, *rows])


def _calibration(card: Calibration | None) -> str:
    if card is None or card.temperature is None:
        return "## Calibration\n\nNone: rewards have no scale. `polar calibrate MODEL PAIRS` makes one."
    before = (
        f", expected calibration error {card.ece_before:.3f} before and {card.ece_after:.3f} after" if _has_errors(card) else ""
    )
    return (
        "## Calibration\n\n"
        f"P(a over b) = sigmoid((r_a - r_b) / {card.temperature:.4g}), fitted on {card.n_pairs:,} pairs of "
        f"{card.n_prompts:,} prompts{before}. Raw rewards there: mean {card.mean:.3f}, standard deviation {card.std:.3f}."
    )


def _has_errors(card: Calibration) -> bool:
    return card.ece_before is not None and card.ece_after is not None


def _limits(config: dict[str, Any], encoder: Encoder) -> str:
    lines = [
        "* Rewards under different prompts or references can't be compared.",
        "* It follows its reference: a bad reference gives bad rewards.",
        "* A small reward model is easy to exploit: judge a policy by something else, too.",
    ]
    if untrained := config.get("polar", {}).get("untrained"):
        lines.insert(0, f"* **Never trained: {', '.join(map(str, untrained))}. Its scores mean nothing before fine-tuning.**")
    if encoder.settings.template == "polar":
        lines.append("* The template drops the roles of messages, as the official one does.")
    return "## Limits\n\n" + "\n".join(lines)
