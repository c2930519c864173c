"""The comparisons of one prompt, and of trajectories in memory.

What a comparison holds depends on its prompt's trajectories and the seed alone, not on the order of rows or on other prompts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from polar_rm.corpus.config import Pairing
from polar_rm.errors import PolarError
from polar_rm.records import Comparison, Text, Trajectory, Wrapper

TextsByPolicy = dict[str, list[str]]
"""The different texts of one prompt, policy by policy; all sorted."""

MayMeet = Callable[[str, str], bool]
"""Whether a policy may have a negative against another one's reference."""


@dataclass(frozen=True, slots=True)
class ComparisonTexts:
    """policies: of the reference, and of each negative. texts: reference, positives, negatives."""

    policies: tuple[str, ...]
    reference: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]

    def comparison(self, prompt: Text, metadata: dict[str, object], wrapper: Wrapper = "sft") -> Comparison:
        """Positives have rank 0, negatives 1; the metadata also get the policies."""
        policy, *others = self.policies
        authors = [policy] * len(self.positives) + others
        return Comparison(
            prompt,
            self.reference,
            self.positives + self.negatives,
            (0,) * len(self.positives) + (1,) * len(self.negatives),
            wrapper,
            metadata={**metadata, "policy": policy, "candidate_policies": authors},
        )


def draw_comparisons(
    texts_by_policy: TextsByPolicy,
    pairing: Pairing,
    rng: random.Random,
    *,
    references: Collection[str] | None = None,
    may_meet: MayMeet = lambda *_: True,
) -> Iterator[ComparisonTexts]:
    """The comparisons of one prompt as texts (paper, section 3.2): who wrote the reference also wrote the positives.

    Which of a policy's texts is the reference is random; no two texts of a comparison are equal.
    references: policies that may be the reference, by default all that have two different texts.
    """
    eligible = [
        policy for policy, texts in texts_by_policy.items() if len(texts) > 1 and (references is None or policy in references)
    ]
    met: set[tuple[str, str]] = set()
    queue: list[tuple[str, str | None]] = [(policy, None) for policy in rng.sample(eligible, len(eligible))]
    built = 0
    while queue and built != pairing.per_prompt:
        policy, partner = queue.pop(0)
        reference, *same = rng.sample(texts_by_policy[policy], min(1 + pairing.positives, len(texts_by_policy[policy])))
        others = [
            other
            for other in texts_by_policy
            if other != policy
            and partner in (None, other)
            and may_meet(policy, other)
            and (pairing.both_directions or (other, policy) not in met)
        ]
        near = _near(same, pairing.near_length)
        drawn = _one_of_each(texts_by_policy, others, pairing.negatives, {reference, *same}, rng, near)
        if not drawn:
            continue
        built += 1
        met.update((policy, other) for other, _ in drawn)
        yield ComparisonTexts((policy, *(other for other, _ in drawn)), reference, tuple(same), tuple(text for _, text in drawn))
        if pairing.kind == "triples" and partner is None:
            queue = _two_by_two(queue, policy, drawn[0][0], pairing.both_directions)


def build_comparisons(
    trajectories: Iterable[Trajectory],
    *,
    positives: int = 1,
    negatives: int = 1,
    per_prompt: int | None = None,
    references: Collection[str] | None = None,
    seed: int = 0,
) -> Iterator[Comparison]:
    """K-way comparisons out of trajectories in memory, uncleaned, as :func:`draw_comparisons` makes them.

    positives, negatives: at most that many candidates of the reference's policy, and one each of that many other policies.
    per_prompt: at most that many comparisons a prompt.
    """
    pairing = Pairing(positives=positives, negatives=negatives, per_prompt=per_prompt)
    for prompt_id, prompt, texts_by_policy in _by_prompt(trajectories):
        for drawn in draw_comparisons(texts_by_policy, pairing, generator(seed, prompt_id), references=references):
            yield drawn.comparison(prompt, {"prompt_id": prompt_id})


def build_ranked(trajectories: Iterable[Trajectory], order: Sequence[str], *, seed: int = 0) -> Iterator[Comparison]:
    """Comparisons ranked by construction: one candidate of each policy of ``order``, the best first.

    The reference is another text of the best policy. Prompts without a text of every policy, or where two are equal, give none.

    Raises:
        PolarError: fewer than two policies.
    """
    if len(set(order)) < 2:
        raise PolarError(f"a ranking needs at least two policies, not {', '.join(order) or 'none'}")
    for prompt_id, prompt, texts_by_policy in _by_prompt(trajectories):
        rng = generator(seed, prompt_id)
        if any(policy not in texts_by_policy for policy in order) or len(texts_by_policy[order[0]]) < 2:
            continue
        reference, best = rng.sample(texts_by_policy[order[0]], 2)
        candidates = (best, *(rng.choice(texts_by_policy[policy]) for policy in order[1:]))
        if len({reference, *candidates}) == 1 + len(order):
            metadata = {"prompt_id": prompt_id, "policy": order[0], "candidate_policies": list(order)}
            yield Comparison(prompt, reference, candidates, tuple(range(len(order))), metadata=metadata)


def generator(seed: int, prompt_id: str) -> random.Random:
    """The random numbers of one prompt."""
    return random.Random(json.dumps([seed, prompt_id]))


def _by_prompt(trajectories: Iterable[Trajectory]) -> Iterator[tuple[str, Text, TextsByPolicy]]:
    prompts: dict[str, Text] = {}
    texts: dict[str, dict[str, set[str]]] = {}
    for row in trajectories:
        if prompts.setdefault(row.prompt_id, row.prompt) != row.prompt:
            raise PolarError(f"prompt_id {row.prompt_id!r} names two different prompts, see policy {row.policy!r}")
        texts.setdefault(row.prompt_id, {}).setdefault(row.policy, set()).add(row.text)
    for prompt_id, texts_by_policy in sorted(texts.items()):
        yield prompt_id, prompts[prompt_id], {policy: sorted(cell) for policy, cell in sorted(texts_by_policy.items())}


def _one_of_each(
    texts_by_policy: TextsByPolicy,
    others: Sequence[str],
    count: int,
    taken: set[str],
    rng: random.Random,
    near: Callable[[str], bool],
) -> list[tuple[str, str]]:
    """One text of each of ``count`` of the others, as far as there are any, all different from those ``taken``."""
    drawn: list[tuple[str, str]] = []
    for other in rng.sample(others, len(others)):
        if len(drawn) == count:
            break
        if free := [text for text in texts_by_policy[other] if text not in taken and near(text)]:
            text = rng.choice(free)
            taken = taken | {text}
            drawn.append((other, text))
    return drawn


def _near(positives: Sequence[str], factor: float | None) -> Callable[[str], bool]:
    """Whether a text is about as long as one of the positives: then closeness of length to the reference says little."""
    if factor is None:
        return lambda _: True
    lengths = [1 + len(text) for text in positives]
    return lambda text: any(length <= factor * (1 + len(text)) and 1 + len(text) <= factor * length for length in lengths)


def _two_by_two(
    queue: list[tuple[str, str | None]], policy: str, other: str, both_directions: bool
) -> list[tuple[str, str | None]]:
    """The references still to come once ``policy`` has met ``other``: that one now meets it back, or has had its turn."""
    rest = [(each, partner) for each, partner in queue if each != other]
    return [(other, policy), *rest] if both_directions and len(rest) < len(queue) else rest
