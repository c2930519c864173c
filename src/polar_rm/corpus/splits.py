"""Splits: the prompts and policies that are held out from training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable

from polar_rm.corpus.config import Splits
from polar_rm.errors import PolarError

TRAIN, UNSEEN_PROMPTS, UNSEEN_POLICIES, UNSEEN_TEXTS = SPLITS = ("train", "unseen_prompts", "unseen_policies", "unseen_texts")
"""The folders of a corpus. Where continuations are compared, texts are held out and not prompts."""


def held_out_policies(policies: Iterable[str], splits: Splits, *, seed: int = 0) -> frozenset[str]:
    """The policies that are held out from training: the named ones, or the requested number, those with the smallest hashes.

    Raises:
        PolarError: no trajectory has a named policy, or fewer than two policies would be left for training.
    """
    known = set(policies)
    if not isinstance(splits.policies, int):
        if unknown := sorted(set(splits.policies) - known):
            raise PolarError(f"splits.policies: there is no policy {unknown[0]!r}; known: {', '.join(sorted(known)[:20])}")
        return frozenset(splits.policies)
    if splits.policies and len(known) < splits.policies + 2:
        raise PolarError(f"splits.policies: {splits.policies} of {len(known)} policies leave fewer than two to train on")
    order = sorted(known, key=lambda policy: hashlib.sha256(json.dumps([seed, policy]).encode()).digest())
    return frozenset(order[: splits.policies])


def assign_splits(
    held_out: bool, policies: Collection[str], unseen: frozenset[str], splits: Splits
) -> dict[str, tuple[set[str], set[str]]]:
    """The splits of a prompt -> (policies that may have the reference, policies that may take part).

    held_out: whether the prompt is held out. Unseen policies are tested on held-out prompts if there are any; among themselves
    if there are at least two of them, otherwise against the other policies.
    """
    seen = set(policies) - unseen
    parts = {UNSEEN_PROMPTS if held_out else TRAIN: (seen, seen)}
    if unseen and (held_out or not splits.prompts):
        references = set(policies) & unseen
        parts[UNSEEN_POLICIES] = (references, references if len(unseen) > 1 else references | seen)
    return parts
