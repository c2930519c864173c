"""M-RewardBench (Gureja et al. 2025, arXiv 2410.15522): RewardBench 1 in 23 languages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from polar_rm.evaluation.suites.base import Figure, Judged, References, SuiteResult
from polar_rm.evaluation.suites.files import Row, find_suite_files, read_suite
from polar_rm.evaluation.suites.sections import SECTIONS, SUBSETS, section_figures
from polar_rm.evaluation.suites.tally import Tally, best_alone, checked, mean_of, tie_notes, tied_pairs
from polar_rm.records import Comparison

WEIGHTS = {
    "alpacaeval-easy": 79,
    "alpacaeval-length": 79,
    "alpacaeval-hard": 76,
    "mt-bench-easy": 24,
    "mt-bench-med": 38,
    "mt-bench-hard": 35,
    "math-prm": 983,
    "refusals-dangerous": 100,
    "refusals-offensive": 100,
    "llmbar-natural": 76,
    "llmbar-adver-neighbor": 124,
    "llmbar-adver-GPTInst": 87,
    "llmbar-adver-GPTOut": 42,
    "llmbar-adver-manual": 43,
    "xstest-should-refuse": 154,
    "xstest-should-respond": 247,
    "donotanswer": 135,
    **dict.fromkeys(("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-rust"), 164),
    "hep-python": 163,
}
"""Subset -> its weight in its section. It is the number of pairs that all languages have; math-prm has the weight of all code."""

LANGUAGES = 23


@dataclass(frozen=True, slots=True)
class MRewardBench:
    """Files of ``CohereLabsCommunity/multilingual-reward-bench``: the file of one language, or all files."""

    name: str = "m-rewardbench"
    title: str = "M-RewardBench"
    source: str = "https://huggingface.co/datasets/CohereLabsCommunity/multilingual-reward-bench (LANGUAGE/test-*.parquet)"
    licence: str = "ODC-BY"
    rule: str = (
        "A pair is right if the chosen answer scores strictly higher. In each language the four sections are weighted as in "
        "RewardBench, by the counts of this set, and its score is their mean; overall is the mean of the languages."
    )
    references: References = "none"

    def read(self, path: Path) -> Iterator[Comparison]:
        """Pairs at ranks 0 and 1; see :meth:`Suite.read`."""
        files = find_suite_files(path, (".parquet", ".jsonl", ".arrow"), lambda _: True, "test-*.parquet of M-RewardBench")
        return read_suite(files, self._comparison, key=("language", "subset", "id"))

    def _comparison(self, row: Row) -> Comparison:
        metadata = {
            "suite": self.name,
            "id": row.identity("id"),
            "language": row.take.string("language"),
            "subset": row.one_of("source", SUBSETS),
        }
        answers = row.take.string("chosen"), row.take.string("rejected")
        return Comparison(row.prompt("prompt"), None, answers, (0, 1), metadata=metadata)

    def measure(self, judged: Iterable[Judged]) -> SuiteResult:
        """``overall``, the sections over all languages, the languages; see :meth:`Suite.measure`."""
        tally, ties = Tally(), 0
        languages: dict[str, None] = {}
        for item in checked(judged, self.name):
            ties += tied_pairs(item)
            language, subset = (item.comparison.metadata[name] for name in ("language", "subset"))
            languages[language] = None
            tally.add(f"{language}/{subset}", best_alone(item), item.comparison)
        scores: list[Figure] = []
        notes: list[str] = []
        by_section: dict[str, list[Figure]] = {section: [] for section in SECTIONS}
        for language in languages:
            sections = section_figures(tally, WEIGHTS, f"{language}/")
            scores.append(mean_of(language, sections))
            for section in sections:
                by_section[section.name].append(section)
            if missing := [subset for subset in SUBSETS if not tally.count(f"{language}/{subset}")]:
                notes.append(f"{language!r} is no published number: there are no pairs of {', '.join(missing)}")
        if len(languages) != LANGUAGES:
            notes.append(f"'overall' rests on {len(languages)} of {LANGUAGES} languages and is no published number")
        means = [mean_of(section, figures) for section, figures in by_section.items() if figures]
        return SuiteResult((mean_of("overall", scores), *means, *scores), ties, (*notes, *tie_notes(ties, "a tie is wrong")))


M_REWARD_BENCH = MRewardBench()
