"""The report of a corpus, as JSON and as a self-contained HTML page: its contents, and how well trivial scorers do on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polar_rm.common.files import write_file
from polar_rm.common.manifests import DataFile
from polar_rm.corpus.counts import TEXT_COUNTS, Counts, Example, length_of
from polar_rm.corpus.job import Job
from polar_rm.corpus.splits import SPLITS
from polar_rm.evaluation.contenders.baselines import BASELINES, make_baselines
from polar_rm.evaluation.groups import NO_GROUP
from polar_rm.evaluation.pairs import score_pairs
from polar_rm.evaluation.statistics import bootstrap_intervals
from polar_rm.records import Comparison, to_comparison
from polar_rm.reporting import words
from polar_rm.reporting.html import render_page
from polar_rm.reporting.plots import plot_accuracy, plot_lengths, plot_matrix

_MAX_POLICIES = 40  # in the heat map


def make_report(
    job: Job,
    counts: Counts,
    examples: dict[str, list[Example]],
    ledgers: Iterable[tuple[int, pa.Table]],
    shards: list[dict[str, DataFile]],
) -> dict[str, Any]:
    """Compute all numbers of the report. ledgers: (number, ledger) of every bucket. The shards must be in the output folder."""
    splits: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    pairs_by_policies: Counter[tuple[int, int]] = Counter()
    sample = _Sample(job)
    for number, ledger in ledgers:
        rows = ledger.to_pydict()
        for index, split in enumerate(rows["split"]):
            policy, positives, negatives = (rows[name][index] for name in ("policy", "positives", "negatives"))
            short = len(negatives) < job.config.pairing.negatives
            sizes = {name: rows[name][index] for name in ("characters", "words", "tokens")}
            splits[split].update(comparisons=1, short=short, pairs=positives * len(negatives), **sizes)
            pairs_by_policies.update({(policy, other): positives for other in negatives})
        sample.add(number, rows)
    for each in shards:
        for split in each:
            splits[split]["shards"] += 1
    policies = {policy: _policy(job, policy, counts, pairs_by_policies) for policy in job.policies}
    totals = {name: sum(numbers[name] for numbers in policies.values()) for name in TEXT_COUNTS}
    distances: Counter[str] = Counter()
    for (policy, other), pairs in pairs_by_policies.items():
        distances[job.lineage.distance(job.policies[policy], job.policies[other])] += pairs
    return {
        "settings": job.config.model_dump(mode="json"),
        "counts": {"trajectories": {**counts["trajectories"], **totals}, "prompts": counts["prompts"]},
        "splits": {split: dict(numbers) for split, numbers in splits.items() if numbers},
        "policies": policies,
        "pairs_by_distance": dict(sorted(distances.items())),
        "pairs_by_policies": [[policy, other, pairs] for (policy, other), pairs in sorted(pairs_by_policies.items())],
        "baselines": _baselines(list(sample.pairs())),
        "cleaning": _cleaning(counts.get("cleaning", {}), examples),
    }


def _policy(job: Job, policy: str, counts: Counts, pairs_by_policies: Counter[tuple[int, int]]) -> dict[str, Any]:
    """A policy's numbers. positive_pairs, negative_pairs: pairs in which its text is the better one, the worse one."""
    code = job.policies.index(policy)
    return {
        "family": job.lineage.families.get(policy),
        "model": job.lineage.models.get(policy),
        "licence": job.lineage.licences.get(policy),
        "held_out": policy in job.unseen,
        **dict.fromkeys(("empty", "cleaned", *TEXT_COUNTS), 0),
        **counts.get(f"policy:{policy}", {}),
        "length_quantiles": _quantiles(counts.get(f"lengths:{policy}", {})),
        "positive_pairs": sum(pairs for (better, _), pairs in pairs_by_policies.items() if better == code),
        "negative_pairs": sum(pairs for (_, worse), pairs in pairs_by_policies.items() if worse == code),
    }


def _quantiles(lengths: dict[str, int]) -> list[float] | None:
    """The 5th, 25th, 50th, 75th and 95th percentile of a histogram, in characters; None for an empty histogram."""
    bins = sorted((int(number), count) for number, count in lengths.items())
    if not bins:
        return None
    numbers, cumulative = [number for number, _ in bins], np.cumsum([count for _, count in bins])
    indices = np.searchsorted(cumulative, np.array([0.05, 0.25, 0.5, 0.75, 0.95]) * cumulative[-1])
    return [length_of(numbers[index]) for index in indices]


def _cleaning(counts: dict[str, int], examples: dict[str, list[Example]]) -> dict[str, Any]:
    rules = sorted({name.partition(".")[0] for name in counts})
    return {
        rule: {
            "texts": counts[f"{rule}.texts"],
            "characters": counts[f"{rule}.characters"],
            "examples": [{key: value for key, value in each.items() if key != "key"} for each in examples.get(rule, [])],
        }
        for rule in rules
    }


# ------------------------------------------------------------------------------------------------------------ baselines


class _Sample:
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

    def pairs(self) -> Iterator[Comparison]:
        """One positive and one negative of every chosen comparison, with their distance in the metadata."""
        by_shard: dict[tuple[int, str], dict[int, int]] = {}
        for key, number, split, row in self._chosen:
            by_shard.setdefault((number, split), {})[row] = key
        for (number, split), keys in sorted(by_shard.items()):
            shard = pq.read_table(self._job.config.output / split / f"{number:05d}.parquet")
            for index, row in zip(sorted(keys), shard.take(sorted(keys)).to_pylist(), strict=True):
                yield self._pair(to_comparison(row, is_cell=True), keys[index])

    def _pair(self, comparison: Comparison, key: int) -> Comparison:
        pairs = comparison.pairs()
        chosen = pairs[key % len(pairs)]
        authors = comparison.metadata["candidate_policies"]
        distance = self._job.lineage.distance(*(authors[index] for index in chosen))
        metadata = {**comparison.metadata, "distance": None if distance == "unknown" else distance}
        texts = tuple(comparison.candidates[index] for index in chosen)
        return Comparison(comparison.prompt, comparison.reference, texts, (0, 1), comparison.wrapper, metadata)


def _baselines(pairs: list[Comparison]) -> dict[str, Any]:
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
                "ci95": intervals[index] and list(intervals[index] or ()),
                "pairs": len(correct),
            }
            for index, name in enumerate(fitted)
        }

    names = enumerate(scores.pairs.group_names)
    groups = {name: np.flatnonzero(scores.pairs.groups == code) for code, name in names if name != NO_GROUP}
    by_distance = {name: measured(rows) for name, rows in sorted(groups.items())}
    return {"overall": measured(np.arange(len(pairs))), "by_distance": by_distance}


# ----------------------------------------------------------------------------------------------------------------- page


def write_html(path: Path, report: dict[str, Any]) -> None:
    """Write the report as an HTML page.

    Raises:
        PolarError: the file can't be written.
    """
    write_file(path, render_page("polar_rm.corpus", "report.html.j2", report, _plots(report)))


def summary(report: dict[str, Any]) -> list[str]:
    """The report in a few lines, for the terminal."""
    rows, cleaning = report["counts"]["trajectories"], report["cleaning"]
    left_out = ", ".join(f"{rows.get(name, 0):,} {name}" for name in ("refused", "empty", "duplicates", "unselected"))
    lines = [f"{rows['read']:,} trajectories of {len(report['policies'])} policies read; left out: {left_out}"]
    lines += [f"cleaned by {rule}: {numbers['texts']:,} texts" for rule, numbers in cleaning.items()]
    if contaminated := report["counts"]["prompts"].get("contaminated"):
        lines.append(f"{contaminated:,} prompts are in the evaluation files and were dropped, see contaminated.jsonl")
    for split, numbers in report["splits"].items():
        short = f" ({numbers['short']:,} with fewer negatives than requested)" if numbers["short"] else ""
        lines.append(f"{split}: {numbers['comparisons']:,} comparisons{short}, {numbers['pairs']:,} pairs")
    for name, measures in {"all pairs": report["baselines"]["overall"], **report["baselines"]["by_distance"]}.items():
        lines.append(f"baselines on {name}: " + ", ".join(f"{key} {words.measure(value)}" for key, value in measures.items()))
    return lines


def _plots(report: dict[str, Any]) -> dict[str, str]:
    policies = sorted(report["policies"].items(), key=lambda item: (-item[1]["texts"], item[0]))
    lengths = {name: numbers["length_quantiles"] for name, numbers in policies if numbers["length_quantiles"]}
    names = list(report["policies"])
    shown = sorted(name for name, _ in policies[:_MAX_POLICIES])
    index = {names.index(name): number for number, name in enumerate(shown)}
    matrix = np.zeros((len(shown), len(shown)))
    for policy, other, pairs in report["pairs_by_policies"]:
        if policy in index and other in index:
            matrix[index[policy], index[other]] += pairs
    title = f"the {len(shown)} policies with most texts, of {len(names)}" if len(shown) < len(names) else ""
    baselines = {"all pairs": report["baselines"]["overall"], **report["baselines"]["by_distance"]}
    return {
        "lengths": plot_lengths(lengths),
        "matrix": plot_matrix(shown, matrix, x="policy of the negative", y="policy of the reference", title=title),
        "baselines": plot_accuracy(baselines),
    }
