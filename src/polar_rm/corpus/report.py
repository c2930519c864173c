"""The report of a corpus, as JSON and as a self-contained HTML page: its contents, and how well trivial scorers do on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polar_rm.common.files import write_file
from polar_rm.common.manifests import DataFile
from polar_rm.corpus.counts import TEXT_COUNTS, Counts, Example
from polar_rm.corpus.job import Job
from polar_rm.corpus.measures import Sample, baseline_measures, cleaning_lines, cleaning_numbers, one_pair, quantiles, split_lines
from polar_rm.corpus.splits import SPLITS
from polar_rm.corpus.text_report import text_summary, write_text_html
from polar_rm.records import Comparison
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
    sample = Sample(job)
    for number, ledger in ledgers:
        rows = ledger.to_pydict()
        for index, split in enumerate(rows["split"]):
            policy, positives, negatives = (rows[name][index] for name in ("policy", "positives", "negatives"))
            short = len(negatives) < job.config.of_policies.negatives
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
        "baselines": baseline_measures([_pair(job, *each) for each in sample.comparisons()]),
        "cleaning": cleaning_numbers(counts.get("cleaning", {}), examples),
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
        "length_quantiles": quantiles(counts.get(f"lengths:{policy}", {})),
        "positive_pairs": sum(pairs for (better, _), pairs in pairs_by_policies.items() if better == code),
        "negative_pairs": sum(pairs for (_, worse), pairs in pairs_by_policies.items() if worse == code),
    }


def _pair(job: Job, comparison: Comparison, key: int) -> Comparison:
    """One positive and one negative of a comparison, with their distance in the metadata."""
    chosen = one_pair(comparison, key)
    authors = comparison.metadata["candidate_policies"]
    distance = job.lineage.distance(*(authors[index] for index in chosen))
    metadata = {**comparison.metadata, "distance": None if distance == "unknown" else distance}
    texts = tuple(comparison.candidates[index] for index in chosen)
    return Comparison(comparison.prompt, comparison.reference, texts, (0, 1), comparison.wrapper, metadata)


# ----------------------------------------------------------------------------------------------------------------- page


def write_html(path: Path, report: dict[str, Any]) -> None:
    """Write the report as an HTML page.

    Raises:
        PolarError: the file can't be written.
    """
    if report["policies"] is None:
        write_text_html(path, report)
    else:
        write_file(path, render_page("polar_rm.corpus", "report.html.j2", report, _plots(report)))


def summary(report: dict[str, Any]) -> list[str]:
    """The report in a few lines, for the terminal."""
    if report["policies"] is None:
        return text_summary(report)
    rows, cleaning = report["counts"]["trajectories"], report["cleaning"]
    left_out = ", ".join(f"{rows.get(name, 0):,} {name}" for name in ("refused", "empty", "duplicates", "unselected"))
    lines = [f"{rows['read']:,} trajectories of {len(report['policies'])} policies read; left out: {left_out}"]
    lines += cleaning_lines(cleaning)
    if contaminated := report["counts"]["prompts"].get("contaminated"):
        lines.append(f"{contaminated:,} prompts are in the evaluation files and were dropped, see contaminated.jsonl")
    lines += split_lines(report["splits"])
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
