"""PPE, Preference Proxy Evaluations (Frick et al. 2025, arXiv 2410.14872): human votes, and 32 samples of known correctness."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polar_rm.evaluation.best_of import area_under_roc, best_of_k
from polar_rm.evaluation.suites.base import Figure, Judged, References, SuiteResult
from polar_rm.evaluation.suites.files import Row, find_suite_files, read_suite
from polar_rm.evaluation.suites.tally import Tally, best_alone, checked, coverage_notes, mean_of, tie_notes, tied_pairs
from polar_rm.records import Comparison, InvalidRecord
from polar_rm.records.values import is_integer

HUMAN = "human preference"
CORRECTNESS = "correctness"
BENCHMARKS = {"mmlu-pro": 512, "math": 512, "gpqa": 512, "ifeval": 512, "mbpp-plus": 507}
"""Benchmark of known correctness -> the number of its rows; a row is a question with 32 samples of one model."""

SAMPLES = 32
SIZES = (1, 2, 4, 8, 16, 32)
"""The values of k of the best-of-k figures."""

_COLUMNS = {
    "options": "mmlu-pro",
    "solution": "math",
    "correct_choice": "gpqa",
    "instruction_id_list": "ifeval",
    "test_list": "mbpp-plus",
}
_FLAGS = {
    "hard_prompt": "hard prompts",
    "easy_prompt": "easy prompts",
    "if_prompt": "instructions",
    "math_prompt": "mathematics",
    "is_code": "code",
}
_WINNERS = {"model_a": (0, 1), "model_b": (1, 0), "tie": None, "tie (bothbad)": None}


@dataclass(frozen=True, slots=True)
class PPE:
    """Rows of ``lmarena-ai/PPE-*``: the votes, one of the five benchmarks, or a folder of several."""

    name: str = "ppe"
    title: str = "PPE"
    source: str = "https://huggingface.co/lmarena-ai (PPE-Human-Preference-V1 and PPE-*-Best-of-K)"
    licence: str = "prompts CC-BY-4.0, answers by their models' terms"
    rule: str = (
        "Human preference: the share of votes, without ties, whose winner scores strictly higher. Correctness: of each "
        "benchmark's sampled pairs the share whose right sample scores strictly higher, averaged over the five. Also "
        "reported: best of k: expected correctness of the top-scored of k samples, and the area under the ROC curve within a "
        "question."
    )
    references: References = "given"

    def read(self, path: Path) -> Iterator[Comparison]:
        """A pair for each vote, and a comparison for each question, with its 32 samples, right ones at rank 0, and the sampled
        pairs.

        References are the right option (MMLU-Pro, GPQA), the solution (MATH) or the program (MBPP); votes and IFEval have none.
        It raises the errors of :meth:`Suite.read`.
        """
        files = find_suite_files(path, (".parquet", ".jsonl", ".arrow"), lambda _: True, "Parquet files of PPE")
        return read_suite(files, self._comparison, key=("subset", "id"), id_field="question_id", passed_over="the vote was a tie")

    def _comparison(self, row: Row) -> Comparison | None:
        if "winner" in row.raw:
            return self._vote(row)
        benchmark = next((name for column, name in _COLUMNS.items() if column in row.raw), None)
        if benchmark is None:
            raise InvalidRecord("", f"a row of PPE: with winner, or one of {', '.join(_COLUMNS)}")
        return self._samples(row, benchmark)

    def _vote(self, row: Row) -> Comparison | None:
        ranks = _WINNERS[row.one_of("winner", tuple(_WINNERS))]
        answers = row.take.string("response_1"), row.take.string("response_2")
        groups = [title for flag, title in _FLAGS.items() if row.raw.get(flag) is True]
        if isinstance(language := row.raw.get("language"), str):
            groups.append("English" if language == "English" else "other languages")
        metadata = {"suite": self.name, "id": row.identity("question_id"), "subset": HUMAN, "groups": groups}
        prompt = row.prompt("prompt")
        return None if ranks is None else Comparison(prompt, None, answers, ranks, metadata=metadata)

    def _samples(self, row: Row, benchmark: str) -> Comparison:
        answers = tuple(row.take.string(f"response_{i}") for i in range(1, SAMPLES + 1))
        right = row.take.values("scores", f"{SAMPLES} booleans, one a response")
        if len(right) != SAMPLES or not all(isinstance(value, bool) for value in right):
            raise InvalidRecord("scores", f"{SAMPLES} booleans, one a response")
        if len(set(right)) == 1:
            raise InvalidRecord("scores", "a right and a wrong response at least: without them there is nothing to compare")
        pairs = [_pair(pair, right) for pair in row.take.values("sampled_conflict_pairs", "a list of at least one pair", 1)]
        metadata = {
            "suite": self.name,
            "id": f"{row.identity('question_id')}/{row.take.string('model_name')}",
            "subset": benchmark,
            "pairs": pairs,
        }
        ranks = tuple(0 if value else 1 for value in right)
        return Comparison(row.prompt("prompt"), _reference(row, benchmark), answers, ranks, metadata=metadata)

    def measure(self, judged: Iterable[Judged]) -> SuiteResult:
        """``human preference`` and ``correctness`` (the first existing one is the headline), their parts, and figures of each
        benchmark: the curve (``math, best of 8``), its ``max``, its ``loss`` against an oracle and the ``auc``.

        See :meth:`Suite.measure`.
        """
        tally, ties = Tally(), 0
        for item in checked(judged, self.name):
            if item.comparison.metadata["subset"] == HUMAN:
                ties += tied_pairs(item)
                for name in (HUMAN, *(f"{HUMAN}, {group}" for group in item.comparison.metadata["groups"])):
                    tally.add(name, best_alone(item), item.comparison)
            else:
                ties += _add_samples(tally, item)
        present = [name for name in BENCHMARKS if tally.count(name)]
        figures = tally.figures([name for name in tally.names() if name.startswith(HUMAN)])
        if present:
            figures += _benchmark_figures(tally, present)
        counts = {name: tally.count(f"{name}, auc") for name in present}
        notes = coverage_notes(counts, BENCHMARKS, CORRECTNESS, "benchmarks") if present else [f"there is no {CORRECTNESS} set"]
        notes += [] if tally.count(HUMAN) else [f"there are no votes: no {HUMAN!r}"]
        return SuiteResult(tuple(figures), ties, (*notes, *tie_notes(ties, "a tie is wrong")))


def _pair(pair: Any, right: Sequence[bool]) -> tuple[int, int]:
    """A sampled pair of indices as (right sample, wrong sample)."""
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(is_integer(i) and 0 <= i < len(right) for i in pair):
        raise InvalidRecord("sampled_conflict_pairs", f"pairs of indices from 0 to {len(right) - 1}")
    first, second = pair
    if right[first] == right[second]:
        raise InvalidRecord("sampled_conflict_pairs", f"pairs of a right and a wrong response, not {first} and {second}")
    return (first, second) if right[first] else (second, first)


def _reference(row: Row, benchmark: str) -> str | None:
    match benchmark:
        case "mmlu-pro":
            options, index = row.take.strings("options"), row.take.integer("answer_index")
            if not 0 <= index < len(options):
                raise InvalidRecord("answer_index", f"the index of one of {len(options)} options, not {index}")
            return f"{row.take.string('answer')}: {options[index]}"
        case "math":
            return row.take.string("solution")
        case "gpqa":
            return row.take.string("correct_choice")
        case "mbpp-plus":
            return row.take.string("code")
    return None


def _add_samples(tally: Tally, judged: Judged) -> int:
    """Add the outcomes of one question; returns the number of exact ties among its sampled pairs."""
    comparison, scores = judged.comparison, judged.scores
    name, pairs = comparison.metadata["subset"], comparison.metadata["pairs"]
    for better, worse in pairs:
        tally.add(name, float(scores[better] > scores[worse]), comparison)
    right = [rank == 0 for rank in comparison.ranks]
    sizes = range(1, len(right) + 1)
    picked, best = best_of_k(scores, right, sizes), best_of_k(right, right, sizes)
    for k, value in zip(sizes, picked.tolist(), strict=True):
        tally.add(f"{name}, best of {k}", value, comparison)
    tally.add(f"{name}, loss", float((best - picked).mean()), comparison)
    tally.add(f"{name}, auc", area_under_roc(scores, right), comparison)
    return sum(scores[better] == scores[worse] for better, worse in pairs)


def _benchmark_figures(tally: Tally, present: Sequence[str]) -> list[Figure]:
    """``correctness``, the accuracy of each benchmark, and the same for the points and the summaries of the curves."""
    figures = [mean_of(CORRECTNESS, tally.figures(present)), *tally.figures(present)]
    parts: Mapping[str, list[Figure]] = {
        **{f"best of {k}": tally.figures(f"{name}, best of {k}" for name in present) for k in SIZES},
        "max": [_peak(tally, name) for name in present],
        "loss": tally.figures(f"{name}, loss" for name in present),
        "auc": tally.figures(f"{name}, auc" for name in present),
    }
    for title, part in parts.items():
        figures += [mean_of(f"{CORRECTNESS}, {title}", part), *part]
    return figures


def _peak(tally: Tally, name: str) -> Figure:
    """The maximum of a benchmark's curve. If it is before the end, more samples lowered the value."""
    best = max((tally.figure(f"{name}, best of {k}") for k in range(1, SAMPLES + 1)), key=lambda figure: figure.value)
    return Figure(f"{name}, max", best.value, best.n, None, None)


PPE_BENCH = PPE()
