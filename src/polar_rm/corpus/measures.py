"""What all reports of corpora measure: the accuracy of trivial scorers on a sample, lengths, and what was cleaned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from polar_rm.corpus.counts import Example, length_of
from polar_rm.corpus.job import Job
from polar_rm.corpus.splits import SPLITS
from polar_rm.evaluation.contenders.baselines import BASELINES, make_baselines
from polar_rm.evaluation.groups import NO_GROUP
from polar_rm.evaluation.pairs import score_pairs
from polar_rm.evaluation.statistics import bootstrap_intervals, listed
from polar_rm.records import Comparison, to_comparison


class Sample:
    """The comparisons with the smallest keys: a sample that depends neither on the order nor on the number of buckets."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._chosen: list[tuple[int, int, str, int]] = []  # mixed key, bucket, split, row of the shard

    def add(self, number: int, rows: dict[str, list[Any]]) -> None:
        """Add the comparisons of a bucket to the candidates of the sample. rows: column -> values of its ledger."""
        starts = {split: rows["split"].index(split) for split in set(rows["split"])}
        # Keys are mixed again: caps keep the smallest keys, so otherwise the sample would favour capped policies.
        candidates = [
            (key * 0x9E3779B97F4A7C15 % 2**64, number, split, index - starts[split])
            for index, (key, split) in enumerate(zip(rows["key"], rows["split"], strict=True))
        ]
        self._chosen = sorted(self._chosen + candidates)
        if any(split == SPLITS[0] for _, _, split, _ in self._chosen):
            self._chosen = [each for each in self._chosen if each[2] == SPLITS[0]]
        del self._chosen[self._job.config.report.pairs :]

    def comparisons(self) -> Iterator[tuple[Comparison, int]]:
        """Every chosen comparison with its key, which also chooses one of its pairs, see :func:`one_pair`."""
        by_shard: dict[tuple[int, str], dict[int, int]] = {}
        for key, number, split, row in self._chosen:
            by_shard.setdefault((number, split), {})[row] = key
        for (number, split), keys in sorted(by_shard.items()):
            shard = pq.read_table(self._job.config.output / split / f"{number:05d}.parquet")
            for index, row in zip(sorted(keys), shard.take(sorted(keys)).to_pylist(), strict=True):
                yield to_comparison(row, is_cell=True), keys[index]


def baseline_measures(pairs: list[Comparison]) -> dict[str, Any]:
    """Accuracy of trivial scorers, with ties counted half and 95% intervals by bootstrap over prompts."""
    fitted = make_baselines(BASELINES)
    stream: Iterator[Comparison] = iter(pairs)
    for baseline in fitted.values():
        stream = baseline.fit(stream)
    for _ in stream:
        pass
    scores = score_pairs(fitted, pairs, by="distance")

    def measured(rows: Any) -> dict[str, Any]:
        correct = np.column_stack([scores.correct(name)[rows] for name in fitted])
        intervals = bootstrap_intervals(correct, scores.pairs.prompts[rows])
        return {
            name: {
                "accuracy": float(correct[:, index].mean()),
                "ci95": listed(intervals[index]),
                "pairs": len(correct),
            }
            for index, name in enumerate(fitted)
        }

    names = enumerate(scores.pairs.group_names)
    groups = {name: np.flatnonzero(scores.pairs.groups == code) for code, name in names if name != NO_GROUP}
    by_distance = {name: measured(rows) for name, rows in sorted(groups.items())}
    return {"overall": measured(np.arange(len(pairs))), "by_distance": by_distance}


def one_pair(comparison: Comparison, key: int) -> tuple[int, int]:
    """The indices of the better and the worse candidate of one pair, chosen by the key."""
    pairs = comparison.pairs()
    return pairs[key % len(pairs)]


def quantiles(lengths: dict[str, int]) -> list[float] | None:
    """The 5th, 25th, 50th, 75th and 95th percentile of a histogram, in characters; None for an empty histogram."""
    bins = sorted((int(number), count) for number, count in lengths.items())
    if not bins:
        return None
    numbers, cumulative = [number for number, _ in bins], np.cumsum([count for _, count in bins])
    indices = np.searchsorted(cumulative, np.array([0.05, 0.25, 0.5, 0.75, 0.95]) * cumulative[-1])
    return [length_of(numbers[index]) for index in indices]


def cleaning_numbers(counts: dict[str, int], examples: dict[str, list[Example]]) -> dict[str, Any]:
    """For each rule the number of changed texts, the characters that it removed, and examples."""
    rules = sorted({name.partition(".")[0] for name in counts})
    return {
        rule: {
            "texts": counts[f"{rule}.texts"],
            "characters": counts[f"{rule}.characters"],
            "examples": [{key: value for key, value in each.items() if key != "key"} for each in examples.get(rule, [])],
        }
        for rule in rules
    }


def cleaning_lines(cleaning: dict[str, Any]) -> list[str]:
    """A line for the terminal about every rule."""
    return [f"cleaned by {rule}: {numbers['texts']:,} texts" for rule, numbers in cleaning.items()]


def split_lines(splits: dict[str, Any]) -> list[str]:
    """A line for the terminal about every split."""
    lines = []
    for split, numbers in splits.items():
        short = f" ({numbers['short']:,} with fewer negatives than requested)" if numbers["short"] else ""
        lines.append(f"{split}: {numbers['comparisons']:,} comparisons{short}, {numbers['pairs']:,} pairs")
    return lines
