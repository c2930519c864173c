"""The report of a corpus of continuations. There are no policies and no references, so it measures what their place takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from polar_rm.common.files import write_file
from polar_rm.common.manifests import DataFile
from polar_rm.corpus.counts import TEXT_COUNTS, Counts, Example
from polar_rm.corpus.job import Job
from polar_rm.corpus.measures import (
    Sample,
    baseline_measures,
    cleaning_lines,
    cleaning_numbers,
    one_pair,
    quantiles,
    split_lines,
)
from polar_rm.corpus.splits import SPLITS
from polar_rm.corpus.text_build import REASONS
from polar_rm.records import Comparison
from polar_rm.reporting import words
from polar_rm.reporting.html import render_page
from polar_rm.reporting.plots import plot_accuracy, plot_lengths

_MAX_SOURCES = 40  # in the report
_SIDES = ("beginning", "continuation")
_LEFT_OUT = ("refused", *REASONS, "unselected")


def make_text_report(
    job: Job,
    counts: Counts,
    examples: dict[str, list[Example]],
    ledgers: Iterable[tuple[int, pa.Table]],
    shards: list[dict[str, DataFile]],
) -> dict[str, Any]:
    """Compute all numbers of the report. ledgers: (number, ledger) of every bucket. The shards must be in the output folder."""
    splits: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    sample = Sample(job)
    for number, ledger in ledgers:
        rows = ledger.to_pydict()
        for index, split in enumerate(rows["split"]):
            negatives = rows["negatives"][index]
            short = negatives < job.config.of_continuations.negatives
            sizes = {name: rows[name][index] for name in ("characters", "words", "tokens")}
            splits[split].update(comparisons=1, short=short, pairs=negatives, **sizes)
        sample.add(number, rows)
    for each in shards:
        for split in each:
            splits[split]["shards"] += 1
    sources = sorted(counts.get("sources", {}).items(), key=lambda item: (-item[1], item[0]))
    cleaning = cleaning_numbers(counts.get("cleaning", {}), examples)
    for numbers in cleaning.values():
        numbers["examples"] = [{"source": each.pop("policy"), **each} for each in numbers["examples"]]
    sides = {
        name: {
            **{key: counts.get(f"policy:{name}", {}).get(key, 0) for key in TEXT_COUNTS[1:4]},
            "length_quantiles": quantiles(counts.get(f"lengths:{name}", {})),
        }
        for name in _SIDES
    }
    return {
        "settings": job.config.model_dump(mode="json"),
        "counts": {"texts": dict.fromkeys((*_LEFT_OUT, "cut", "texts"), 0) | counts["texts"]},
        "splits": {split: dict(numbers) for split, numbers in splits.items() if numbers},
        "policies": None,
        "sources": {"number": len(sources), "texts": dict(sources[:_MAX_SOURCES])},
        "lengths": sides,
        "baselines": baseline_measures([_pair(*each) for each in sample.comparisons()]),
        "cleaning": cleaning,
    }


def _pair(comparison: Comparison, key: int) -> Comparison:
    """The true continuation and one negative; the beginning takes the place of the reference, for trivial scorers."""
    texts = tuple(comparison.candidates[index] for index in one_pair(comparison, key))
    return replace(comparison, reference=comparison.prompt, candidates=texts, ranks=(0, 1))


def write_text_html(path: Path, report: dict[str, Any]) -> None:
    """Write the report as an HTML page.

    Raises:
        PolarError: the file can't be written.
    """
    lengths = {name: sides["length_quantiles"] for name, sides in report["lengths"].items() if sides["length_quantiles"]}
    plots = {"lengths": plot_lengths(lengths), "baselines": plot_accuracy({"all pairs": report["baselines"]["overall"]})}
    write_file(path, render_page("polar_rm.corpus", "text_report.html.j2", report, plots))


def text_summary(report: dict[str, Any]) -> list[str]:
    """The report in a few lines, for the terminal."""
    texts = report["counts"]["texts"]
    left_out = ", ".join(f"{texts[name]:,} {name.replace('_', ' ')}" for name in _LEFT_OUT if texts[name] or name == "refused")
    lines = [f"{texts['read']:,} texts read, {texts['texts'] - texts['alone']:,} with a comparison; left out: {left_out}"]
    lines += cleaning_lines(report["cleaning"])
    if texts["contaminated"] or texts["near_held_out"]:
        lines.append("texts near evaluation prompts or held-out texts are listed in contaminated.jsonl")
    lines += split_lines(report["splits"])
    measures = ", ".join(f"{name} {words.measure(value)}" for name, value in report["baselines"]["overall"].items())
    lines.append(f"baselines, which compare a continuation with the beginning: {measures}")
    return lines
