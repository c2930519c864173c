"""JudgeBench (Tan et al. 2025, arXiv 2410.12784): pairs of answers, one of which is objectively right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polar_rm.errors import BadRow
from polar_rm.evaluation.suites.base import Judged, References, SuiteResult
from polar_rm.evaluation.suites.files import Row, find_suite_files, read_suite
from polar_rm.evaluation.suites.tally import Tally, best_alone, checked, tie_notes, tied_pairs
from polar_rm.records import Comparison, InvalidRecord, RowRules, read_rows
from polar_rm.records.fields import Fields

CATEGORIES = {
    "knowledge": "mmlu-pro",
    "reasoning": "livebench-reasoning",
    "math": "livebench-math",
    "coding": "livecodebench",
}
"""Category -> the prefix of its pairs' sources."""

PUBLISHED = {"gpt-4o-2024-05-13": 350, "claude-3-5-sonnet-20240620": 270}
"""Model that wrote the answers -> the number of its pairs. Published results are on the pairs of one model."""

_RANKS = {"A>B": (0, 1), "B>A": (1, 0)}


@dataclass(frozen=True, slots=True)
class JudgeBench:
    """Pairs of ``ScalerLab/JudgeBench``. Its output files repeat the pairs and can be read, too."""

    name: str = "judgebench"
    title: str = "JudgeBench"
    source: str = "https://github.com/ScalerLab/JudgeBench (data/*.jsonl)"
    licence: str = "MIT"
    rule: str = (
        "A pair is right if the right answer scores strictly higher (single game: the first order alone; a tie is wrong). "
        "Overall is the share of all pairs; knowledge is mmlu-pro*, coding is livecodebench."
    )
    references: References = "none"

    def read(self, path: Path) -> Iterator[Comparison]:
        """Answers A and B in this order, the right one at rank 0. Files in a folder ``outputs`` are left out.

        It raises the errors of :meth:`Suite.read`.
        """
        suffixes = (".jsonl", ".parquet")
        files = find_suite_files(path, suffixes, lambda file: "outputs" not in file.parts, "*.jsonl of JudgeBench")
        return read_suite(files, self._comparison, id_field="pair_id")

    def _comparison(self, row: Row) -> Comparison:
        source = row.take.string("source")
        category = next((name for name, start in CATEGORIES.items() if source.startswith(start)), None)
        if category is None:
            raise InvalidRecord("source", f"one that begins with {', '.join(CATEGORIES.values())}, not {source!r}")
        metadata = {
            "suite": self.name,
            "id": row.take.string("pair_id"),
            "subset": category,
            "source": source,
            "response_model": row.take.string("response_model"),
        }
        answers = row.take.string("response_A"), row.take.string("response_B")
        ranks = _RANKS[row.one_of("label", tuple(_RANKS))]
        return Comparison(row.take.string("question"), None, answers, ranks, metadata=metadata)

    def measure(self, judged: Iterable[Judged]) -> SuiteResult:
        """``overall``, the four categories, and the pairs of each model if there are several; see :meth:`Suite.measure`."""
        tally, ties = Tally(), 0
        models: dict[str, int] = {}
        for item in checked(judged, self.name):
            ties += tied_pairs(item)
            metadata = item.comparison.metadata
            models[metadata["response_model"]] = models.get(metadata["response_model"], 0) + 1
            for name in ("overall", metadata["subset"], metadata["response_model"]):
                tally.add(name, best_alone(item), item.comparison)
        figures = tally.figures(("overall", *CATEGORIES, *(models if len(models) > 1 else ())))
        return SuiteResult(tuple(figures), ties, (*_notes(tally, models), *tie_notes(ties, "a tie is wrong")))


def _notes(tally: Tally, models: Mapping[str, int]) -> list[str]:
    notes = []
    if missing := [category for category in CATEGORIES if not tally.count(category)]:
        notes.append(f"there are no pairs of {', '.join(missing)}: 'overall' is no published number")
    if len(models) > 1:
        notes.append(f"'overall' joins the pairs of {', '.join(models)}; published numbers are of one model's pairs")
    for model, count in models.items():
        if count != (published := PUBLISHED.get(model, count)):
            notes.append(f"{model}: {count:,} comparisons, but {published:,} are published")
    return notes


def read_stored_scores(path: Path) -> dict[str, tuple[float, float]]:
    """The scores in an output file of JudgeBench's own reward models: pair id -> scores of answers A and B.

    Only the first judgement of each pair is read. The second has the other order of answers, which does not change a reward
    model's scores.

    Raises:
        BadRow: a judgement does not have two finite scores (judges that answer in words have none), or an id occurs twice.
        PolarError: the file can't be read, or is empty.
    """
    scores: dict[str, tuple[float, float]] = {}
    for number, (identity, pair) in read_rows(path, _stored):
        if identity in scores:
            raise BadRow(str(path), number, "pair_id", f"a unique id, but an earlier row has {identity!r}")
        scores[identity] = pair
    return scores


def _stored(raw: Mapping[str, Any], rules: RowRules) -> tuple[str, tuple[float, float]]:
    take = Fields(raw, rules.is_cell)
    expected = "the judgments of one pair, as an output file of JudgeBench has them"
    first = take.values("judgments", expected, 1)[0]
    judgment = first.get("judgment") if isinstance(first, Mapping) else None
    if not isinstance(judgment, Mapping):
        raise InvalidRecord("judgments[0].judgment", "a reward model's judgment with two scores, but there is none")
    inner = Fields({f"judgments[0].judgment.scores[{i}]": value for i, value in enumerate(_two_scores(judgment))}, False)
    return take.string("pair_id"), (
        inner.number("judgments[0].judgment.scores[0]"),
        inner.number("judgments[0].judgment.scores[1]"),
    )


def _two_scores(judgment: Mapping[str, Any]) -> list[Any]:
    scores = judgment.get("scores")
    if not isinstance(scores, list) or len(scores) != 2:
        raise InvalidRecord(
            "judgments[0].judgment.scores", "two scores, as reward models have; judges that answer in words have none"
        )
    return scores


JUDGEBENCH = JudgeBench()
