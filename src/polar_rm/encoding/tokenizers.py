"""Loads tokenizers and reads their special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from polar_rm.common.files import read_json
from polar_rm.common.text import first_line
from polar_rm.errors import PolarError

MAX_GROWTH = 100
"""The factor by which a normaliser's replacements may lengthen a text; for spaces and a few aliases it is 1."""


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The fast tokenizer of a checkpoint folder.

    Raises:
        PolarError: there is no readable ``tokenizer.json``, or it can lengthen a text by more than ``MAX_GROWTH`` times.
    """
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise PolarError(f"{directory}: no tokenizer.json (a fast tokenizer is needed)")
    check_tokenizer_file(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise PolarError(f"{path}: not a tokenizer: {error}") from error


def whole_tokenizer(directory: str | Path) -> Tokenizer:
    """The same without truncation and padding, which many tokenizer files enable."""
    tokenizer = load_tokenizer(directory)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_tokenizer_file(path: Path) -> None:
    """Check a ``tokenizer.json`` before a library reads it.

    Raises:
        PolarError: it is no JSON object, or it can lengthen a text by more than ``MAX_GROWTH`` times.
    """
    values = read_json(path)  # loading it as a tokenizer would already run the normaliser, over the tokenizer's own tokens
    try:
        growth = max(_growth(values.get("normalizer")), _growth(values.get("decoder")))
    except (RecursionError, TypeError, AttributeError) as error:
        raise PolarError(f"{path}: not a tokenizer: {first_line(error)}") from error
    if growth > MAX_GROWTH:
        raise PolarError(f"{path}: its replacements can make a text {growth:,.0f} times as long; the limit is {MAX_GROWTH}")


def _growth(step: Any) -> float:
    """The factor by which the successive replacements of a normaliser (or decoder) can lengthen a text."""
    if not isinstance(step, dict):
        return 1.0
    growth = 1.0
    for inner in [*(step.get("normalizers") or []), *(step.get("decoders") or [])]:
        growth = min(growth * _growth(inner), 1e12)
    if step.get("type") == "Replace":
        pattern = step["pattern"].get("String")
        # A regular expression may match a single character or none.
        growth *= max(1.0, len(step["content"]) / max(1, len(pattern)) if pattern is not None else len(step["content"]) + 1.0)
    return growth


def special_aliases(tokenizer: Tokenizer, special: set[str]) -> set[str]:
    """Texts that the normaliser replaces by a special token: official models read ``[UNUSED_TOKEN_0]`` as ``<|reward|>``."""
    if tokenizer.normalizer is None:
        return set()
    normalizer = json.loads(tokenizer.normalizer.__getstate__())  # its JSON; the JSON of the whole tokenizer takes a second
    steps = normalizer.get("normalizers", [normalizer])
    replaced = [step for step in steps if step.get("type") == "Replace" and step["content"] in special]
    return {step["pattern"]["String"] for step in replaced if "String" in step["pattern"]}


def leading_ids(tokenizer: Tokenizer) -> list[int]:
    """The BOS that the tokenizer puts before a text, if any. An EOS is left out: our sequences end in the reward token."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    return list(full[: full.index(plain[0])])
