"""The page of headline results, made from the JSON files beside the benchmarks.

    python benchmarks/tables.py            # writes docs/results/index.md
    python benchmarks/tables.py --check    # exit code 1 if the committed page is another one

A number that has no row in a JSON file is not here but in the log. Results of models of one or two layers are no headlines.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/results/index.md"
HEAD = """# Results

<!-- Made by `python benchmarks/tables.py` from benchmarks/results/*.json; edit those, not this page. -->

Every row is a row of a JSON file in `benchmarks/results/`. **The models measured here are small**, from four layers to a billion
random parameters: the numbers say what the code does, not what a large POLAR model can do. The [log](log.md) has all other
measurements, with what was tried and did not work; [decisions](../decisions.md) has the reasons.
"""


LIMITS = """## Limits

* On real preferences our small models lose to TF-IDF and to a stock classifier (first table).
* Three claims of the paper were tried over three seeds with models of two layers only, which are all at chance, below length and
  TF-IDF ([proof](../proof.md#results-at-the-small-size)). It says nothing for or against the claims. The full size was not run.
* No run here had more than one GPU. Times of several GPUs in the documents are arithmetic.
* What was measured before results were written to JSON is copied from the log into `headlines.json`, with the commit that logged
  it.
* On a CPU, candidates that arrive one by one are answered slower than by vLLM ([serving](log.md#serving-under-load)).
"""


@dataclass(frozen=True)
class Row:
    """A claim with its value and where it was measured."""

    claim: str
    value: str
    interval: str
    origin: dict[str, Any]


@dataclass
class Tables:
    """Makes tables; commands are numbered in the order in which they first occur."""

    commands: list[str] = field(default_factory=list)

    def table(self, title: str, rows: list[Row]) -> str:
        """A section with one row for each claim."""
        lines = [f"## {title}", "", "| claim | value | 95% interval | machine | date | command |", "|---|---|---|---|---|---|"]
        for row in rows:
            command = row.origin["command"]
            if command not in self.commands:
                self.commands.append(command)
            number = self.commands.index(command) + 1
            lines.append(
                f"| {row.claim} | {row.value} | {row.interval} | {machine(row.origin)} | {row.origin['date']} | {number} |"
            )
        return "\n".join(lines) + "\n"

    def list_commands(self) -> str:
        """The section of commands."""
        lines = [f"{number}. `{command}`" for number, command in enumerate(self.commands, 1)]
        return "## Commands\n\n" + "\n".join(lines) + "\n"


def machine(origin: dict[str, Any]) -> str:
    """The machine of a row in few words."""
    if "card" in origin:
        return str(origin["card"])
    told = origin["machine"]
    if isinstance(told, str):
        return told
    threads = f"{told['threads']} thread" + ("s" if told["threads"] != 1 else "")
    return f"{told['system'].split('-')[0]} {'x86_64' if 'x86_64' in told['system'] else ''}, {told['accelerator'] or threads}"


def load(name: str) -> Any:
    """The content of a results file."""
    return json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text(encoding="utf-8"))


def between(interval: list[float], *, digits: int = 3, signed: bool = False) -> str:
    """An interval as text."""
    low, high = (f"{end:{'+' if signed else ''}.{digits}f}" for end in interval)
    return f"{low} to {high}"


def quality() -> Iterator[Row]:
    """How good: contenders, references, calibration, best of n, the audit."""
    yield from _contenders(load("contenders"))
    yield from _headlines(speed=False)
    data = load("references")
    for count, combine in ((2, "mean"), (4, "mean")):
        [row] = [
            each
            for each in data["rows"]
            if (each["task"], each["contender"], each["references"], each["combine"]) == ("policy", "pretrained", count, combine)
        ]
        claim = f"{count} references in place of one, pre-trained model of six layers, {row['n']} pairs: accuracy gained"
        yield Row(claim, f"{row['gain']:+.3f}", between(row["gain_ci95"], signed=True), data)
    yield from _calibration()
    for row in load("bestofn"):
        if row["reference"] == "empty":
            claim = f"best of {row['max_n']} by {row['contender']}, {row['n_prompts']} prompts: gold above a random pick's"
            yield Row(claim, f"{row['gain']['value']:+.3f}", between(row["gain"]["ci95"], signed=True), row)
    yield from _audit()


def _headlines(*, speed: bool) -> Iterator[Row]:
    """The rows that were copied from the log: ratios of speed, or accuracies."""
    for row in load("headlines"):
        interval = between(row["ci95"]) if "ci95" in row else ""
        if not speed and "accurac" in row["figure"]:
            yield Row(f"{row['what']}: {row['figure']}", f"{row['value']:.3f}", interval, row)
        elif speed and " over " in row["figure"]:
            value = f"{row['value']:g}"
            if "high" in row:
                spread = f"{row['low']:g} to {row['high']:g}"
                value = spread if row["value"] == row["low"] else f"{value} ({spread})"
            yield Row(f"{row['what']}, {row['precision']}: {row['figure']}", value, "", row)


def _contenders(data: dict[str, Any]) -> Iterator[Row]:
    names = {
        "finetuned": "four layers fine-tuned on 3,006 pairs, without pre-training",
        "classifier": "the same layers as TRL's classifier",
        "minilm": "MiniLM's cosine with the reference",
        "tfidf": "TF-IDF's cosine with the reference",
        "length": "likeness in length to the reference",
    }
    for key, name in names.items():
        for row in data["rows"]:
            if (row["data"], row.get("contender"), row["figure"]) == ("test-1000.jsonl", key, "overall"):
                yield Row(f"accuracy on 1,000 held-out real pairs: {name}", f"{row['accuracy']:.3f}", between(row["ci95"]), data)


def _calibration() -> Iterator[Row]:
    for row in load("calibration"):
        layers = re.search(r"model\.n_layers=(\d+)", row["command"])
        if layers is None or int(layers[1]) <= 2:
            continue
        test, name = row["test"], f"{layers[1]} layers, {row['test']['n_pairs']:,} test pairs"
        chance = f"of exact probabilities by chance {test['ece_of_exact_probabilities']:.4f}"
        yield Row(f"calibration error before `polar calibrate`, {name}", f"{test['ece_before']:.4f} ({chance})", "", row)
        yield Row("the same after it", f"{test['ece_after']:.4f}", "", row)
        [kept] = [each for each in test["abstention"] if each["coverage"] == 0.8]
        yield Row(
            "accuracy gained by abstaining on the least certain fifth", f"{kept['gain']:+.3f}", between(kept["gain_ci95"]), row
        )


def _audit() -> Iterator[Row]:
    rows = [row for row in load("audit") if row["prompts"] == 200]
    for row in rows:
        if row["kind"] == "planted":
            found, probe = row["found"], row["probe"]
            claim = (
                f"`polar audit` finds a planted shortcut ({row['scorer']}), by its probe `{probe}`: share of {found['n']} seeds"
            )
            yield Row(claim, f"{found['value']:.2f}", between(found["ci95"], digits=2), row)
    [honest] = [row for row in rows if row["scorer"] == "all honest"]
    yield Row(
        "its false alarms among all findings, five honest scorers", f"{honest['false_alarms']} of {honest['asked']:,}", "", honest
    )


def _share(row: dict[str, Any]) -> str:
    return f"{row['false_alarms']} of {row['asked']:,}"


def speed() -> Iterator[Row]:
    """How fast: training steps on a GPU by card, selection, evaluation."""
    rows = [row for row in load("gpu_step") if row["what"] in ("two passes, compiled merge", "two passes, as merged")]
    newest = {(row["card"], row["k"]): row for row in rows}
    for (_, k), row in sorted(newest.items()):
        claim = f"training, 1B random parameters, K = {k}, compiled: tokens/s (utilisation)"
        yield Row(claim, f"{row['tokens_per_second']:,.0f} ({row['mfu']:.2f})", "", row)
    yield from _headlines(speed=True)
    yield from _serving()
    yield from _encoding()
    data = load("turns")
    for row in data["rows"]:
        claim = (
            f"a reward after each of {row['turns']} turns, {row['tokens']:,} tokens, six layers: one pass over every turn alone"
        )
        yield Row(claim, f"{row['cpu_ratio']:.2f}", "", data)
    for row in load("first_minute"):
        claim = f"seconds (CPU seconds) from an empty environment to the first rewards, by {row['installer']}, torch for CPUs"
        yield Row(claim, f"{row['seconds']:.0f} ({row['cpu_s']:.0f})", "", row)
    data = load("select")
    for row in data["rows"]:
        claim = f"`polar select`, {row['rows']:,} rows, {row['case']}: rows/s (peak memory)"
        yield Row(claim, f"{row['rows_per_s']:,.0f} ({row['peak_mib']:,.0f} MiB)", "", data)
    for row in load("evaluate"):
        name = f"`polar evaluate`{row['what'].removeprefix('evaluate')}"
        claim = f"time of {name} over that of scoring the same {row['pairs']} pairs alone (range)"
        yield Row(claim, f"{row['cost']:.2f} ({row['cost_low']:.2f} to {row['cost_high']:.2f})", "", row)


def _serving() -> Iterator[Row]:
    for row in load("serving"):
        size, whole = row["items_per_request"], row["candidates"]
        pieces = "whole" if size == whole else f"in pieces of {size}"
        claim = (
            f"`polar serve` over vLLM with prefix cache, {row['layers']} layers, groups of {whole} {pieces}: items/s (CPU time)"
        )
        yield Row(claim, f"{row['ratio']:.2f} ({row['cpu_ratio']:.2f})", "", row)


def _encoding() -> Iterator[Row]:
    for row in load("encoding"):
        if row["what"] == "opening":
            yield Row(
                f"seconds to open an encoded corpus of {row['comparisons']:,} comparisons", f"{row['seconds']:.2f}", "", row
            )
        elif row["what"] == "encoding":
            claim = f"`polar encode`, {row['workers']} worker{'s' * (row['workers'] > 1)}: tokens/s (over the tokenizer alone)"
            measured = {**row, "machine": row["machine"] | {"threads": row["workers"]}}  # a worker is one thread
            yield Row(claim, f"{row['tokens_per_second']:,.0f} ({row['speed_of_tokenizer_alone']:.2f})", "", measured)


DEPTH = """CPU seconds of the peer over ours, the median of the rounds: float32, one thread, SmolLM2-135M's first layers, sides
in turn on a shared machine. *Packed*: the same sequences in rows without padding and without sharing, in our own loop. *Plain*:
transformers, one sequence at a time. *TRL*: its `RewardTrainer` on the pairs of the best candidate with each other one, in
batches of one. The share is that of the rate which the core reaches in the model's matrix products alone
(GFLOP/s), with the FLOPs that a side has to do. Two layers flatter us, because the last layer is computed at score positions
only; thirty are the complete model.
"""


def by_depth() -> str:
    """The table of training and scoring by depth."""
    lines = ["| | layers | K | fewer tokens | over packed | over plain | over TRL | share: ours, packed | GFLOP/s | rounds |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    rows = sorted(load("depth"), key=lambda row: (row["work"], -row["layers"], row["candidates"]))
    for row in rows:
        ratios = row["cpu_ratio"]
        plain, trl = (f"{ratios[peer]:.2f}" if peer in ratios else "" for peer in ("plain", "trl"))
        shares = ", ".join(f"{row['share'][name]:.2f}" for name in ("ours", "packed"))
        lines.append(
            f"| {row['work']} | {row['layers']} | {row['candidates']} | {row['counted']:.2f} | {ratios['packed']:.2f} | {plain} "
            f"| {trl} | {shares} | {row['product_gflops']:.0f} | {row['rounds']} |"
        )
    commands = dict.fromkeys(row["command"] for row in rows)
    return "\n".join(["## Training and scoring by depth", "", DEPTH, *lines, "", *(f"* `{command}`" for command in commands), ""])


def reliability() -> Iterator[Row]:
    """What was broken on purpose."""
    for row in load("kills"):
        differ, kills = row["runs that differ from the uninterrupted one"], row["kills"]
        yield Row(
            f"runs with other weights than the uninterrupted one, after {kills} kills", f"{differ} of {row['runs']}", "", row
        )
        yield Row("files left behind, damaged checkpoints met", f"{row['leftovers']}, {row['told of damage']}", "", row)


def page() -> str:
    """The text of the page."""
    tables = Tables()
    sections = [
        tables.table("Quality", list(quality())),
        tables.table("Speed", list(speed())),
        by_depth(),
        tables.table("Reliability", list(reliability())),
    ]
    return "\n".join([HEAD, LIMITS, *sections, tables.list_commands()])


def main() -> None:
    """Write the page, or compare it with the committed one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    if not arguments.check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE.relative_to(ROOT)} is not what benchmarks/results give: run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
