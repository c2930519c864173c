"""VerifyBench and VerifyBench-Hard (Yan et al. 2025, arXiv 2505.15801): completions are judged by a reference answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from polar_rm.evaluation.best_of import area_under_roc
from polar_rm.evaluation.statistics import Floats
from polar_rm.evaluation.suites.base import Figure, Judged, References, SuiteResult
from polar_rm.evaluation.suites.files import Row, find_suite_files, read_suite
from polar_rm.evaluation.suites.tally import Tally, checked, tie_notes, tied_pairs
from polar_rm.records import Comparison

_OVERALL = "overall"


@dataclass(frozen=True, slots=True)
class VerifyBench:
    """Completions of ``ZJU-REAL/VerifyBench``, grouped by question."""

    name: str = "verifybench"
    title: str = "VerifyBench"
    file: str = "verify_bench"
    published: int = 2000
    source: str = "https://huggingface.co/datasets/ZJU-REAL/VerifyBench (verify_bench.jsonl, verify_bench_hard.jsonl)"
    licence: str = "MIT"
    rule: str = (
        "The share of completions whose verdict (right or wrong) is the annotators'. A reward is not a verdict: a completion "
        "counts as right if its score reaches the threshold that is best for the other half of the questions. Also reported: "
        "the share of pairs of one question whose right completion scores strictly higher, and the area under the ROC curve "
        "over all completions."
    )
    references: References = "gold"

    def read(self, path: Path) -> Iterator[Comparison]:
        """One comparison for each question, with all its completions, right ones at rank 0, wrong ones at rank 1.

        A question with one completion, as in the hard set, has one candidate. It raises the errors of :meth:`Suite.read`.
        """
        files = find_suite_files(path, (".jsonl", ".parquet"), lambda file: file.stem == self.file, f"{self.file}.jsonl")
        return _by_question(read_suite(files, self._completion))

    def _completion(self, row: Row) -> Comparison:
        metadata: dict[str, Any] = {"suite": self.name, "subset": row.take.string("answer_type")}
        if row.raw.get("completion_id") is not None:
            metadata["id"] = row.identity("completion_id")
        reference, completion = row.take.string("answer"), row.take.string("completion")
        rank = 0 if row.take.boolean("gold_correct") else 1
        return Comparison(row.prompt("question"), reference, (completion,), (rank,), metadata=metadata)

    def measure(self, judged: Iterable[Judged]) -> SuiteResult:
        """``overall`` (verdicts), answer types, ``pairs``, ``auc``; see :meth:`Suite.measure`."""
        items = list(checked(judged, self.name))
        ties = sum(map(tied_pairs, items))
        tally = Tally()
        for item, verdicts in zip(items, _verdicts(items), strict=True):
            for correct in verdicts:
                for name in (_OVERALL, item.comparison.metadata["subset"]):
                    tally.add(name, correct, item.comparison)
            for better, worse in item.comparison.pairs():
                tally.add("pairs", float(item.scores[better] > item.scores[worse]), item.comparison)
        names = [name for name in tally.names() if name not in (_OVERALL, "pairs")]
        figures = tally.figures((_OVERALL, *sorted(names), "pairs"))
        scores = [score for item in items for score in item.scores]
        is_right = [rank == 0 for item in items for rank in item.comparison.ranks]
        notes = [f"{len(scores):,} completions, but {self.published:,} are published"] if len(scores) != self.published else []
        if len(set(is_right)) == 2:
            figures.append(Figure("auc", area_under_roc(scores, is_right), len(scores), None, None))
        else:
            notes.append("all completions have one label: there is no 'auc'")
        notes += ["no question has a right and a wrong completion: there are no 'pairs'"] * (not tally.count("pairs"))
        return SuiteResult(tuple(figures), ties, (*notes, *tie_notes(ties, "in 'pairs' a tie is wrong")))


def _by_question(completions: Iterator[Comparison]) -> Iterator[Comparison]:
    """Completions of one question and answer as candidates of one comparison, in the order of their first completions.

    The id of a comparison is that of its first completion.
    """
    questions: dict[tuple[str, str], list[Comparison]] = {}
    for completion in completions:
        questions.setdefault((str(completion.prompt), str(completion.reference)), []).append(completion)
    for group in questions.values():
        candidates = tuple(completion.candidates[0] for completion in group)
        yield replace(group[0], candidates=candidates, ranks=tuple(completion.ranks[0] for completion in group))


def _verdicts(judged: list[Judged]) -> list[list[float]]:
    """1 for each completion with a right verdict, else 0. Each half of the questions is judged by the threshold of the other."""
    halves = [judged[0::2], judged[1::2]]
    thresholds = [_threshold(halves[1] or halves[0]), _threshold(halves[0])]
    return [
        [
            float((score >= thresholds[index % 2]) == (rank == 0))
            for score, rank in zip(item.scores, item.comparison.ranks, strict=True)
        ]
        for index, item in enumerate(judged)
    ]


def _threshold(judged: list[Judged]) -> float:
    """The threshold with the maximum number of right verdicts, and the lowest one if there are several.

    Completions with scores from the threshold on get the verdict right. A threshold is half-way between two scores, or beyond all
    scores.
    """
    scores: Floats = np.array([score for item in judged for score in item.scores])
    right = np.array([rank == 0 for item in judged for rank in item.comparison.ranks])
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    # The number of right verdicts if the first i in order get the verdict wrong: wrong ones before i, and right ones from i on.
    hits = np.r_[0, np.cumsum(~right[order])] + np.r_[np.cumsum(right[order][::-1])[::-1], 0]
    possible = np.r_[True, ranked[1:] != ranked[:-1], True]  # a threshold can't separate equal scores
    split = int(np.argmax(np.where(possible, hits, -1)))
    if split == 0:
        return -np.inf
    return np.inf if split == len(ranked) else float((ranked[split - 1] + ranked[split]) / 2)


VERIFYBENCH = VerifyBench()
VERIFYBENCH_HARD = VerifyBench("verifybench-hard", "VerifyBench-Hard", "verify_bench_hard", 1000)
