"""The key of a prompt, and which prompts are held out from training."""

from __future__ import annotations

import hashlib
import json

from polar_rm.records.types import Text, flatten
from polar_rm.records.words import folded


def prompt_key(prompt: Text) -> str:
    """The key that decides a prompt's split: its folded text with normalised white space, which copies under other ids share."""
    return " ".join(folded(flatten(prompt)).split())


def is_held_out(prompt: Text, fraction: float, *, seed: int = 0) -> bool:
    """Whether a prompt belongs to the held-out ``fraction``.

    A hash of its text decides, so that copies under other ids are in the same split, and more data never moves a prompt.
    """
    digest = hashlib.sha256(json.dumps([seed, prompt_key(prompt)]).encode()).digest()
    return int.from_bytes(digest[:8]) < fraction * 2**64
