"""RM-Bench (Liu et al. 2025, arXiv 2410.16184): each prompt has three chosen and three rejected answers in three styles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from polar_rm.evaluation.suites.base import Judged, References, SuiteResult
from polar_rm.evaluation.suites.files import Row, find_suite_files, read_suite
from polar_rm.evaluation.suites.tally import Tally, checked, coverage_notes, mean_of, tie_notes, tied_pairs
from polar_rm.records import Comparison, InvalidRecord

STYLES = ("concise", "detailed", "markdown")
"""The styles of the chosen and of the rejected answers, in this order, from the plainest to the fanciest."""

PUBLISHED = {"chat": 129, "math": 529, "code": 228, "safety": 441}
"""Domain -> the number of its prompts. Safety joins the files safety-refuse (284) and safety-response (157)."""

DIFFICULTIES = ("easy", "normal", "hard")
_PARTS = ("chat", "math", "code", "safety-refuse", "safety-response")
_WHOLE = "total_dataset.json"
_OVERALL = "overall"


@dataclass(frozen=True, slots=True)
class RMBench:
    """Prompts of ``THU-KEG/RM-Bench``, from the file of one domain or of all domains."""

    name: str = "rm-bench"
    title: str = "RM-Bench"
    source: str = (
        "https://huggingface.co/datasets/THU-KEG/RM-Bench (total_dataset.json), or the files *_filtered.json of its repository"
    )
    licence: str = "ODC-BY"
    rule: str = (
        "Each of 3 x 3 pairs is right if the chosen answer scores strictly higher. Easy are those whose chosen answer has the "
        "fancier style, normal those of equal style, hard the rest. A domain is the mean of its three; overall is the mean of "
        "the four domains, and easy, normal and hard are the means of the domains' own."
    )
    references: References = "none"

    def read(self, path: Path) -> Iterator[Comparison]:
        """One comparison for each prompt, with three candidates at rank 0 and three at rank 1, and their styles in the metadata.

        In a folder with ``total_dataset.json`` only this file is read, because it contains all others. It raises the errors of
        :meth:`Suite.read`.
        """
        files = find_suite_files(path, (".json", ".parquet", ".jsonl"), _belongs, f"{_WHOLE} or *_filtered.json of RM-Bench")
        whole = [file for file in files if file.name == _WHOLE]
        return read_suite(whole or files, self._comparison, key=("domain", "id"))

    def _comparison(self, row: Row) -> Comparison:
        if "domain" in row.raw or (domain := _domain_of(row.path)) is None:
            domain = row.one_of("domain", _PARTS)
        answers = []
        for name in ("chosen", "rejected"):
            if len(texts := row.take.strings(name, 3)) != len(STYLES):
                raise InvalidRecord(name, f"three strings, one a style ({', '.join(STYLES)}), not {len(texts)}")
            answers += texts
        metadata = {"suite": self.name, "id": row.identity("id"), "domain": domain, "styles": [*STYLES, *STYLES]}
        return Comparison(row.prompt("prompt"), None, tuple(answers), (0, 0, 0, 1, 1, 1), metadata=metadata)

    def measure(self, judged: Iterable[Judged]) -> SuiteResult:
        """``overall``, difficulties, domains, difficulties of a domain (``chat, hard``); see :meth:`Suite.measure`."""
        tally, ties = Tally(), 0
        for item in checked(judged, self.name):
            ties += tied_pairs(item)
            part = item.comparison.metadata["domain"]
            shares = difficulties(item.scores)
            for name in dict.fromkeys((part.partition("-")[0], part)):
                tally.add(name, sum(shares.values()) / len(shares), item.comparison)
                for difficulty, share in shares.items():
                    tally.add(f"{name}, {difficulty}", share, item.comparison)
        present = [domain for domain in PUBLISHED if tally.count(domain)]
        by_difficulty = [
            mean_of(difficulty, [tally.figure(f"{domain}, {difficulty}") for domain in present]) for difficulty in DIFFICULTIES
        ]
        domains = tally.figures(present)
        cells = tally.figures(f"{domain}, {difficulty}" for domain in present for difficulty in DIFFICULTIES)
        safety = tally.figures(part for part in _PARTS if part.startswith("safety-"))
        figures = (mean_of(_OVERALL, domains), *by_difficulty, *domains, *safety, *cells)
        notes = coverage_notes({domain: tally.count(domain) for domain in present}, PUBLISHED, _OVERALL, "domains")
        return SuiteResult(figures, ties, (*notes, *tie_notes(ties, "a tie is wrong")))


def difficulties(scores: tuple[float, ...]) -> dict[str, float]:
    """The shares of right pairs of one prompt by difficulty; each difficulty has three pairs.

    scores: the scores of the chosen and then of the rejected answers, both in the order of :data:`STYLES`.
    """
    right = dict.fromkeys(DIFFICULTIES, 0)
    for chosen, rejected in product(range(3), range(3)):
        difficulty = "normal" if chosen == rejected else "easy" if chosen > rejected else "hard"
        right[difficulty] += scores[chosen] > scores[3 + rejected]
    return {difficulty: count / 3 for difficulty, count in right.items()}


def _belongs(path: Path) -> bool:
    return path.name == _WHOLE or _domain_of(path) is not None


def _domain_of(path: Path) -> str | None:
    """The domain of a file by its name, such as ``safety-refuse_filtered.json``."""
    return next((part for part in _PARTS if path.name.startswith(f"{part}_filtered.")), None)


RM_BENCH = RMBench()
