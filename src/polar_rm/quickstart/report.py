"""The quickstart's report as one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polar_rm.common.files import write_file
from polar_rm.corpus.splits import UNSEEN_POLICIES, UNSEEN_PROMPTS
from polar_rm.reporting.html import render_page
from polar_rm.reporting.plots import plot_accuracy, plot_loss_curves, plot_reliability, plot_score_distributions
from polar_rm.reporting.words import interval

# Splits of the corpus that test the pre-trained model.
TESTS = {"unseen-prompts": UNSEEN_PROMPTS, "unseen-policies": UNSEEN_POLICIES}


def write_html(path: Path, report: dict[str, Any]) -> None:
    """Write tables, loss curves, score distributions and examples.

    Raises:
        PolarError: the file can't be written.
    """
    write_file(path, render_page("polar_rm.quickstart", "report.html.j2", report, _plots(report)))


def summary(report: dict[str, Any]) -> list[str]:
    """The results in a few lines, for the terminal."""
    lines = []
    for name in TESTS:
        result = report["evaluate"][name]
        baselines = ", ".join(f"{key} {value['accuracy']:.3f}" for key, value in result["baselines"].items())
        lines.append(f"{_title(name)}: accuracy {result['accuracy']:.3f} {interval(result['ci95'])}; baselines: {baselines}")
    ranked = report["evaluate"]["ranked"]
    with_pretraining, without = ranked["with pre-training"], ranked["without pre-training"]
    lines.append(
        f"ranked data: {with_pretraining['accuracy']:.3f} with pre-training, {without['accuracy']:.3f} without; "
        f"difference {ranked['difference']['accuracy']:+.3f} {interval(ranked['difference']['ci95'], '+.3f')}"
    )
    scale = report["calibrate"]
    if "refused" in scale:
        lines.append(f"no scale of rewards: {scale['refused']}")
    else:
        lines.append(
            f"P(a over b) = sigmoid((r_a - r_b) / {scale['temperature']:.3g}); calibration error out of fold "
            f"{scale['after']['error']:.3f} ({scale['after']['noise']:.3f} if exact)"
        )
    for example in report["examples"]["examples"]:
        rewards = ", ".join(f"{row['candidate']} {row['reward']:+.2f}" for row in example["candidates"])
        lines.append(f"{example['prompt']!r}: {rewards}")
    return lines


def _plots(report: dict[str, Any]) -> dict[str, str]:
    results = report["evaluate"]
    histories = {
        "pre-training": report["pretrain"]["history"],
        "fine-tuning": report["finetune"]["history"],
        "fine-tuning without pre-training": report["finetune-alone"]["history"],
    }
    tests = {_title(name): results[name] for name in TESTS} | results["unseen-policies"]["by"]
    accuracies = {name: {"model": result, **result["baselines"]} for name, result in tests.items()}
    ranked = results["ranked"]
    accuracies["ranked (fine-tuned)"] = {"model": ranked["with pre-training"], **ranked["with pre-training"]["baselines"]}
    scale = report["calibrate"]
    reliability = {} if "refused" in scale else {"reliability": plot_reliability(scale["before"], scale["after"])}
    return (
        reliability
        | {
            "loss": plot_loss_curves({name: [(step, loss) for step, loss, _ in rows] for name, rows in histories.items()}),
            "accuracy": plot_accuracy(accuracies),
        }
        | {name: plot_score_distributions(results[name]["scores"], title=_title(name)) for name in TESTS}
    )


def _title(name: str) -> str:
    return name.replace("-", " ")
