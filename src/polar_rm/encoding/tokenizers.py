"""Loading a tokenizer, and naming what it does to any text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from polar_rm.common.files import read_json
from polar_rm.common.text import first_line
from polar_rm.errors import PolarError

MAX_GROWTH = 100
"""Times that a normaliser's replacements may make a text longer; a sign for each space and a few aliases make it 1."""


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The fast tokenizer of a checkpoint folder.

    Raises:
        PolarError: no readable ``tokenizer.json`` there, or one that makes a text many times as long (more than ``MAX_GROWTH``).
    """
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise PolarError(f"{directory}: no tokenizer.json (a fast tokenizer is needed)")
    values = read_json(path)  # reading it as a tokenizer already runs the normaliser, over its own tokens
    try:
        growth = max(_growth(values.get("normalizer")), _growth(values.get("decoder")))
    except (RecursionError, TypeError, AttributeError) as error:
        raise PolarError(f"{path}: not a tokenizer: {first_line(error)}") from error
    if growth > MAX_GROWTH:
        raise PolarError(f"{path}: its replacements make a text up to {growth:,.0f} times as long, more than {MAX_GROWTH}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise PolarError(f"{path}: not a tokenizer: {error}") from error


def _growth(step: Any) -> float:
    """How many times as long a normaliser's (or decoder's) replacements, one after another, can make a text."""
    if not isinstance(step, dict):
        return 1.0
    growth = 1.0
    for inner in [*(step.get("normalizers") or []), *(step.get("decoders") or [])]:
        growth = min(growth * _growth(inner), 1e12)
    if step.get("type") == "Replace":
        pattern = step["pattern"].get("String")
        # A regular expression may match next to nothing.
        growth *= max(1.0, len(step["content"]) / max(1, len(pattern)) if pattern is not None else len(step["content"]) + 1.0)
    return growth


def special_aliases(tokenizer: Tokenizer, special: set[str]) -> set[str]:
    """Texts that the normaliser turns into a special token: official models read ``[UNUSED_TOKEN_0]`` as ``<|reward|>``."""
    if tokenizer.normalizer is None:
        return set()
    normalizer = json.loads(tokenizer.normalizer.__getstate__())  # its JSON; that of the whole tokenizer takes a second
    steps = normalizer.get("normalizers", [normalizer])
    replaced = [step for step in steps if step.get("type") == "Replace" and step["content"] in special]
    return {step["pattern"]["String"] for step in replaced if "String" in step["pattern"]}


def leading_ids(tokenizer: Tokenizer) -> list[int]:
    """The BOS that the tokenizer puts before a text, if it does. An EOS behind it is left out: the reward token ends ours."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    return list(full[: full.index(plain[0])])
