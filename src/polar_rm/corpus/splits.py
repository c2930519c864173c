"""Which prompts and policies training never sees."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Collection, Iterable

from polar_rm.corpus.config import Splits
from polar_rm.errors import PolarError
from polar_rm.records import Text, flatten

TRAIN, UNSEEN_PROMPTS, UNSEEN_POLICIES = SPLITS = ("train", "unseen_prompts", "unseen_policies")


def folded(text: str) -> str:
    """The text in small letters, and its accents in one spelling."""
    return unicodedata.normalize("NFC", text.casefold())


def prompt_key(prompt: Text) -> str:
    """What decides a prompt's split: its folded text but for white space, so that a copy under another id goes with it."""
    return " ".join(folded(flatten(prompt)).split())


def is_held_out(prompt: Text, fraction: float, *, seed: int = 0) -> bool:
    """Whether a prompt belongs to the held-out ``fraction``, by its text: ids of two files may mean one prompt.

    Decided by a hash: more data never moves a prompt.
    """
    digest = hashlib.sha256(json.dumps([seed, prompt_key(prompt)]).encode()).digest()
    return int.from_bytes(digest[:8]) < fraction * 2**64


def held_out_policies(policies: Iterable[str], splits: Splits, *, seed: int = 0) -> frozenset[str]:
    """The policies kept from training: those named, or as many as asked for, those of the smallest hashes.

    Raises:
        PolarError: a name that no trajectory has, or too few policies to hold out that many and train on two.
    """
    known = set(policies)
    if not isinstance(splits.policies, int):
        if unknown := sorted(set(splits.policies) - known):
            raise PolarError(f"splits.policies: there is no policy {unknown[0]!r}; there are: {', '.join(sorted(known)[:20])}")
        return frozenset(splits.policies)
    if splits.policies and len(known) < splits.policies + 2:
        raise PolarError(f"splits.policies: {splits.policies} of {len(known)} policies leave fewer than two to train on")
    order = sorted(known, key=lambda policy: hashlib.sha256(json.dumps([seed, policy]).encode()).digest())
    return frozenset(order[: splits.policies])


def layout(
    held_prompt: bool, policies: Collection[str], unseen: frozenset[str], splits: Splits
) -> dict[str, tuple[set[str], set[str]]]:
    """The splits that a prompt is in: which of its policies may be a reference there, and which may be in it at all.

    Unseen policies are tested on held-out prompts where there are any, among themselves if there are at least two of them, and
    otherwise against the others.
    """
    seen = set(policies) - unseen
    parts = {UNSEEN_PROMPTS if held_prompt else TRAIN: (seen, seen)}
    if unseen and (held_prompt or not splits.prompts):
        mine = set(policies) & unseen
        parts[UNSEEN_POLICIES] = (mine, mine if len(unseen) > 1 else mine | seen)
    return parts
