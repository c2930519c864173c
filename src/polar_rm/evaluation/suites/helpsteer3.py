"""HelpSteer3-Preference (Wang et al. 2025, arXiv 2505.11475): pairs with a human preference of three strengths, 14 languages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from polar_rm.evaluation.suites.base import Judged, References, SuiteResult
from polar_rm.evaluation.suites.files import Row, find_suite_files, read_suite
from polar_rm.evaluation.suites.tally import Tally, best_alone, checked, coverage_notes, tie_notes, tied_pairs
from polar_rm.records import Comparison, InvalidRecord

DOMAINS = ("general", "stem", "code", "multilingual")
STRENGTHS = {1: "slightly better", 2: "better", 3: "much better"}
"""Absolute preference -> the annotators' judgement of the preferred response."""


@dataclass(frozen=True, slots=True)
class HelpSteer3:
    """Rows of ``nvidia/HelpSteer3``, configuration ``preference``, split ``validation``."""

    name: str = "helpsteer3"
    title: str = "HelpSteer3-Preference"
    source: str = "https://huggingface.co/datasets/nvidia/HelpSteer3 (preference/validation.jsonl.gz)"
    licence: str = "CC-BY-4.0"
    rule: str = (
        "A pair is right if the response that the annotators prefer scores strictly higher. Pairs that are about the same are not"
        " counted. Overall is the share of all pairs."
    )
    references: References = "none"

    def read(self, path: Path) -> Iterator[Comparison]:
        """Responses 1 and 2 in this order, the preferred one at rank 0. In a folder only the validation split of ``preference``.

        It raises the errors of :meth:`Suite.read`.
        """
        suffixes = (".jsonl.gz", ".jsonl", ".parquet")
        files = find_suite_files(path, suffixes, _belongs, "preference/validation.jsonl.gz of HelpSteer3")
        return read_suite(files, self._comparison, passed_over="their two responses are about the same")

    def _comparison(self, row: Row) -> Comparison | None:
        preference = row.take.integer("overall_preference")
        if not -3 <= preference <= 3:
            raise InvalidRecord("overall_preference", f"an integer from -3 to 3, not {preference}")
        metadata = {
            "suite": self.name,
            "domain": row.one_of("domain", DOMAINS),
            "language": row.take.string("language"),
            "strength": STRENGTHS.get(abs(preference)),
        }
        answers = row.take.string("response1"), row.take.string("response2")
        prompt = row.take.text("context")
        if preference == 0:
            return None
        return Comparison(prompt, None, answers, (0, 1) if preference < 0 else (1, 0), metadata=metadata)

    def measure(self, judged: Iterable[Judged]) -> SuiteResult:
        """``overall``, domains, strengths, languages of the multilingual domain; see :meth:`Suite.measure`."""
        tally, ties = Tally(), 0
        languages: set[str] = set()
        for item in checked(judged, self.name):
            ties += tied_pairs(item)
            metadata = item.comparison.metadata
            names = ["overall", metadata["domain"], metadata["strength"]]
            if metadata["domain"] == "multilingual":
                names.append(f"multilingual, {metadata['language']}")
                languages.add(names[-1])
            for name in names:
                tally.add(name, best_alone(item), item.comparison)
        figures = tally.figures(("overall", *DOMAINS, *STRENGTHS.values(), *sorted(languages)))
        notes = coverage_notes({name: tally.count(name) for name in DOMAINS}, dict.fromkeys(DOMAINS, 0), "overall", "domains")
        return SuiteResult(tuple(figures), ties, (*notes, *tie_notes(ties, "a tie is wrong")))


def _belongs(path: Path) -> bool:
    return path.name.startswith("validation") and not {"feedback", "edit", "edit_quality", "principle"} & set(path.parts)


HELPSTEER3 = HelpSteer3()
