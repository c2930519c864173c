"""Tables and sentences of reports."""

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
    pairs = f"{report['n_pairs']:,} pairs of {report['n_prompts']:,} prompts, reference {reference_words(report['reference'])}"
    limit = f", the first {report['limit']:,} comparisons only" if report["limit"] else ""
    rows = [[name, *_cells(numbers)] for name, numbers in report["contenders"].items()]
    return Table(f"pairwise accuracy ({pairs}{limit})", ["contender", "accuracy", "95% interval", "ties", "loss"], rows)


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
    """The protocol with the origins of references: ``given (sibling)``, ``given (gold 80, own 20; mean of several)``."""
    protocols = reference["protocols"]
    origins = next(iter(protocols)) if len(protocols) == 1 else ", ".join(f"{name} {n:,}" for name, n in protocols.items())
    several = f"{reference['combine']} of several" if reference["several"] or reference["combine"] == "best" else ""
    details = "; ".join(filter(None, ["" if set(protocols) <= {"given"} else origins, several]))
    return f"{reference['mode']} ({details})" if details else reference["mode"]


def sentences(differences: Sequence[Difference], facts: Mapping[str, ContenderFacts]) -> list[str]:
    """A sentence for each difference, except those between two baselines."""
    relevant = [difference for difference in differences if not _are_baselines(difference, facts)]
    first = relevant[0]["first"] if relevant else ""
    shown = relevant if len(relevant) <= _MAX_SENTENCES else [each for each in relevant if each["first"] == first]
    lines = [sentence(difference) for difference in shown]
    if len(shown) < len(relevant):
        lines.append(f"(only comparisons with {first} are shown; all {len(relevant)} are in the JSON)")
    return lines


def sentence(difference: Difference) -> str:
    """The sentence of one difference, such as ``a is better than b: +0.041 [+0.012, +0.070]``."""
    value = f"{difference['difference']:+.3f} {interval(difference['ci95'], '+.3f', missing='(no interval)')}"
    match difference["verdict"]:
        case "first":
            return f"{difference['first']} is better than {difference['second']}: {value}"
        case "second":
            return f"{difference['first']} is worse than {difference['second']}: {value}"
    return f"{difference['first']} and {difference['second']} can't be told apart: {value}"


@dataclass(frozen=True, slots=True)
class Summary:
    """A report for people. sentences: explanations of the differences and of other results."""

    tables: Sequence[Table]
    sentences: Sequence[str]
    warnings: Sequence[str]

    def rich(self) -> Group:
        """Tables, sentences and warnings for the terminal."""
        yellow = [Text(f"warning: {line}", style="yellow") for line in self.warnings]
        return Group(*(table.rich() for table in self.tables), *map(Text, self.sentences), *yellow)


def summarise(report: EvaluationReport) -> Summary:
    """Tables, sentences about differences and about the use of references, and warnings."""
    use = report["reference"]["use"]
    lines = [*sentences(report["differences"], report["facts"]), *(use_sentences(use, report["n_pairs"]) if use else [])]
    return Summary(tables(report), lines, report["warnings"])


def _cells(numbers: ContenderMeasure) -> list[str]:
    loss = "-" if numbers["loss"] is None else f"{numbers['loss']:.3f}"
    return [f"{numbers['accuracy']:.3f}", interval(numbers["ci95"], missing="-"), f"{numbers['ties']:,}", loss]


def _are_baselines(difference: Difference, facts: Mapping[str, ContenderFacts]) -> bool:
    return all(facts[difference[side]]["kind"] == "baseline" for side in ("first", "second"))
