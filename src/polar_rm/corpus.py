"""Trajectories to comparisons: contrastive ones for pre-training, ranked ones for fine-tuning, and splits of both.

What a comparison holds depends on its prompt's trajectories and the seed alone, not on the order of rows or on other prompts.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Iterable, Iterator, Sequence

from polar_rm.errors import PolarError
from polar_rm.records import Comparison, Text, Trajectory

Cells = dict[str, list[str]]
"""The different texts of one prompt, policy by policy; all sorted."""


def build_comparisons(
    trajectories: Iterable[Trajectory],
    *,
    positives: int = 1,
    negatives: int = 1,
    per_prompt: int | None = None,
    references: Collection[str] | None = None,
    seed: int = 0,
) -> Iterator[Comparison]:
    """Pre-training comparisons (paper, section 3.2): who wrote the reference also wrote the candidates of rank 0.

    Every policy with two different texts on a prompt serves once as reference there, so a pair of policies is met in both
    directions. Which of its texts is the reference is random; two candidates are never the same text.
    positives, negatives: at most that many candidates of the reference's policy, and one each of that many other policies.
    per_prompt: at most that many comparisons a prompt. references: policies that may be the reference, by default all.

    The whole input is held in memory, grouped by prompt.
    """
    for prompt_id, prompt, cells in _by_prompt(trajectories):
        rng = random.Random(json.dumps([seed, prompt_id]))
        eligible = [policy for policy, texts in cells.items() if len(texts) > 1 and (references is None or policy in references)]
        built = 0
        for policy in rng.sample(eligible, len(eligible)):
            if built == per_prompt:
                break
            reference, *same = rng.sample(cells[policy], min(1 + positives, len(cells[policy])))
            others = _one_of_each(cells, policy, negatives, taken={reference, *same}, rng=rng)
            if not others:
                continue
            built += 1
            policies = [policy] * len(same) + [other for other, _ in others]
            yield Comparison(
                prompt,
                reference,
                (*same, *(text for _, text in others)),
                (0,) * len(same) + (1,) * len(others),
                metadata={"prompt_id": prompt_id, "policy": policy, "candidate_policies": policies},
            )


def build_ranked(trajectories: Iterable[Trajectory], order: Sequence[str], *, seed: int = 0) -> Iterator[Comparison]:
    """Comparisons ranked by construction: one candidate of each policy of ``order``, the best first.

    The reference is another text of the best policy. Prompts without a text of every policy, or where two are equal, give none.

    Raises:
        PolarError: fewer than two policies.
    """
    if len(set(order)) < 2:
        raise PolarError(f"a ranking needs at least two policies, not {', '.join(order) or 'none'}")
    for prompt_id, prompt, cells in _by_prompt(trajectories):
        rng = random.Random(json.dumps([seed, prompt_id]))
        if any(policy not in cells for policy in order) or len(cells[order[0]]) < 2:
            continue
        reference, best = rng.sample(cells[order[0]], 2)
        candidates = (best, *(rng.choice(cells[policy]) for policy in order[1:]))
        if len({reference, *candidates}) == 1 + len(order):
            metadata = {"prompt_id": prompt_id, "policy": order[0], "candidate_policies": list(order)}
            yield Comparison(prompt, reference, candidates, tuple(range(len(order))), metadata=metadata)


def is_held_out(prompt_id: str, fraction: float, *, seed: int = 0) -> bool:
    """Whether a prompt belongs to the held-out ``fraction``. Decided by a hash: more data never moves a prompt."""
    digest = hashlib.sha256(json.dumps([seed, prompt_id]).encode()).digest()
    return int.from_bytes(digest[:8]) < fraction * 2**64


def _by_prompt(trajectories: Iterable[Trajectory]) -> Iterator[tuple[str, Text, Cells]]:
    prompts: dict[str, Text] = {}
    texts: dict[str, dict[str, set[str]]] = {}
    for row in trajectories:
        if prompts.setdefault(row.prompt_id, row.prompt) != row.prompt:
            raise PolarError(f"prompt_id {row.prompt_id!r} names two different prompts, see policy {row.policy!r}")
        texts.setdefault(row.prompt_id, {}).setdefault(row.policy, set()).add(row.text)
    for prompt_id, cells in sorted(texts.items()):
        yield prompt_id, prompts[prompt_id], {policy: sorted(cell) for policy, cell in sorted(cells.items())}


def _one_of_each(cells: Cells, policy: str, count: int, *, taken: set[str], rng: random.Random) -> list[tuple[str, str]]:
    """One text of each of ``count`` other policies, as far as there are any, all different from those ``taken``."""
    drawn: list[tuple[str, str]] = []
    others = [other for other in cells if other != policy]
    for other in rng.sample(others, len(others)):
        if len(drawn) == count:
            break
        if free := [text for text in cells[other] if text not in taken]:
            text = rng.choice(free)
            taken = taken | {text}
            drawn.append((other, text))
    return drawn
