"""Loading a tokenizer, and naming what it does to any text."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from polar_rm.errors import PolarError


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The fast tokenizer of a checkpoint folder.

    Raises:
        PolarError: no readable ``tokenizer.json`` there.
    """
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise PolarError(f"{directory}: no tokenizer.json (a fast tokenizer is needed)")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise PolarError(f"{path}: not a tokenizer: {error}") from error


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
