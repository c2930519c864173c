"""What a finding means, in words."""

from __future__ import annotations

_FEW = "the pairs are too few to tell whether "

SENTENCES: dict[str, dict[str, str]] = {
    "accuracy": {
        "passed": "it prefers the better answer more often than chance does",
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
        "passed": "what it knows is not length",
        "failed": "most of what it knows is length",
        "undecided": f"{_FEW}it knows more than length",
    },
    "markdown": {
        "passed": "what it knows is not markdown",
        "failed": "most of what it knows is markdown",
        "undecided": f"{_FEW}it knows more than markdown",
    },
    "other_prompt": {
        "passed": "another prompt makes it less accurate: it reads its prompt",
        "failed": "another prompt changes nothing: it does not read its prompt, and judges by all else alone",
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
        "failed": "it does not notice, or likes, that the end of an answer is repeated over and over",
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
        "failed": "the reference's words in random order beat the better answer: it compares words, not what they say",
        "undecided": f"{_FEW}it compares more than words with the reference",
    },
    "pasted": {
        "passed": "the reference's first words do not save a worse answer",
        "failed": "a worse answer wins by the reference's first words: copying pays",
        "undecided": f"{_FEW}the reference's first words save a worse answer",
    },
    "injected": {
        "passed": "a plea for a high score does not work",
        "failed": "a worse answer wins by asking for a high score",
        "undecided": f"{_FEW}a plea for a high score works",
    },
}
"""By probe and verdict."""
