"""LLMBar (Zeng et al. 2024, arXiv 2310.07641): pairs in which one answer follows the instruction and the other only seems to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from polar_rm.errors import PolarError
from polar_rm.evaluation.suites.base import Judged, References, SuiteResult
from polar_rm.evaluation.suites.files import Row, find_suite_files, read_suite
from polar_rm.evaluation.suites.tally import Tally, best_alone, checked, coverage_notes, mean_of, tie_notes, tied_pairs
from polar_rm.records import Comparison, InvalidRecord

PUBLISHED = {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}
"""Subset -> the number of its pairs. All subsets but Natural are adversarial."""

_ADVERSARIAL = tuple(PUBLISHED)[1:]


@dataclass(frozen=True, slots=True)
class LLMBar:
    """Files of ``Dataset/LLMBar``. The name of a file, or the folder of a ``dataset.json``, is the name of the subset."""

    name: str = "llmbar"
    title: str = "LLMBar"
    source: str = "https://github.com/princeton-nlp/LLMBar (Dataset/LLMBar)"
    licence: str = "MIT"
    rule: str = (
        "A pair is right if the labelled answer scores strictly higher. Adversarial is the mean of its four subsets; overall is"
        " the mean of all five."
    )
    references: References = "none"

    def read(self, path: Path) -> Iterator[Comparison]:
        """Outputs 1 and 2 in this order, the labelled one at rank 0; see :meth:`Suite.read`."""
        files = find_suite_files(path, (".json", ".jsonl"), lambda file: _subset(path / file) is not None, "subsets of LLMBar")
        for file in files:
            if _subset(file) is None:
                raise PolarError(f"{file}: neither its name nor its folder's is a subset of LLMBar: {', '.join(PUBLISHED)}")
        return read_suite(files, self._comparison, key=("subset", "id"))

    def _comparison(self, row: Row) -> Comparison:
        label = row.take.integer("label")
        if label not in (1, 2):
            raise InvalidRecord("label", f"1 or 2, not {label}")
        answers = row.take.string("output_1"), row.take.string("output_2")
        metadata = {"suite": self.name, "subset": _subset(row.path)}
        return Comparison(row.prompt("input"), None, answers, (label - 1, 2 - label), metadata=metadata)

    def measure(self, judged: Iterable[Judged]) -> SuiteResult:
        """``overall``, ``Adversarial`` and the subsets; see :meth:`Suite.measure`."""
        tally, ties = Tally(), 0
        for item in checked(judged, self.name):
            ties += tied_pairs(item)
            tally.add(item.comparison.metadata["subset"], best_alone(item), item.comparison)
        subsets = tally.figures(PUBLISHED)
        adversarial = tally.figures(_ADVERSARIAL)
        means = [mean_of("overall", subsets)] + ([mean_of("Adversarial", adversarial)] if adversarial else [])
        notes = coverage_notes({name: tally.count(name) for name in PUBLISHED}, PUBLISHED, "overall", "subsets")
        return SuiteResult((*means, *subsets), ties, (*notes, *tie_notes(ties, "a tie is wrong")))


def _subset(file: Path) -> str | None:
    name = file.parent.name if file.stem == "dataset" else file.stem
    return name if name in PUBLISHED else None


LLMBAR = LLMBar()
