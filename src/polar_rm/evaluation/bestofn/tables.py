"""Best of n as tables, sentences and a plot, for people."""

from __future__ import annotations

from pathlib import Path

from polar_rm.evaluation.bestofn.report import BestOfNReport, ContenderCurve, Estimate
from polar_rm.evaluation.tables import Summary, reference_words, sentences
from polar_rm.reporting.plots import Band, curves_figure, save_figure
from polar_rm.reporting.tables import Table
from polar_rm.reporting.words import interval


def gold_table(report: BestOfNReport) -> Table:
    """A row for each n: the gold of the picked sample."""
    limit = f", the first {report['limit']:,} prompts only" if report["limit"] else ""
    where = f"{report['n_samples']:,} samples for {report['n_prompts']:,} prompts{limit}"
    title = f"gold of the top-scored of n ({where}, reference {reference_words(report['reference'])})"
    rows = [
        [
            str(point["n"]),
            f"{point['kl']:.2f}",
            f"{point['n_prompts']:,}",
            _cell(point["random"]),
            *(_cell(curve["gold"][i]) for curve in report["contenders"].values()),
            _cell(point["oracle"]),
        ]
        for i, point in enumerate(report["points"])
    ]
    return Table(title, ["n", "KL", "prompts", "random", *report["contenders"], "oracle"], rows)


def proxy_table(report: BestOfNReport) -> Table:
    """A row for each n: the contender's own score of the sample that it picks."""
    rows = [
        [str(point["n"]), *(_cell(curve["proxy"][i], "+.3f") for curve in report["contenders"].values())]
        for i, point in enumerate(report["points"])
    ]
    title = "score of the top-scored of n, in standard deviations of the contender's scores of all samples"
    return Table(title, ["n", *report["contenders"]], rows)


def figures_table(report: BestOfNReport) -> Table:
    """A row for each contender."""
    n = report["max_n"]
    rows = [
        [
            name,
            _cell(curve["gain"], "+.3f"),
            _cell(curve["regret"]),
            f"{curve['peak']['n']} {interval(curve['peak']['ci95'], 'd')}".strip(),
            _cell(curve["drop"]),
            _cell(curve["area"]),
            _cell(curve["gamma"]),
        ]
        for name, curve in report["contenders"].items()
    ]
    header = ["contender", "over random", "regret", "peak n", "drop", "area", "gamma"]
    return Table(f"at n = {n}, over the {report['n_complete']:,} prompts with so many samples", header, rows)


def peak_sentence(name: str, curve: ContenderCurve, n: int) -> str:
    """What the gold curve of a contender does: rises to the end, falls after a peak, or can't be told."""
    gain, drop, peak = curve["gain"]["ci95"], curve["drop"]["ci95"], curve["peak"]["n"]
    if drop is not None and drop[0] > 0:
        fall = f"falls by {_cell(curve['drop'])} up to n = {n}: over-optimised"
        return f"{name}: gold peaks at n = {peak} and {fall}"
    if gain is not None and gain[1] < 0:
        return f"{name}: the top-scored of {n} is worse than a random sample"
    if gain is None or gain[0] <= 0:
        return f"{name}: the top-scored of {n} can't be told from a random sample"
    if peak == n:
        return f"{name}: gold rises up to n = {n}"
    return f"{name}: gold is highest at n = {peak}; whether it falls afterwards can't be told"


def summarise(report: BestOfNReport) -> Summary:
    """Tables, a sentence for each curve, the differences, and the warnings."""
    n = report["max_n"]
    told = [peak_sentence(name, curve, n) for name, curve in report["contenders"].items()]
    told += [f"by gold at n = {n}: {line}" for line in sentences(report["differences"], report["facts"])]
    return Summary([gold_table(report), proxy_table(report), figures_table(report)], told, report["warnings"])


def write_plot(path: str | Path, report: BestOfNReport) -> None:
    """Draw gold and proxy over the KL, as PNG or SVG by the file's suffix, atomically.

    Raises:
        PolarError: another suffix, or the file can't be written.
    """
    points = report["points"]
    bounds = {"oracle": _band([point["oracle"] for point in points]), "random": _band([point["random"] for point in points])}
    panels = {
        "gold of the top-scored of n": {name: _band(each["gold"]) for name, each in report["contenders"].items()},
        "its score, in standard deviations": {name: _band(each["proxy"]) for name, each in report["contenders"].items()},
    }
    ticks = {f"{point['kl']:.2f}\nn = {point['n']}": point["kl"] for point in points}
    save_figure(curves_figure(ticks, panels, {next(iter(panels)): bounds}, x="KL from the policy, nats"), path)


def _band(estimates: list[Estimate]) -> Band:
    bounds = [each["ci95"] or [each["value"]] * 2 for each in estimates]
    return [each["value"] for each in estimates], [low for low, _ in bounds], [high for _, high in bounds]


def _cell(found: Estimate | None, form: str = ".3f") -> str:
    return "-" if found is None else f"{found['value']:{form}} {interval(found['ci95'], form)}".strip()
