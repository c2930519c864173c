"""The report of a run: curves, held-out values at each evaluation, differences in words, and the texts before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from polar_rm.records import flatten, prompt_key
from polar_rm.rft.baseline import SftRun
from polar_rm.rft.comparison import column, compare, judged_by
from polar_rm.rft.config import RftConfig
from polar_rm.rft.data import RftData, texts_of
from polar_rm.rft.evaluations import REWARD, Row, read_rows
from polar_rm.rft.monitor import COLUMNS, Event

SCHEMA = "polar-rm/rft-report/1"

_MAX_EXAMPLES = 50  # prompts in the report, worst regressions first; evaluation/ has all


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run has done. evaluations: rows by step, empty without ``evaluate``. sft: the baseline, None without one."""

    steps: int
    evaluations: Mapping[int, Sequence[Row]]
    events: Sequence[Event]
    data: RftData
    sft: SftRun | None = None


def build_report(config: RftConfig, finished: Finished) -> dict[str, Any]:
    """The content of ``report.json``.

    curves: the logged rows, with the quantities of the monitor. evaluations: mean and 95% interval of each judge by step, for the
    policy (``rft``) and the baseline. held_out: after against before. baseline: rft against sft, with the budget in words.
    examples: prompts with both texts, worst regressions of the first judge first.
    """
    stopped = next((event for event in finished.events if event["action"] == "stop"), None)
    first, last = _ends(finished.evaluations)
    held_out = compare(first, last, ("before", "after"), seed=config.seed) if first and last else {}
    baseline = _baseline(config, finished, last) if finished.sft else None
    named = {"rft": finished.evaluations, **({"sft": finished.sft.evaluations} if finished.sft else {})}
    report = {
        "schema": SCHEMA,
        "algorithm": config.algorithm,
        "policy": config.policy.model,
        "reward": config.reward.source,
        "steps": finished.steps,
        "n_prompts": len(finished.data.train),
        "n_held_out": len(finished.data.held_out),
        "notes": finished.data.notes,
        "stopped": dict(stopped) if stopped else None,
        "events": [dict(event) for event in finished.events],
        "curves": _curves(config),
        "evaluations": {name: _means(rows, config.seed) for name, rows in named.items()},
        "held_out": held_out,
        "baseline": baseline,
        "sentences": [],
        "examples": _examples(first, last, _ends(finished.sft.evaluations)[1] if finished.sft else None),
    }
    report["sentences"] = sentences(report)
    return report


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What the report says, in words, most important first."""
    lines = []
    if report["stopped"]:
        lines.append(f"The run was stopped: {report['stopped']['reason']}.")
    lines += [f"{found['sentence']}." for found in report["held_out"].values()]
    judged = {name: found for name, found in report["held_out"].items() if name != REWARD}
    rose = report["held_out"].get(REWARD, {}).get("verdict") == "better"
    if rose and all(found["verdict"] != "better" for found in judged.values()):
        worse = [name for name, found in judged.items() if found["verdict"] == "worse"]
        seen = f"{', '.join(worse)} fell" if worse else f"no judge ({', '.join(judged)}) sees an improvement"
        lines.append(f"The reward rose on held-out prompts while {seen}: the policy may be exploiting the reward model.")
    if baseline := report["baseline"]:
        lines += [f"{found['sentence']}." for found in baseline["difference"].values()]
        lines.append(baseline["budget"])
    if not report["held_out"]:
        lines.append("Nothing but the reward model judged the policy: set evaluate to know whether it improved.")
    return lines + [f"A limit was left at {event['reason']}." for event in report["events"] if event["action"] == "warn"]


def _baseline(config: RftConfig, finished: Finished, last: Sequence[Row] | None) -> dict[str, Any]:
    sft = finished.sft
    if sft is None:
        return {}
    of_sft = _ends(sft.evaluations)[1]
    updates, sequences, passes = sft.results["steps"], sft.results["sequences"], sft.results["passes"]
    tokens = {"rft": _last_value(read_rows(config.output / "metrics.jsonl"), "num_tokens")}
    tokens["sft"] = _last_value(read_rows(config.output / "sft/metrics.jsonl"), "num_tokens")
    read = (
        f"; rft read {tokens['rft']:,.0f} tokens and sft {tokens['sft']:,.0f}, prompts included" if all(tokens.values()) else ""
    )
    budget = (
        f"The same budget: sft had as many updates as rft ({updates:,}) with as many sequences in each, {sequences:,} in all. "
        f"These are {passes:.1f} passes over the references{read}."
    )
    difference = compare(of_sft, last, ("sft", "rft"), seed=config.seed) if of_sft and last else {}
    return {"difference": difference, "budget": budget, "tokens": tokens, "results": sft.results}


def _ends(evaluations: Mapping[int, Sequence[Row]]) -> tuple[Sequence[Row] | None, Sequence[Row] | None]:
    """The first and the last evaluation."""
    return (evaluations[min(evaluations)], evaluations[max(evaluations)]) if evaluations else (None, None)


def _curves(config: RftConfig) -> list[dict[str, Any]]:
    """The logged rows that have a reward: step, and the quantities of the monitor that are there."""
    path = config.output / "metrics.jsonl"
    rows = [row for row in read_rows(path, is_unfinished=True) if "reward" in row] if path.exists() else []
    return [
        {"step": row["step"], **{name: row[key] for name, key in COLUMNS.items() if row.get(key) is not None}} for row in rows
    ]


def _means(evaluations: Mapping[int, Sequence[Row]], seed: int) -> list[dict[str, Any]]:
    """Mean and interval of each judge, and means of length and measures, by step."""
    from polar_rm.evaluation.statistics import bootstrap_intervals, listed

    found = []
    for step, rows in sorted(evaluations.items()):
        keys: dict[str, int] = {}
        prompts = np.array([keys.setdefault(prompt_key(row["prompt"]), len(keys)) for row in rows], np.int64)
        judges = {}
        for name in judged_by(rows):
            values = np.array(column(rows, name), np.float64)
            extremes = min(0.0, float(values.min())), max(1.0, float(values.max()))
            [ci95] = bootstrap_intervals(values[:, None], prompts, extremes=extremes, seed=seed)
            judges[name] = {"mean": float(values.mean()), "ci95": listed(ci95)}
        lengths = [row["n_tokens"] or 0 for row in rows]
        measures = {name: fmean(row[name] for row in rows) for name in ("repetition", "likeness")}
        found.append({"step": step, "judges": judges, "n_tokens": fmean(lengths), **measures})
    return found


def _examples(first: Sequence[Row] | None, last: Sequence[Row] | None, sft: Sequence[Row] | None) -> list[dict[str, Any]]:
    """The first sample of each prompt before and after, by the difference of the first judge, then of the reward."""
    if not first or not last:
        return []
    headline = next(iter(first[0]["scores"]))
    shown = []
    for index, (before, after) in enumerate(zip(first, last, strict=True)):
        sides = {"before": before, "after": after, **({"sft": sft[index]} if sft else {})}
        if before["sample"] == 0:
            difference = after["scores"][headline] - before["scores"][headline]
            reward = (after["reward"] or 0.0) - (before["reward"] or 0.0)
            shown.append((difference, reward, before["number"], sides))
    shown.sort(key=lambda each: each[:3])
    return [
        {
            "number": number,
            "difference": difference,
            "prompt": flatten(sides["before"]["prompt"]),
            "reference": "\n\n".join(map(flatten, texts_of(sides["before"]["reference"]))),
            "sides": {
                name: {"text": row["completion"], "scores": row["scores"], "notes": row["notes"], "reward": row["reward"]}
                for name, row in sides.items()
            },
        }
        for difference, _, number, sides in shown[:_MAX_EXAMPLES]
    ]


def _last_value(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return next((row[key] for row in reversed(rows) if row.get(key) is not None), None)
