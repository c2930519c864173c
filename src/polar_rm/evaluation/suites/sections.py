"""The sections of RewardBench 1, which M-RewardBench shares, with their subsets and weighting."""

from __future__ import annotations

from collections.abc import Mapping

from polar_rm.evaluation.suites.base import Figure
from polar_rm.evaluation.suites.tally import Tally, mean_of

SECTIONS: dict[str, tuple[str, ...]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
"""Section -> its subsets (Lambert et al. 2024, arXiv 2403.13787, table 1)."""

SUBSETS = tuple(subset for subsets in SECTIONS.values() for subset in subsets)


def section_figures(tally: Tally, weights: Mapping[str, int], prefix: str = "") -> list[Figure]:
    """A figure for each section that has comparisons: the weighted mean of its subsets' accuracies.

    weights: subset -> its weight. These are the official constants, not the numbers of pairs, so that mathematics has the weight
    of code. prefix: prefix of the subsets' names in the tally.
    """
    figures = []
    for section, subsets in SECTIONS.items():
        if present := [subset for subset in subsets if tally.count(prefix + subset)]:
            parts = [tally.figure(prefix + subset) for subset in present]
            figures.append(mean_of(section, parts, [weights[subset] for subset in present]))
    return figures
