"""Invented comparisons whose right answers are known, and scorers in plain Python: honest ones, and ones with a shortcut.

In the data the better answer is often the longer one, has more markdown, and is written in the reference's style, as in real
ones: a shortcut is worth something, and who takes none is not punished.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from polar_rm.evaluation.contenders import Contender, Given
from polar_rm.evaluation.contenders.baselines import Tfidf
from polar_rm.records import Comparison

_SYLLABLES = "ba ce di fo gu ha ki lo mu ne po ri sa to vu we xi yo za".split()
_STARTS = {"formal": ["Moreover", "Furthermore", "Notably"], "casual": ["Well", "So", "Okay"]}
_STATED = re.compile(r"the final answer is \W*(\w+)")


def word(rng: random.Random) -> str:
    return "".join(rng.choice(_SYLLABLES) for _ in range(3))


def comparisons(n: int, seed: int = 0) -> list[Comparison]:
    """n prompts with two answers each. The metadata hold what is right: ``gold``."""
    rng = random.Random(f"world {seed}")
    return [_comparison(rng, number) for number in range(n)]


def _comparison(rng: random.Random, number: int) -> Comparison:
    town, gold, wrong = f"{word(rng)}{number}", word(rng), word(rng)
    facts = {kind: [f"the {word(rng)} of {town} has a {word(rng)} {word(rng)} near it" for _ in range(6)] for kind in "tf"}
    style = rng.choice(list(_STARTS))
    reference = _answer(rng, rng.sample(facts["t"], 4), gold, style, markdown=rng.random() < 0.5)
    more = rng.random() < 0.7  # the better answer is the longer one
    lengths = (rng.randint(5, 6), rng.randint(3, 4))
    n_better, n_worse = lengths if more else lengths[::-1]
    same, other = style, next(each for each in _STARTS if each != style)
    better = _answer(
        rng, rng.sample(facts["t"], n_better), gold, same if rng.random() < 0.7 else other, markdown=rng.random() < 0.7
    )
    false = rng.randint(n_worse // 2, n_worse)
    told = rng.sample(facts["t"], n_worse - false) + rng.sample(facts["f"], false)
    worse = _answer(rng, told, wrong, same if rng.random() < 0.3 else other, markdown=rng.random() < 0.2)
    prompt = f"Tell me what is known about {town}, and what it is called today."
    metadata = {"gold": gold, "town": town}
    if rng.random() < 0.5:
        return Comparison(prompt, reference, (worse, better), (1, 0), "sft", metadata)
    return Comparison(prompt, reference, (better, worse), (0, 1), "sft", metadata)


def _answer(rng: random.Random, facts: list[str], answer: str, style: str, *, markdown: bool = False) -> str:
    sentences = [f"{rng.choice(_STARTS[style])}, {fact}." for fact in rng.sample(facts, len(facts))]
    if not markdown:
        return " ".join(sentences) + f" And the final answer is {answer}."
    listed = "\n".join(f"- **{sentence.partition(',')[0]}**,{sentence.partition(',')[2]}" for sentence in sentences)
    return f"## Answer\n\n{listed}\n\nAnd the final answer is **{answer}**."


def stated(text: str) -> str | None:
    """What a text says it is; None where it says nothing, or twice something."""
    found = _STATED.findall(text)
    return found[0] if len(found) == 1 else None


def style_of(text: str) -> str | None:
    counts = {
        style: sum(text.count(f"{start},") + text.count(f"{start}**,") for start in each) for style, each in _STARTS.items()
    }
    return max(counts, key=counts.__getitem__) if any(counts.values()) else None


Score = Callable[[str, str, str], float]
"""Of prompt, reference and candidate."""


class Plain:
    """A scorer that gives each candidate a number of its own."""

    def __init__(self, score: Score) -> None:
        self._score = score

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        for comparison in comparisons:
            prompt, reference = str(comparison.prompt), str(comparison.reference or "")
            yield [self._score(prompt, reference, str(candidate)) for candidate in comparison.candidates]


def contender(name: str, score: Score, *, takes_reference: bool = True) -> Contender:
    made = Given(name, Plain(score))
    made.reads_references = takes_reference
    return made


def noise(seed: int, *texts: str) -> float:
    """Gaussian, and the same for the same texts."""
    return random.Random(f"{seed} {texts}").gauss(0, 1)


def oracle(prompt: str, reference: str, candidate: str) -> float:
    """Compares what two texts say, whatever their form; to say nothing, or twice something, is worse than to be wrong."""
    said, wanted = stated(candidate), stated(reference)
    return 2.0 * (said is not None and said == wanted) - (said is None) - 2.0 * (not candidate.strip())


def cosine(reference: str, candidate: str, *, ordered: bool = True) -> float:
    """Of the counts of words and, if ``ordered``, of pairs of adjacent words, which count twice."""
    first, second = (_counts(text, ordered) for text in (reference, candidate))
    norms = math.sqrt(sum(v * v for v in first.values())) * math.sqrt(sum(v * v for v in second.values()))
    return sum(value * second[key] for key, value in first.items()) / norms if norms else 0.0


def _counts(text: str, ordered: bool) -> Counter[object]:
    words = re.findall(r"\w+", text.lower())
    found: Counter[object] = Counter(words)
    if ordered:
        for couple in pairwise(words):
            found[couple] += 2
    return found


def honest(data: list[Comparison], seed: int) -> dict[str, Contender]:
    """Scorers that take no shortcut."""
    gold = {str(each.prompt): each.metadata["gold"] for each in data}

    def knows(prompt: str, reference: str, candidate: str) -> float:
        said = stated(candidate)
        return float(said == gold[prompt]) - 0.5 * (said is None) - 0.5 * (not candidate.strip())

    def judges(prompt: str, reference: str, candidate: str) -> float:
        return 2 * knows(prompt, "", candidate) + 0.5 * noise(seed, prompt, candidate)

    return {
        "tfidf": Tfidf(),
        "noisy oracle": contender("noisy oracle", lambda p, r, c: oracle(p, r, c) + 0.8 * noise(seed, p, c)),
        "cosine": contender("cosine", lambda p, r, c: cosine(r, c)),
        "label": contender("label", knows),
        "no reference": contender("no reference", judges, takes_reference=False),
    }


def planted(data: list[Comparison], seed: int) -> dict[str, tuple[Contender, str]]:
    """Scorers with one shortcut, and the probe that must find it."""
    gold = {str(each.prompt): each.metadata["gold"] for each in data}
    of_town = {each.metadata["town"]: each.metadata["gold"] for each in data}

    def length(prompt: str, reference: str, candidate: str) -> float:
        return len(candidate) / 50 + oracle(prompt, reference, candidate) / 4

    def markdown(prompt: str, reference: str, candidate: str) -> float:
        marks = 3.0 * bool(re.search(r"\*\*|^- |^#", candidate, re.MULTILINE))
        return marks + 0.05 * oracle(prompt, reference, candidate) + noise(seed, prompt, candidate)

    def no_reference(prompt: str, reference: str, candidate: str) -> float:
        said = stated(candidate)
        return float(said == gold[prompt]) - (said is None) + noise(seed, prompt, candidate)

    def no_prompt(prompt: str, reference: str, candidate: str) -> float:
        town = next(iter(re.findall(r"of (\w+\d)", candidate)), "")
        said, same_style = stated(candidate), style_of(candidate) == style_of(reference)
        return (
            float(said is not None and said == of_town.get(town))
            - (said is None)
            + 0.3 * same_style
            + 0.7 * noise(seed, candidate)
        )

    def copies(prompt: str, reference: str, candidate: str) -> float:
        begins = reference.split()[:8] == candidate.split()[:8] and bool(reference)
        return oracle(prompt, reference, candidate) + 5.0 * begins + 0.5 * noise(seed, prompt, candidate)

    scores = {
        "length": (length, "length"),
        "markdown": (markdown, "markdown"),
        "ignores the reference": (no_reference, "gain"),
        "ignores the prompt": (no_prompt, "other_answer"),
        "copies win": (copies, "pasted"),
    }
    return {name: (contender(name, score), probe) for name, (score, probe) in scores.items()}


WEAKNESSES: dict[str, set[str]] = {"tfidf": {"scrambled"}}
"""What an honest scorer is rightly failed for: TF-IDF compares words, whatever their order."""
