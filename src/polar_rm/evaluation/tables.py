"""Reports as tables and sentences, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.text import Text

from polar_rm.evaluation.reference_use import use_sentences, use_table
from polar_rm.evaluation.report import (
    ContenderFacts,
    ContenderMeasure,
    Difference,
    EvaluationReport,
    GroupReport,
    ReferenceReport,
)
from polar_rm.reporting.tables import Table
from polar_rm.reporting.words import interval, measure

_MAX_SENTENCES = 12


def accuracy_table(report: EvaluationReport) -> Table:
    """A row for each contender, over all pairs."""
    where = f"{report['n_pairs']:,} pairs of {report['n_prompts']:,} prompts, reference {reference_words(report['reference'])}"
    limit = f", the first {report['limit']:,} comparisons only" if report["limit"] else ""
    rows = [[name, *_cells(found)] for name, found in report["contenders"].items()]
    return Table(f"pairwise accuracy ({where}{limit})", ["contender", "accuracy", "95% interval", "ties", "loss"], rows)


def group_table(report: EvaluationReport) -> Table:
    """A row for each group, a column for each contender, all pairs last."""
    names = list(report["contenders"])
    groups: list[tuple[str, GroupReport]] = [*report["by"].items(), ("all", report)]
    rows = [
        [label, f"{group['n_pairs']:,}", f"{group['n_prompts']:,}", *(measure(group["contenders"][name]) for name in names)]
        for label, group in groups
    ]
    return Table("by group", ["group", "pairs", "prompts", *names], rows, last_is_total=True)


def tables(report: EvaluationReport) -> list[Table]:
    """All tables of a report."""
    use = report["reference"]["use"]
    return [accuracy_table(report), *([group_table(report)] if report["by"] else []), *([use_table(use)] if use else [])]


def reference_words(reference: ReferenceReport) -> str:
    """The protocol, and where references came from: ``given (sibling)``, ``given (gold 80, own 20)``."""
    protocols = reference["protocols"]
    if set(protocols) <= {"given"}:
        return reference["mode"]
    origins = next(iter(protocols)) if len(protocols) == 1 else ", ".join(f"{each} {n:,}" for each, n in protocols.items())
    return f"{reference['mode']} ({origins})"


def sentences(differences: Sequence[Difference], facts: Mapping[str, ContenderFacts]) -> list[str]:
    """Which contender is better, or that it can't be told; two baselines are not compared."""
    told = [each for each in differences if not _are_baselines(each, facts)]
    first = told[0]["first"] if told else ""
    shown = told if len(told) <= _MAX_SENTENCES else [each for each in told if each["first"] == first]
    lines = [sentence(each) for each in shown]
    if len(shown) < len(told):
        lines.append(f"(here with {first} alone; all {len(told)} comparisons of two are in the JSON)")
    return lines


def sentence(each: Difference) -> str:
    """Of one difference, such as ``a is better than b: +0.041 [+0.012, +0.070]``."""
    value = f"{each['difference']:+.3f} {interval(each['ci95'], '+.3f', missing='(no interval)')}"
    match each["verdict"]:
        case "first":
            return f"{each['first']} is better than {each['second']}: {value}"
        case "second":
            return f"{each['first']} is worse than {each['second']}: {value}"
    return f"{each['first']} and {each['second']} can't be told apart: {value}"


@dataclass(frozen=True, slots=True)
class Summary:
    """A report for people. sentences: what the differences mean, and what else belongs beside the tables."""

    tables: Sequence[Table]
    sentences: Sequence[str]
    warnings: Sequence[str]

    def rich(self) -> Group:
        """For the terminal."""
        yellow = [Text(f"warning: {line}", style="yellow") for line in self.warnings]
        return Group(*(table.rich() for table in self.tables), *map(Text, self.sentences), *yellow)


def summarise(report: EvaluationReport) -> Summary:
    """Tables, what the differences mean, what contenders make of their references, and the warnings."""
    use = report["reference"]["use"]
    told = [*sentences(report["differences"], report["facts"]), *(use_sentences(use, report["n_pairs"]) if use else [])]
    return Summary(tables(report), told, report["warnings"])


def _cells(found: ContenderMeasure) -> list[str]:
    loss = "-" if found["loss"] is None else f"{found['loss']:.3f}"
    return [f"{found['accuracy']:.3f}", interval(found["ci95"], missing="-"), f"{found['ties']:,}", loss]


def _are_baselines(each: Difference, facts: Mapping[str, ContenderFacts]) -> bool:
    return all(facts[each[side]]["kind"] == "baseline" for side in ("first", "second"))
