"""Drawing the comparisons of one prompt, and of trajectories in memory.

A comparison depends only on its prompt's trajectories and on the seed, not on the order of rows or on other prompts.
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
"""Policy -> its distinct texts for one prompt; both are sorted."""

Comparable = Callable[[str, str], bool]
"""Whether a policy may have negatives against another one's references."""


@dataclass(frozen=True, slots=True)
class ComparisonTexts:
    """The texts of a comparison. policies: the policy of the reference, then those of the negatives."""

    policies: tuple[str, ...]
    reference: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]

    def comparison(self, prompt: Text, metadata: dict[str, object], wrapper: Wrapper = "sft") -> Comparison:
        """The comparison of these texts, with rank 0 for positives and 1 for negatives; policies are added to the metadata."""
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
    comparable: Comparable = lambda *_: True,
) -> Iterator[ComparisonTexts]:
    """Draw the comparisons of one prompt (paper, section 3.2): reference and positives have the same policy.

    The reference is a random text of its policy. No two texts of a comparison are equal.
    references: policies that may have the reference, by default all that have two different texts.
    """
    eligible = [
        policy for policy, texts in texts_by_policy.items() if len(texts) > 1 and (references is None or policy in references)
    ]
    drawn_pairs: set[tuple[str, str]] = set()
    queue: list[tuple[str, str | None]] = [(policy, None) for policy in rng.sample(eligible, len(eligible))]
    n_drawn = 0
    while queue and n_drawn != pairing.per_prompt:
        policy, partner = queue.pop(0)
        reference, *same = rng.sample(texts_by_policy[policy], min(1 + pairing.positives, len(texts_by_policy[policy])))
        others = [
            other
            for other in texts_by_policy
            if other != policy
            and partner in (None, other)
            and comparable(policy, other)
            and (pairing.both_directions or (other, policy) not in drawn_pairs)
        ]
        has_near_length = _near_length(same, pairing.near_length)
        negatives = _draw_negatives(texts_by_policy, others, pairing.negatives, {reference, *same}, rng, has_near_length)
        if not negatives:
            continue
        n_drawn += 1
        policies, texts = zip(*negatives, strict=True)
        drawn_pairs.update((policy, other) for other in policies)
        yield ComparisonTexts((policy, *policies), reference, tuple(same), texts)
        if pairing.kind == "triples" and partner is None:
            queue = _next_triples(queue, policy, policies[0], pairing.both_directions)


def build_comparisons(
    trajectories: Iterable[Trajectory],
    *,
    positives: int = 1,
    negatives: int = 1,
    per_prompt: int | None = None,
    references: Collection[str] | None = None,
    seed: int = 0,
) -> Iterator[Comparison]:
    """Build K-way comparisons from trajectories in memory, without cleaning, by :func:`draw_comparisons`.

    positives: maximum number of candidates of the reference's policy. negatives: maximum number of other policies, with one
    candidate each. per_prompt: maximum number of comparisons of a prompt.
    """
    pairing = Pairing(positives=positives, negatives=negatives, per_prompt=per_prompt)
    for prompt_id, prompt, texts_by_policy in _by_prompt(trajectories):
        for drawn in draw_comparisons(texts_by_policy, pairing, generator(seed, prompt_id), references=references):
            yield drawn.comparison(prompt, {"prompt_id": prompt_id})


def build_ranked(trajectories: Iterable[Trajectory], order: Sequence[str], *, seed: int = 0) -> Iterator[Comparison]:
    """Build comparisons that are ranked by policy: one candidate of each policy of ``order``, the best policy first.

    The reference is another text of the best policy. A prompt without a text of every policy, or with equal texts, gives no
    comparison.

    Raises:
        PolarError: there are fewer than two policies.
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
    """The random number generator of one prompt."""
    return random.Random(json.dumps([seed, prompt_id]))


def _by_prompt(trajectories: Iterable[Trajectory]) -> Iterator[tuple[str, Text, TextsByPolicy]]:
    prompts: dict[str, Text] = {}
    texts: dict[str, dict[str, set[str]]] = {}
    for row in trajectories:
        if prompts.setdefault(row.prompt_id, row.prompt) != row.prompt:
            raise PolarError(f"prompt_id {row.prompt_id!r} has two different prompts, see policy {row.policy!r}")
        texts.setdefault(row.prompt_id, {}).setdefault(row.policy, set()).add(row.text)
    for prompt_id, texts_by_policy in sorted(texts.items()):
        yield prompt_id, prompts[prompt_id], {policy: sorted(each) for policy, each in sorted(texts_by_policy.items())}


def _draw_negatives(
    texts_by_policy: TextsByPolicy,
    others: Sequence[str],
    count: int,
    used: set[str],
    rng: random.Random,
    has_near_length: Callable[[str], bool],
) -> list[tuple[str, str]]:
    """At most ``count`` pairs (policy, text) of different ``others``; the texts differ from each other and from ``used``."""
    drawn: list[tuple[str, str]] = []
    for other in rng.sample(others, len(others)):
        if len(drawn) == count:
            break
        if allowed := [text for text in texts_by_policy[other] if text not in used and has_near_length(text)]:
            text = rng.choice(allowed)
            used = used | {text}
            drawn.append((other, text))
    return drawn


def _near_length(positives: Sequence[str], factor: float | None) -> Callable[[str], bool]:
    """A function that says whether a text is about as long as one of the positives, so that length gives little information."""
    if factor is None:
        return lambda _: True
    lengths = [1 + len(text) for text in positives]
    return lambda text: any(length <= factor * (1 + len(text)) and 1 + len(text) <= factor * length for length in lengths)


def _next_triples(
    queue: list[tuple[str, str | None]], policy: str, other: str, both_directions: bool
) -> list[tuple[str, str | None]]:
    """The queue after a triple of ``policy`` and ``other``: the reverse triple is next, or ``other`` is done."""
    rest = [(each, partner) for each, partner in queue if each != other]
    return [(other, policy), *rest] if both_directions and len(rest) < len(queue) else rest
