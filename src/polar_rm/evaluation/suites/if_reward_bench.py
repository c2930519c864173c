"""IF-RewardBench (Wen et al. 2026, arXiv 2603.04738): a preference graph over several responses to each instruction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from polar_rm.evaluation.suites.base import Judged, References, SuiteResult
from polar_rm.evaluation.suites.files import Row, find_suite_files, read_suite
from polar_rm.evaluation.suites.tally import Tally, checked, coverage_notes, mean_of, tie_notes
from polar_rm.records import Comparison, InvalidRecord
from polar_rm.records.values import is_integer

TYPES = ("Single_Turn", "Multi_Turn", "System_Prompt")
PUBLISHED = 842

_ACCURACY = "accuracy"


@dataclass(frozen=True, slots=True)
class IFRewardBench:
    """Instructions of ``thu-coai/IF-RewardBench``, each with its responses and their preference graph."""

    name: str = "if-rewardbench"
    title: str = "IF-RewardBench"
    source: str = "https://github.com/thu-coai/IF-RewardBench (data/if_rewardbench.json)"
    licence: str = "not stated"
    rule: str = (
        "Kendall's tau-b of each instruction over the preferences of its graph: (right - wrong) / sqrt((right + wrong) (right +"
        " wrong + tied)), 0 where all are tied. Overall is the mean of the means of three types (single turn, multi turn, "
        "system prompt); accuracy is the share of right preferences, averaged likewise, and a tie is wrong."
    )
    references: References = "none"

    def read(self, path: Path) -> Iterator[Comparison]:
        """One comparison for each instruction, with its graph in the metadata (``edges``: better, worse).

        Ranks are the graph's levels, which order more pairs than the graph. It raises the errors of :meth:`Suite.read`.
        """
        belongs = "if_rewardbench.json of IF-RewardBench"
        files = find_suite_files(path, (".json", ".jsonl"), lambda file: file.name.startswith("if_rewardbench"), belongs)
        return read_suite(files, self._comparison)

    def _comparison(self, row: Row) -> Comparison:
        identity, kind = row.identity("id"), row.one_of("instruction_type", TYPES)
        listed = row.take.values("responses", "a list of at least two responses", 2)
        answers = tuple(row.string_of(f"responses[{i}]", response, "response") for i, response in enumerate(listed))
        edges = [_edge(i, edge, len(answers)) for i, edge in enumerate(row.take.values("preference_graph"))]
        metadata = {"suite": self.name, "id": identity, "subset": kind, "edges": edges}
        return Comparison(row.take.text("messages"), None, answers, _levels(len(answers), edges), metadata=metadata)

    def measure(self, judged: Iterable[Judged]) -> SuiteResult:
        """``overall`` (tau-b), its types, ``accuracy`` and its types; see :meth:`Suite.measure`."""
        tally, ties, total, empty = Tally(), 0, 0, 0
        for item in checked(judged, self.name):
            metadata = item.comparison.metadata
            right, wrong, tied = outcomes(item.scores, metadata["edges"])
            total, ties, empty = total + 1, ties + tied, empty + (not metadata["edges"])
            tally.add(metadata["subset"], tau_b(right, wrong, tied), item.comparison)
            share = right / max(1, right + wrong + tied)
            tally.add(f"{_ACCURACY}, {metadata['subset']}", share, item.comparison)
        types, shares = tally.figures(TYPES), tally.figures(f"{_ACCURACY}, {kind}" for kind in TYPES)
        figures = (mean_of("overall", types), *types, mean_of(_ACCURACY, shares), *shares)
        notes = coverage_notes({kind: tally.count(kind) for kind in TYPES}, dict.fromkeys(TYPES, 0), "overall", "types")
        notes += [f"{total:,} instructions, but {PUBLISHED:,} are published"] * (total != PUBLISHED)
        notes += [f"{empty:,} instructions have no preferences: the rule counts each as 0"] * bool(empty)
        return SuiteResult(figures, ties, (*notes, *tie_notes(ties, "a tie lowers tau-b, and is wrong in accuracy")))


def outcomes(scores: Sequence[float], edges: Sequence[tuple[int, int]]) -> tuple[int, int, int]:
    """The numbers of preferences (better, worse) whose better response scores higher, lower and equally."""
    right = sum(scores[better] > scores[worse] for better, worse in edges)
    wrong = sum(scores[better] < scores[worse] for better, worse in edges)
    return right, wrong, len(edges) - right - wrong


def tau_b(right: int, wrong: int, tied: int) -> float:
    """Kendall's tau-b for a graph without ties: in -1..1, and 0 if the scores tie all pairs."""
    decided = right + wrong
    return (right - wrong) / math.sqrt(decided * (decided + tied)) if decided else 0.0


def _edge(index: int, edge: Any, responses: int) -> tuple[int, int]:
    """(better, worse) of one preference: {chosen: {response_id: ...}, rejected: {response_id: ...}}."""
    pair = []
    for side in ("chosen", "rejected"):
        field = f"preference_graph[{index}].{side}.response_id"
        response: Any = edge.get(side) if isinstance(edge, Mapping) else None
        number: Any = response.get("response_id") if isinstance(response, Mapping) else None
        if not is_integer(number) or not 0 <= number < responses:
            raise InvalidRecord(field, f"the index of one of {responses} responses")
        pair.append(int(number))
    if pair[0] == pair[1]:
        raise InvalidRecord(f"preference_graph[{index}]", "two different responses")
    return pair[0], pair[1]


def _levels(responses: int, edges: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The level of each response: the longest path to it from a response to which no other is preferred."""
    better: dict[int, set[int]] = {number: set() for number in range(responses)}
    for above, below in edges:
        better[below].add(above)
    levels: dict[int, int] = {}
    try:
        for number in TopologicalSorter(better).static_order():
            levels[number] = 1 + max((levels[above] for above in better[number]), default=-1)
    except CycleError as error:
        raise InvalidRecord("preference_graph", f"no cycle, but there is one through responses {error.args[1]}") from None
    return tuple(levels[number] for number in range(responses))


IF_REWARD_BENCH = IFRewardBench()
