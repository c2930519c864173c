"""The reward server under load: compared with vLLM on the same checkpoint, and far beyond its capacity.

``compare`` sends groups of candidates per reference, as the same token ids, to ``polar serve`` and to vLLM, started by ``polar
serve --engine vllm`` with its prefix cache and on all cores. The servers take turns, with new texts in every round, so that no
cache has entries for them. A request holds one group, or with ``--items-per-request`` a piece of one. The other server is
stopped (SIGSTOP) meanwhile, so that it uses no CPU. cpu_ratio compares the CPU time of each server's processes, which is more
reliable than the clock if other work shares the cores. The package must also be importable in the peer's environment.

    python benchmarks/serving.py compare --peer-python envs/vllm/bin/python

``flood`` sends ten times as many requests as the server can answer, over a thousand connections. The capacity is measured with 32
connections that send requests as fast as they can. The queue is short, so that the server refuses early and the full load
arrives. Every answer must hold the right rewards for its items, or be a 429 or 503 with a reason, and the server's memory must
stay bounded. "distinct" is the share of requests whose rewards can't be confused with those of another request.

    python benchmarks/serving.py flood --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from common import LANGUAGE_MODEL, comparisons, origin, report

from polar_rm.client.asynchronous import AsyncRewardClient
from polar_rm.encoding.encoder import Encoder
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import ScoreItem
from polar_rm.rewards.outcomes import rewards
from polar_rm.scoring.scorer import Scorer

TOLERANCE = 1e-3  # float32 scores depend on the other sequences of a batch


class Server:
    """A server in its own session, so that all its processes can be measured and ended together."""

    def __init__(self, python: str, model: Path, port: int, arguments: list[str], environment: dict[str, str]) -> None:
        command = [python, "-m", "polar_rm", "serve", "--model", str(model), "--port", str(port), *arguments]
        self.url = f"http://127.0.0.1:{port}"
        self.start_cpu_s = 0.0  # CPU seconds until it was ready
        self.log = model.parent / f"{port}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **environment}
            )

    def wait(self, seconds: float = 1200) -> None:
        until = time.monotonic() + seconds
        while True:
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{self.url} did not start:\n{self.log.read_text()[-2000:]}")
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    self.start_cpu_s = self.stats()[0]
                    return
            except httpx.TransportError:
                time.sleep(0.5)

    def stats(self) -> tuple[float, float]:
        """(CPU seconds, resident MiB) of all its processes."""
        ticks = pages = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rsplit(")", 1)[1].split()
            except OSError:  # the process has ended
                continue
            if int(fields[3]) == self.process.pid:
                ticks += int(fields[11]) + int(fields[12])
                pages += int(fields[21])
        return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop all processes of the server during the context."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def build(folder: Path, layers: int) -> Path:
    """Save a checkpoint with a random head."""
    model = RewardModel.from_causal_lm(LANGUAGE_MODEL, n_layers=layers)
    torch.nn.init.normal_(model.backbone.score.weight, generator=torch.Generator().manual_seed(0))
    model.save(folder / "model")
    return folder / "model"


@contextmanager
def servers(arguments: argparse.Namespace, with_peer: bool) -> Iterator[tuple[Path, list[Server]]]:
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or build(Path(folder), arguments.layers)
        started = [Server(sys.executable, model, arguments.port, arguments.ours.split(), {})]
        try:
            if with_peer:
                source = str(Path(__file__).resolve().parents[1] / "src")
                path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
                environment = {"PYTHONPATH": path, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
                environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"  # otherwise vLLM reserves a whole core for its scheduler
                options = ["--engine", "vllm", *(["--", *arguments.peer_options.split()] if arguments.peer_options else [])]
                started.append(Server(arguments.peer_python, model, arguments.port + 1, options, environment))
            for server in started:
                server.wait()
            yield model, started
        finally:
            for server in started:
                server.stop()


async def load(
    url: str, groups: list[list[list[int]]], connections: int, per_request: int
) -> tuple[list[float], list[float], float]:
    """Send all requests; returns (all rewards in order, seconds of each request, total seconds). connections: requests in
    flight."""
    requests = [group[start : start + per_request] for group in groups for start in range(0, len(group), per_request)]
    latencies = [0.0] * len(requests)
    results: list[list[float]] = [[]] * len(requests)
    todo = iter(enumerate(requests))

    async def worker(client: AsyncRewardClient) -> None:
        for index, sequences in todo:
            started = time.perf_counter()
            results[index] = rewards(await client.score_ids(sequences))
            latencies[index] = time.perf_counter() - started

    async with AsyncRewardClient(url, max_concurrency=connections) as client:
        await client.score_ids(requests[0][:1])  # determines the kind of server
        started = time.perf_counter()
        await asyncio.gather(*(worker(client) for _ in range(connections)))
        seconds = time.perf_counter() - started
    return [reward for result in results for reward in result], latencies, seconds


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with servers(arguments, with_peer=True) as (model, both):
        encoder = Encoder.from_pretrained(model)
        for number in range(arguments.rounds + 1):
            n_groups = arguments.groups if number else 1  # round 0 is the warm-up
            trees = encoder.encode_many(comparisons(n_groups, arguments.candidates, arguments.length, seed=number))
            groups = [[tree.sequence(i) for i in range(len(tree.branches))] for tree in trees]
            results: dict[int, dict[str, Any]] = {}
            for side in (0, 1) if number % 2 else (1, 0):
                server = both[side]
                before = server.stats()[0]
                with both[1 - side].paused():
                    scores, latencies, seconds = asyncio.run(
                        load(server.url, groups, arguments.connections, arguments.items_per_request)
                    )
                p50, p99 = np.percentile(latencies, [50, 99])
                results[side] = {"s": seconds, "cpu_s": server.stats()[0] - before, "p50": p50, "p99": p99}
                results[side]["scores"] = scores
            ours, peer = results[0], results[1]
            if number == 0:
                continue
            n_items = len(ours["scores"])
            rows.append(
                {
                    "round": number,
                    "ours_items_s": n_items / ours["s"],
                    "peer_items_s": n_items / peer["s"],
                    "ratio": peer["s"] / ours["s"],
                    "cpu_ratio": peer["cpu_s"] / ours["cpu_s"],
                    **{
                        f"{name}_{key}_ms": 1000 * float(result[key])
                        for name, result in (("ours", ours), ("peer", peer))
                        for key in ("p50", "p99")
                    },
                    "largest_difference": max(abs(a - b) for a, b in zip(ours["scores"], peer["scores"], strict=True)),
                }
            )
            report(rows[-1:], None)
        memory = {f"{name}_mib": server.stats()[1] for name, server in zip(("ours", "peer"), both, strict=True)}
        start = {f"{name}_start_cpu_s": server.start_cpu_s for name, server in zip(("ours", "peer"), both, strict=True)}
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0] if key != "round"}
    shape = {
        key: getattr(arguments, key) for key in ("layers", "candidates", "length", "connections", "items_per_request", "groups")
    }
    return [*rows, {"round": "median", **median, **shape, **memory, **start, "rounds": arguments.rounds, **origin()}]


def flood(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rng = random.Random(0)
    pairs = comparisons(200, 2, arguments.length, seed=1)
    items = [[ScoreItem(c.prompt, c.reference, text) for text in c.candidates] for c in pairs]
    with servers(arguments, with_peer=False) as (model, [server]):
        scorer = Scorer(RewardModel.from_pretrained(model))
        flat = [scored.reward for scored in scorer.score([item for group in items for item in group])]
        expected = [flat[2 * index : 2 * index + 2] for index in range(len(items))]
        near = [[all(abs(a - b) < 2 * TOLERANCE for a, b in zip(one, two, strict=True)) for two in expected] for one in expected]
        idle = server.stats()[1]
        asyncio.run(send_requests(server.url, items, expected, rng, arguments.connections, seconds=5, rate=None))  # warm up
        trial, _ = asyncio.run(send_requests(server.url, items, expected, rng, arguments.connections, seconds=15, rate=None))
        before = server.stats()[1]
        rate = 10 * trial[200] / 15
        peak = 0.0

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, server.stats()[1])
                await asyncio.sleep(0.5)

        async def both() -> tuple[Counter[Any], list[float]]:
            watching = asyncio.create_task(watch())
            try:
                return await send_requests(server.url, items, expected, rng, arguments.connections, arguments.seconds, rate)
            finally:
                watching.cancel()

        counts, latencies = asyncio.run(both())
        alive = httpx.get(f"{server.url}/ready", trust_env=False).status_code
    return [
        {
            "connections": arguments.connections,
            "seconds": arguments.seconds,
            "asked_per_s": sum(counts.values()) / arguments.seconds,
            "capacity_per_s": rate / 10,
            "answered": counts[200],
            "refused": {str(key): value for key, value in counts.items() if key in (429, 503)},
            "wrong": counts["wrong"],
            "distinct": sum(sum(row) == 1 for row in near) / len(near),
            "lost": counts["lost"],
            "p50_ms": 1000 * float(np.percentile(latencies, 50)),
            "p99_ms": 1000 * float(np.percentile(latencies, 99)),
            "idle_mib": idle,
            "before_mib": before,
            "peak_mib": peak,
            "ready_afterwards": alive,
        }
    ]


async def send_requests(
    url: str,
    items: list[list[ScoreItem]],
    expected: list[list[float]],
    rng: random.Random,
    connections: int,
    seconds: float,
    rate: float | None,
) -> tuple[Counter[Any], list[float]]:
    """Counts of answers by status, ``wrong`` and ``lost``, and latencies of the successful ones. rate: requests/s; None: send
    requests as fast as answers arrive, over few connections."""
    bodies = [
        {"items": [{"prompt": group[0].prompt, "reference": group[0].reference, "outputs": [item.output for item in group]}]}
        for group in items
    ]
    counts: Counter[Any] = Counter()
    latencies: list[float] = []
    n_workers = connections if rate else 32
    until = time.monotonic() + seconds

    async def worker(client: httpx.AsyncClient) -> None:
        while time.monotonic() < until:
            if rate:
                await asyncio.sleep(rng.expovariate(rate / n_workers))
            index = rng.randrange(len(bodies))
            started = time.perf_counter()
            try:
                reply = await client.post("/v1/score", json=bodies[index])
            except httpx.TransportError as error:
                print(f"lost: {error!r}", file=sys.stderr)
                counts["lost"] += 1
                continue
            counts[reply.status_code] += 1
            if reply.status_code == 200:
                latencies.append(time.perf_counter() - started)
                values = [row["reward"] for row in reply.json()["results"][0]["outputs"]]
                counts["wrong"] += any(abs(a - b) > TOLERANCE for a, b in zip(values, expected[index], strict=True))
            else:
                counts["wrong"] += not reply.json()["error"]["message"]

    limits = httpx.Limits(max_connections=n_workers, max_keepalive_connections=n_workers)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False) as client:
        await asyncio.gather(*(worker(client) for _ in range(n_workers)))
    counts["wrong"] += 0  # creates the key
    return counts, latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["compare", "flood"])
    parser.add_argument("--model", type=Path, help="checkpoint; default: SmolLM2's first layers with a random head")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--port", type=int, default=30100, help="port of our server; the peer gets the next one")
    parser.add_argument("--ours", default="", help='further options of our server, such as "--row-tokens 2048"')
    parser.add_argument("--queue", type=int, default=20_000, help="flood: maximum number of waiting tokens")
    parser.add_argument("--peer-python", help="compare: interpreter of the environment with vLLM")
    parser.add_argument("--peer-options", default="--enforce-eager --max-model-len 2048", help="compare: further options of vLLM")
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--length", type=int, help="mean tokens of prompt, reference and candidate: 200 (compare), 40 (flood)")
    parser.add_argument("--groups", type=int, default=8, help="compare: groups per round")
    parser.add_argument("--items-per-request", type=int, default=16)
    parser.add_argument("--connections", type=int, help="number of connections: 4 (compare), 1000 (flood)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60, help="flood: duration")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    is_flood = arguments.mode == "flood"
    arguments.connections = arguments.connections or (1000 if is_flood else 4)
    arguments.length = arguments.length or (40 if is_flood else 200)
    if is_flood:
        arguments.ours += f" --max-queue-tokens {arguments.queue}"
    rows = flood(arguments) if is_flood else compare(arguments)
    print(json.dumps(rows[-1]))
    if arguments.output:
        report(rows, arguments.output)


if __name__ == "__main__":
    main()
