"""The page of headline results, and tables of other pages, made from the JSON files beside the benchmarks.

    python benchmarks/tables.py            # writes docs/results/index.md, and the tables in README.md and docs/*.md
    python benchmarks/tables.py --check    # exit code 1 if a committed page is another one

Elsewhere a table stands between ``<!-- made by benchmarks/tables.py: NAME -->`` and ``<!-- end -->``; NAME is a function here.
A number that has no row in a JSON file is not here but in the log. Results of models of one or two layers are no headlines.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/results/index.md"
RESULTS = "benchmarks/results"
PROOF = f"{RESULTS}/proof/small"
MADE = re.compile(r"(<!-- made by benchmarks/tables\.py: (\w+) -->\n)(?:(?!<!--).)*(<!-- end -->)", re.DOTALL)
"""A made table in a page: its first mark, its name, its last mark."""
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
* On a CPU with AVX-512, groups that arrive in pieces are answered slower than by vLLM ([serving](log.md#serving-under-load)).
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
    return select(f"{RESULTS}/{name}.json")


@cache
def select(selection: str) -> Any:
    """What a selection names: a file of JSON or of JSON lines, by its path in the project, and steps into it.

    ``FILE#KEY`` takes what is under a key; of rows, what all that have the key have under it, in one list. ``FILE#FIELD=VALUE``
    keeps the rows with this value, written as text or as JSON; the rows are the file, or what is under its key ``rows``. Steps
    follow one another: ``FILE#layers=30#rounds=1#cpu_ratio``.

    Raises:
        ValueError: a step finds nothing.
    """
    before, _, step = selection.rpartition("#")
    if not before:
        text = (ROOT / selection).read_text(encoding="utf-8")
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return [json.loads(line) for line in text.splitlines()]
    content = select(before)
    key, equals, value = step.partition("=")
    of_dict = isinstance(content, dict)
    if of_dict and not equals:
        found = content.get(key, [])
    else:
        items = content.get("rows", []) if of_dict else content
        rows = [row for row in items if isinstance(row, dict) and key in row]
        if equals:
            found = [row for row in rows if value in (row[key], json.dumps(row[key]))]
        else:
            found = [each for row in rows for each in (row[key] if isinstance(row[key], list) else [row[key]])]
    if found == []:
        raise ValueError(f"{selection}: nothing has {step!r}")
    return found


def one(selection: str) -> Any:
    """The only row of a selection.

    Raises:
        ValueError: it has more rows, or none.
    """
    rows = select(selection)
    if len(rows) != 1:
        raise ValueError(f"{selection}: {len(rows)} rows, not one")
    return rows[0]


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


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    first, *others = (f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (head, *rows))
    return "\n".join([first, "|" + "---|" * (first.count("|") - 1), *others])


def with_interval(row: dict[str, Any], *, sign: str = "") -> str:
    """A value of three digits with its interval."""
    low, high = row["ci95"]
    return f"{row['value']:{sign}.3f} [{low:.3f}, {high:.3f}]"


def numbers() -> str:
    """The table of README.md."""

    def headline(what: str) -> dict[str, Any]:
        return one(f"{RESULTS}/headlines.json#what={what}")

    def depth(work: str, k: int) -> dict[str, Any]:
        return one(f"{RESULTS}/depth.json#work={work}#layers=30#candidates={k}")

    def value(row: dict[str, Any], digits: int) -> str:
        return f"{row['value']:.{digits}f}"

    def times(row: dict[str, Any], peer: str, unit: str) -> str:
        rounds = f"{row['rounds']} rounds" if row["rounds"] > 1 else "one round"
        return f"{row['cpu_ratio'][peer]:.2f} times the {unit} ({rounds})"

    def over(row: dict[str, Any], peer: str) -> str:
        return f"{row['cpu_ratio'][peer]:.2f} over"

    unseen = "policy discrimination, unseen prompts:"
    trained = headline(f"{unseen} pre-trained, 135M")
    policies = headline("policy discrimination, unseen policies and prompts: pre-trained, 135M")
    tuned = "preferences, 360 training pairs:"
    gained = headline(f"{tuned} with pre-training minus without")
    two, eight, scored = depth("training", 2), depth("training", 8), depth("scoring", 16)
    wide, wider = headline("training, K = 2, 1B random parameters"), headline("training, K = 8, 1B random parameters")
    core = "one CPU core, float32"
    rows = [
        (
            "[pre-training on real data](docs/results/log.md#policy-discrimination-on-real-data), 135M",
            "an H100, 5 minutes",
            f"accuracy {value(trained, 2)} on unseen prompts, {value(policies, 2)} on unseen policies",
            f"length {value(headline(f'{unseen} length'), 2)}, TF-IDF {value(headline(f'{unseen} TF-IDF'), 2)}",
        ),
        (
            "[fine-tuning on preferences](docs/results/log.md#does-it-help-with-preferences) after pre-training, six layers",
            core,
            f"accuracy {value(headline(f'{tuned} fine-tuned after pre-training'), 3)}, by {with_interval(gained)} higher",
            f"without pre-training {value(headline(f'{tuned} fine-tuned without pre-training'), 3)}; "
            f"TF-IDF {value(headline(f'{tuned} TF-IDF to the reference'), 3)}",
        ),
        (
            "[training](docs/results/index.md#training-and-scoring-by-depth), K = 2, thirty layers",
            core,
            times(two, "trl", "pairs/s"),
            f"TRL without padding; {over(two, 'packed')} packed rows without sharing, {over(two, 'plain')} plain transformers",
        ),
        (
            "the same, K = 8",
            core,
            times(eight, "trl", "pairs/s"),
            f"TRL without padding; {over(eight, 'packed')} packed rows without sharing",
        ),
        (
            "[training](docs/results/log.md#gpu), K = 2, 1B",
            "an H200, bfloat16",
            f"{wide['low']:.1f} to {wide['high']:.1f} times the pairs/s",
            "TRL at its best setting",
        ),
        ("the same, K = 8", "an H100, bfloat16", f"{wider['low']:.1f} to {wider['high']:.1f} times", "the same"),
        (
            "[scoring](docs/results/index.md#training-and-scoring-by-depth) 16 candidates, thirty layers",
            core,
            times(scored, "packed", "candidates/s"),
            f"packed rows without sharing; {over(scored, 'plain')} transformers one by one",
        ),
    ]
    return markdown(["", "on", "measured", "against"], rows)


def discrimination() -> str:
    """Accuracy on policies at the small size, in docs/proof.md. The best of a row is bold."""
    contenders = {
        "polar": "pre-trained on policies",
        "rbs": "on continuations",
        "untrained": "language model, cosine",
        "length": "length",
        "tfidf": "TF-IDF",
        "encoder": "sentence encoder",
    }
    lines = []
    for name, split, view in (
        ("policies, unseen prompts ({n_pairs} pairs)", "unseen_prompts", "given"),
        ("the same without markdown", "unseen_prompts", "markdown stripped"),
        ("the same of like length ({n_pairs} pairs)", "unseen_prompts", "length matched"),
        ("unseen policies ({n_pairs} pairs)", "unseen_policies", "given"),
    ):
        chosen = f"{PROOF}/discrimination.json#split={split}#view={view}#group=overall#seed=null"
        rows = [one(f"{chosen}#contender={contender}") for contender in contenders]
        best = max(row["value"] for row in rows)
        cells = [with_interval(row) if view == "given" and row["seeds"] > 1 else f"{row['value']:.3f}" for row in rows]
        cells = [f"**{cell}**" if row["value"] == best else cell for row, cell in zip(rows, cells, strict=True)]
        lines.append([name.format(**rows[0]), *cells])
    return markdown(["accuracy", *contenders.values()], lines)


def preferences() -> str:
    """Accuracy on held-out preferences at the small size, in docs/proof.md. The best is bold."""
    chosen = f"{PROOF}/preferences.json#group=overall#seed=null"
    best = max(select(f"{chosen}#measure=accuracy#value"))

    def accuracy(contender: str) -> dict[str, Any]:
        return one(f"{chosen}#contender={contender}")

    def value(contender: str) -> str:
        found = accuracy(contender)["value"]
        return f"**{found:.3f}**" if found == best else f"{found:.3f}"

    def gained(references: str) -> str:
        return with_interval(one(f"{chosen}#first=polar/{references}#second=none/{references}"), sign="+")

    pairs, used = (one(f"{PROOF}/classifier.json#measure={measure}")["value"] for measure in ("pairs", "pairs_used"))
    rows = [
        ("pre-trained on policies, with references", with_interval(accuracy("polar/given")), gained("given")),
        ("pre-trained on policies, without", value("polar/empty"), gained("empty")),
        ("on continuations, with references", with_interval(accuracy("rbs/given")), ""),
        ("no pre-training, with and without references", f"{value('none/given')}, {value('none/empty')}", ""),
        (
            f"a stock classifier by TRL on {used} of the {pairs} pairs (the others are too long), no references",
            with_interval(accuracy("classifier")),
            "",
        ),
        ("TF-IDF, sentence encoder, length", f"{value('tfidf')}, {value('encoder')}, {value('length')}", ""),
    ]
    return markdown([f"preferences ({accuracy('tfidf')['n_pairs']} pairs)", "accuracy", "against no pre-training"], rows)


def published_runs() -> str:
    """The plans of the published runs, in docs/scale.md. Tokens are published, everything else is in the rows."""
    names = ["", "published", "planned, separate sequences", "planned, shared prefixes", "memory a GPU, shared by all ranks"]
    names += ["memory a GPU, `shard_ranks=8`", "network a step: all ranks, `shard_ranks=8`", "encoded data (shared prefixes)"]
    columns = [[*names, "encoding", "one checkpoint"]]
    for run, tokens in (("POLAR-1.8B", "0.94T"), ("POLAR-7B", "3.6T")):
        plans = f"{RESULTS}/published_runs.json#run={run}#shared_prefixes"
        eight, all_ranks = sorted(select(f"{plans}=true"), key=lambda row: row["shard_ranks"])
        separate = max(select(f"{plans}=false"), key=lambda row: row["shard_ranks"])
        memory, of_eight = (sum(row["memory"].values()) / 2**30 for row in (all_ranks, eight))
        core_hours = float(f"{all_ranks['encode_core_hours']:.2g}")
        columns.append(
            [
                run,
                f"{tokens} tokens, {all_ranks['gpus']} {all_ranks['device'].upper()}, {all_ranks['published_hours']} h",
                f"{separate['hours']:.0f} h",
                f"{all_ranks['hours']:.0f} h",
                f"{memory:.0f} GiB",
                f"{of_eight:.0f} of {eight['memory_limit'] / 2**30:.0f} GiB",
                f"{all_ranks['network']:.1f}, {eight['network']:.1f} s of {all_ranks['step_seconds']:.1f} s",
                f"{all_ranks['encoded'] / 1e12:.2g} TB",
                f"{core_hours:,.0f} core hours",
                f"{all_ranks['checkpoint'] / 1e9:.0f} GB",
            ]
        )
    head, *rows = zip(*columns, strict=True)
    return markdown(head, rows)


TABLES: dict[str, Callable[[], str]] = {table.__name__: table for table in (numbers, discrimination, preferences, published_runs)}


def pages() -> dict[Path, str]:
    """The text of every page that is made or has a made table.

    Raises:
        ValueError: a page names a table that does not exist.
    """
    made = {PAGE: page()}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        unknown = [name for _, name, _ in MADE.findall(text) if name not in TABLES]
        if unknown:
            raise ValueError(f"{path.relative_to(ROOT)}: no table is called {unknown[0]}, there are {', '.join(TABLES)}")
        if MADE.search(text):
            made[path] = MADE.sub(lambda mark: f"{mark[1]}\n{TABLES[mark[2]]()}\n\n{mark[3]}", text)
    return made


def main() -> None:
    """Write the pages, or compare them with the committed ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    others = {path: text for path, text in pages().items() if path.read_text(encoding="utf-8") != text}
    if not arguments.check:
        for path, text in others.items():
            path.write_text(text, encoding="utf-8")
    elif others:
        names = ", ".join(path.relative_to(ROOT).as_posix() for path in others)
        sys.exit(f"not what benchmarks/results give: {names}. Run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
