"""The report of a calibration: its schema, its tables for the terminal, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict

from rich.console import Group
from rich.text import Text

from polar_rm.calibration.abstention import AbstentionRow
from polar_rm.common.files import write_json
from polar_rm.reporting.plots import calibration_figure, save_figure
from polar_rm.reporting.tables import Table
from polar_rm.reporting.words import interval

SCHEMA: Literal["polar-rm/calibration-report/1"] = "polar-rm/calibration-report/1"
MANY_PROMPTS, MANY_PAIRS = 50, 1000
"""With fewer prompts or pairs, temperature and calibration error are noticeably uncertain."""


class ReliabilityReport(TypedDict):
    """:class:`polar_rm.calibration.temperature.Reliability` as JSON, with one value for each bin."""

    confidence: list[float]
    accuracy: list[float]
    counts: list[int]
    error: float
    noise: float


class Rewards(TypedDict):
    """A short form of a distribution of rewards; the calibration card has 101 percentiles."""

    n: int
    mean: float
    std: float
    quantiles: list[float]  # the 5th, 25th, 50th, 75th and 95th percentile


class HeadReport(TypedDict):
    """The posterior of the head. determined: how many of its ``hidden`` directions the pairs determine."""

    prior_precision: float
    determined: float
    hidden: int
    deviation: float  # the median deviation of a reward difference, in units of the reward, out of fold


class CalibrationReport(TypedDict):
    """The results of ``polar calibrate``. Calibration errors and the abstention curve are out of fold."""

    schema: Literal["polar-rm/calibration-report/1"]
    model: str
    encoder_hash: str
    data: list[dict[str, object]]  # path, sha256 and rows of every file
    limit: int | None  # the number of first comparisons that were used; None: all
    n_pairs: int
    n_prompts: int
    accuracy: float
    ci95: list[float]
    temperature: float
    loss_before: float  # mean negative log-likelihood of the pairs, nats, with T = 1
    loss_after: float  # the same, out of fold
    before: ReliabilityReport  # with T = 1
    after: ReliabilityReport
    abstention: list[AbstentionRow]
    rewards: dict[str, Rewards]  # raw, and anchored if there are references
    head: HeadReport
    warnings: list[str]


def write_report(path: str | Path, report: CalibrationReport) -> None:
    """Save as JSON, atomically.

    Raises:
        PolarError: the file can't be written.
    """
    write_json(path, report)


def write_plot(path: str | Path, report: CalibrationReport) -> None:
    """Draw the reliability diagram and the abstention curve, as PNG or SVG by the file's suffix, atomically.

    Raises:
        PolarError: another suffix, or the file can't be written.
    """
    save_figure(calibration_figure(report["before"], report["after"], report["abstention"], title=report["model"]), path)


def render(report: CalibrationReport) -> Group:
    """The results as lines, the two tables and the warnings, for the terminal."""
    before, after = report["before"], report["after"]
    pairs = f"{report['n_pairs']:,} pairs of {report['n_prompts']:,} prompts"
    lines = [
        f"{pairs}: accuracy {report['accuracy']:.3f} {interval(report['ci95'])}",
        f"P(a over b) = sigmoid((r_a - r_b) / {report['temperature']:.4g})",
        f"calibration error {before['error']:.3f} before, {after['error']:.3f} after, out of fold; exact probabilities would "
        f"have {after['noise']:.3f} on as many pairs",
        *(_rewards(name, rewards) for name, rewards in report["rewards"].items()),
        f"median standard deviation of a reward difference {report['head']['deviation']:.3g}; the pairs determine "
        f"{report['head']['determined']:.0f} of {report['head']['hidden']:,} directions of the head",
    ]
    warnings = [Text(f"warning: {line}", style="yellow") for line in report["warnings"]]
    return Group(*map(Text, lines), _reliability_table(report).rich(), _abstention_table(report).rich(), *warnings)


def _rewards(name: str, rewards: Rewards) -> str:
    low, _, median, _, high = rewards["quantiles"]
    return f"{name} rewards: median {median:+.3f}, 5% to 95% {interval((low, high), '+.3f')}"


def _reliability_table(report: CalibrationReport) -> Table:
    after = report["after"]
    bins = zip(after["confidence"], after["accuracy"], after["counts"], strict=True)
    rows = [[f"{confidence:.3f}", f"{accuracy:.3f}", f"{count:,}"] for confidence, accuracy, count in bins]
    return Table("reliability, out of fold", ["P", "accuracy", "pairs"], rows)


def _abstention_table(report: CalibrationReport) -> Table:
    rows = []
    for row in report["abstention"]:
        gain = ("", "") if row["coverage"] == 1 else (f"{row['gain']:+.3f}", interval(row["gain_ci95"], "+.3f"))
        rows.append([f"{row['coverage']:.0%}", f"{row['n_pairs']:,}", f"{row['accuracy']:.3f}", interval(row["ci95"]), *gain])
    header = ["kept", "pairs", "accuracy", "95% interval", "gain", "95% interval"]
    return Table("the most certain pairs", header, rows)
