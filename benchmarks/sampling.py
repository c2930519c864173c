"""A real run of `polar sample` with kills: one policy in this process, two behind an OpenAI-compatible server.

The sampler is killed twice with SIGKILL and the server once, in the middle of their work. At the end the store must hold exactly
the planned rows, and every row that was stored before a kill must be unchanged.

    python benchmarks/sampling.py --model smollm2 --server "python -m vllm.entrypoints.openai.api_server \\
        --model FOLDER --served-model-name smollm2 --port {port} --generation-config vllm"
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
from common import LANGUAGE_MODEL, report

from polar_rm.common.config import load_config, to_yaml
from polar_rm.records import read_trajectories
from polar_rm.sampling.config import SamplingConfig
from polar_rm.sampling.plan import make_plan
from polar_rm.sampling.store import Store

KILL_SAMPLER_AT, KILL_SERVER_AT = (0.2, 0.45), 0.65  # of all samples
TIMEOUT_S = 900.0
FORUM = "Posts from an internet forum.\n\nQ: How do I clean a kettle?\nA: lol just chuck some vinegar in there\n\nQ: {prompt}\nA:"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="command that serves on {port}")
    parser.add_argument("--model", required=True, help="the model's name on the server")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--output", type=Path, default=Path("runs/bench_sampling"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = write_config(options, port)
    rows = run(config, options, port)
    report(rows, options.json)


def write_config(options: argparse.Namespace, port: int) -> SamplingConfig:
    decoding = {"max_new_tokens": options.tokens}
    common = {"family": "smollm2", "licence": "Apache-2.0", "decoding": decoding, "samples": options.samples}
    served = {
        "backend": "openai",
        "model": options.model,
        "base_url": f"http://127.0.0.1:{port}/v1",
        "concurrency": 8,
        "retries": 8,
    }
    pirate = "You are a pirate. Answer in one short paragraph, in a pirate's words."
    policies = [
        {"name": "in-process", "kind": "chat", "model": LANGUAGE_MODEL},
        {"name": "served-pirate", "kind": "chat", "system": pirate, **served},
        {"name": "served-base", "kind": "base", "template": FORUM, "stop": ["\nQ:"], **served},
    ]
    prompts = options.output / "prompts.jsonl"
    prompts.write_text((files("polar_rm.quickstart") / "data/prompts.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    values = {"output": options.output / "out", "prompts": str(prompts), "limit": options.prompts, "source": "bench"}
    values |= {"policies": [policy | common for policy in policies], "batch_size": 8}
    config = SamplingConfig.model_validate(values)
    (options.output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return load_config(SamplingConfig, [options.output / "config.yaml"])


def run(config: SamplingConfig, options: argparse.Namespace, port: int) -> list[dict[str, Any]]:
    planned = len(config.policies) * options.prompts * options.samples
    start, server = time.perf_counter(), Server(options.server.format(port=port), port, options.output / "server.log")
    server.wait()
    rows: list[dict[str, Any]] = [{"event": "server ready", "seconds": time.perf_counter() - start}]
    stored: dict[Any, str] = {}
    sampler = None
    try:
        for share in KILL_SAMPLER_AT:
            sampler = Sampler(options.output)
            sampler.wait_for(share * planned)
            sampler.process.send_signal(signal.SIGKILL)
            sampler.process.wait()
            stored = unchanged(config, stored)
            rows.append(
                {"event": "sampler killed", "stored": len(stored), "planned": planned, "seconds": time.perf_counter() - start}
            )
        sampler = Sampler(options.output)
        sampler.wait_for(KILL_SERVER_AT * planned)
        server.kill()
        rows.append(
            {"event": "server killed", "reported": sampler.done(), "planned": planned, "seconds": time.perf_counter() - start}
        )
        server.start()
        code, runs = sampler.process.wait(), 3
        while code:  # the policies gave up before the server was back: the same command continues
            stored = unchanged(config, stored)
            rows.append({"event": f"sampler ended with code {code}", "stored": len(stored), "planned": planned})
            server.wait()
            sampler = Sampler(options.output)
            code, runs = sampler.process.wait(), runs + 1
    finally:
        server.kill()
        if sampler:
            sampler.process.kill()
    rows.append(
        {"event": "finished", **check(config, unchanged(config, stored)), "runs": runs, "seconds": time.perf_counter() - start}
    )
    return [*rows, *speeds(config)]


class Server:
    """The server's command, which can be restarted on the same port."""

    def __init__(self, command: str, port: int, log: Path) -> None:
        self.command, self.url, self.log = shlex.split(command), f"http://127.0.0.1:{port}/v1/models", log
        self.start()

    def start(self) -> None:
        # In its own session, because engines start further processes, which must be killed together.
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(self.url, timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        raise SystemExit(f"the server did not start, see {self.log}")

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Sampler:
    """`polar sample`, run as by a user; its output lines report its progress."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "polar_rm", "sample", str(folder / "config.yaml"), "--json", str(folder / "result.json")]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.counts: dict[str, int] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            print(f"    {line.rstrip()}", flush=True)
            if match := re.match(r"(\S+): (\d+)/\d+ samples", line):
                self.counts[match[1]] = int(match[2])

    def done(self) -> int:
        return sum(self.counts.values())

    def wait_for(self, count: float) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while self.done() < count:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the sampler did not reach {count:.0f} samples; it ended with {self.process.poll()}")
            time.sleep(0.05)


def unchanged(config: SamplingConfig, before: dict[Any, str]) -> dict[Any, str]:
    """All samples in the store, which must include those from before unchanged."""
    with Store.open(config.output) as store:
        samples = {
            (prompt.prompt_id, *key): sample.text
            for prompt in make_plan(config).prompts
            for key, (_, sample) in store.samples_of(prompt.prompt_id).items()
        }
    assert before.items() <= samples.items(), "samples were lost or replaced"
    return samples


def check(config: SamplingConfig, stored: dict[Any, str]) -> dict[str, Any]:
    """Compare the planned requests with the store, the Parquet file and the final failures (a policy may return no text)."""
    plan = make_plan(config)
    planned = {(r.prompt_id, policy, r.sample_id) for policy in plan.shares for r in plan.requests(policy)}
    with Store.open(config.output) as store:
        failed = {(prompt, policy, number) for policy in plan.shares for prompt, number in store.failures(policy, plan.hashes)}
        kinds = Counter(failure.kind for policy in plan.shares for failure in store.failures(policy, plan.hashes).values())
    written = [(row.prompt_id, row.policy, row.sample_id) for row in read_trajectories(config.output / "trajectories.parquet")]
    assert sorted(written) == sorted(stored), "the Parquet file differs from the store"
    assert not failed & set(stored), "a request has a sample and a failure"
    assert failed | set(stored) == planned, "rows are missing, or too many"
    return {"planned": len(planned), "stored": len(stored), "without text": sum(kinds.values()), **kinds}


def speeds(config: SamplingConfig) -> list[dict[str, Any]]:
    """Speeds over all runs, from a loaded policy to its last answer, including the server's absence."""
    result = json.loads((config.output.parent / "result.json").read_text())
    last = {policy["policy"]: policy for policy in result["policies"]}
    rows = []
    with Store.open(config.output) as store:
        for policy in config.policies:
            tokens, seconds = store.throughput(policy.name)
            rows.append(
                {"policy": policy.name, "samples": last[policy.name]["sampled"], "tokens": tokens, "tokens/s": tokens / seconds}
            )
    return rows


if __name__ == "__main__":
    main()
