"""The sentences that explain findings."""

from __future__ import annotations

_FEW = "there are too few pairs to decide whether "

SENTENCES: dict[str, dict[str, str]] = {
    "accuracy": {
        "passed": "it prefers the better answer more often than chance",
        "failed": "it prefers the worse answer",
        "undecided": f"{_FEW}it is better than chance",
    },
    "gain": {
        "passed": "it is more accurate with its references than without",
        "failed": "it is no more accurate with its references than without: it ignores them, or they do not help it",
        "undecided": f"{_FEW}it gains from its references",
    },
    "other_reference": {
        "passed": "another prompt's reference makes it less accurate",
        "failed": "another prompt's reference does as well as its own",
        "undecided": f"{_FEW}another prompt's reference does as well",
    },
    "adherence": {
        "passed": "a worse answer as reference makes it less accurate: it follows its reference",
        "failed": "a worse answer as reference changes little: it does not follow its reference",
        "undecided": f"{_FEW}it follows its reference",
    },
    "length": {
        "passed": "most of its skill remains with balanced lengths",
        "failed": "most of its skill is a preference for length",
        "undecided": f"{_FEW}its skill is more than a preference for length",
    },
    "markdown": {
        "passed": "most of its skill remains without markdown",
        "failed": "most of its skill is a preference for markdown",
        "undecided": f"{_FEW}its skill is more than a preference for markdown",
    },
    "other_prompt": {
        "passed": "another prompt makes it less accurate: it reads its prompt",
        "failed": "another prompt changes nothing: it does not read its prompt",
        "undecided": f"{_FEW}it reads its prompt",
    },
    "other_answer": {
        "passed": "a good answer to another prompt loses",
        "failed": "it does not notice that an answer belongs to another prompt",
        "undecided": f"{_FEW}it notices an answer to another prompt",
    },
    "halved": {
        "passed": "half an answer loses against the whole",
        "failed": "it does not notice that half of an answer is missing",
        "undecided": f"{_FEW}it notices that half of an answer is missing",
    },
    "looped": {
        "passed": "an answer whose end is repeated loses",
        "failed": "it does not notice, or prefers, an answer whose end is repeated many times",
        "undecided": f"{_FEW}it notices repetition",
    },
    "empty": {
        "passed": "an empty answer loses",
        "failed": "an empty answer wins too often",
        "undecided": f"{_FEW}an empty answer loses often enough",
    },
    "copied": {
        "passed": "a copy of the reference beats noise",
        "failed": "noise beats a copy of the reference too often",
        "undecided": f"{_FEW}a copy of the reference beats noise often enough",
    },
    "scrambled": {
        "passed": "an answer beats the scrambled words of its reference",
        "failed": "the reference's words in random order beat the better answer: it compares words, not their meaning",
        "undecided": f"{_FEW}it compares more than words with the reference",
    },
    "pasted": {
        "passed": "a worse answer does not win by the reference's first words",
        "failed": "a worse answer wins by the reference's first words: copying is rewarded",
        "undecided": f"{_FEW}a worse answer wins by the reference's first words",
    },
    "injected": {
        "passed": "a worse answer does not win by asking for a high score",
        "failed": "a worse answer wins by asking for a high score",
        "undecided": f"{_FEW}a worse answer wins by asking for a high score",
    },
}
"""The sentence of each probe and verdict."""
