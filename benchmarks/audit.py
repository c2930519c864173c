"""How often does `polar audit` find a planted shortcut, and how often does it accuse an honest scorer?

Five scorers in plain Python with one shortcut each and five honest ones (tests/support/shortcuts.py) are audited on made pairs,
over many seeds. *Found*: share of seeds in which the shortcut's own probe failed. *False alarms*: failed probes of honest
scorers, but for the weaknesses that they really have, among all probes that could fail.

    python benchmarks/audit.py --seeds 20 --prompts 200 --output benchmarks/results/audit.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from common import origin
from support import shortcuts

from polar_rm.audit.run import audit
from polar_rm.evaluation.statistics import agreeing_interval, bootstrap_intervals


def share(values: list[bool]) -> dict[str, Any]:
    """A share with its 95% interval; Wilson's where all are equal."""
    import numpy as np

    numbers = np.array(values, float)
    mean = float(numbers.mean())
    [found] = bootstrap_intervals(numbers[:, None], np.arange(len(numbers)))
    bounds = found or agreeing_interval(mean, len(numbers))
    return {"value": mean, "ci95": [round(bound, 4) for bound in bounds], "n": len(values)}


def main() -> None:
    """Run all audits, and write a row for each scorer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    failed: dict[str, list[set[str]]] = {}
    asked: Counter[str] = Counter()
    probes: dict[str, str] = {}
    gained: dict[str, list[float]] = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        data = shortcuts.comparisons(options.prompts, seed)
        scorers = {name: (made, "") for name, made in shortcuts.honest(data, seed).items()} | shortcuts.planted(data, seed)
        for name, (made, probe) in scorers.items():
            probes[name] = probe
            findings = audit(made, data, seed=seed, resamples=options.resamples).report["findings"]
            failed.setdefault(name, []).append({each["probe"] for each in findings if each["verdict"] == "failed"})
            gained.setdefault(name, []).extend(
                each["value"] for each in findings if each["probe"] == "gain" and each["value"] is not None
            )
            asked[name] += sum(each["verdict"] != "not applicable" for each in findings)
        print(f"seed {seed} done", flush=True)
    facts = {"prompts": options.prompts, **origin()}
    rows: list[dict[str, Any]] = []
    alarms, chances = 0, 0
    gains = {name: sum(values) / len(values) for name, values in gained.items() if values}
    for name, sets in failed.items():
        row: dict[str, Any] = {"scorer": name, "kind": "planted" if probes[name] else "honest"}
        if probes[name]:
            row |= {"probe": probes[name], "found": share([probes[name] in each for each in sets])}
        else:
            known = shortcuts.WEAKNESSES.get(name, set())
            row |= {"weaknesses": {probe: share([probe in each for each in sets]) for probe in sorted(known)}}
            wrong = [len(each - known) for each in sets]
            row |= {
                "mean_gain": gains.get(name),
                "false_alarms": sum(wrong),
                "asked": asked[name],
                "accused": share([bool(count) for count in wrong]),
            }
            row["by_probe"] = dict(Counter(probe for each in sets for probe in each - known))
            alarms, chances = alarms + sum(wrong), chances + asked[name]
        rows.append(row | facts)
    rows.append({"scorer": "all honest", "kind": "honest", "false_alarms": alarms, "asked": chances} | facts)
    for row in rows:
        print({key: value for key, value in row.items() if key not in facts})
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
