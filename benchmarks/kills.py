"""Does a run that is killed repeatedly equal an uninterrupted one? ``polar pretrain`` of a tiny model gets SIGKILL at random
times, and the same command continues. In the end weights and metrics must equal those of an uninterrupted run, bit for bit.

Every attempt is a fork of a process with all imports done, so that kills occur during the work (encoding, loading, training,
saving, exporting) and not during imports. It uses one thread, because sums in another order are rounded differently.

    python benchmarks/kills.py --kills 50
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from polar_rm.cli.main import main as main_of_polar
from polar_rm.training import trainer  # noqa: F401  (imported before the forks)

# Metrics of time and memory, which differ between runs.
TIMED = {"seconds", "tokens_per_second", "pairs_per_second", "memory_gib", "mfu"}


def comparisons(path: Path, count: int) -> None:
    """Write rows whose better candidate repeats the reference's words."""
    rng = random.Random(0)
    words = "fox dog turtle river bank capital country metre lazy quick brown green slow".split()
    rows = []
    for number in range(count):
        reference = " ".join(rng.choices(words, k=rng.randint(2, 12)))
        worse = " ".join(rng.choices("0123456789", k=rng.randint(2, 12)))
        rows.append({"prompt": f"Question {number}?", "reference": reference, "chosen": reference + "!", "rejected": worse})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def small_tokenizer(folder: Path, text: str) -> None:
    """Write a byte-level BPE tokenizer of a few hundred tokens, which loads quickly, so that kills occur elsewhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], bpe)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))


def command(output: Path, data: Path, tokenizer: Path, steps: int) -> list[str]:
    """The command of a run with one checkpoint per step."""
    overrides = [
        "model.preset=1m", f"model.tokenizer={tokenizer}", "model.encoder={max_length: 256, max_response_length: 64}",
        f"data.train=[{data}]", f"output={output}", f"max_steps={steps}", "epochs=1000", "batch_size=8", "optim.lr=1e-3",
        "row_tokens=512", "precision=fp32", "device=cpu", "log.tensorboard=false", "checkpoint_every=1",
    ]  # fmt: skip
    return ["polar", "pretrain", *overrides]


def start(arguments: list[str], log: Path) -> int:
    """Run the command in a fork; returns the process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 2)
            sys.argv = arguments
            main_of_polar()
            code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        os._exit(code)


def wait_for(process: int, timeout: float | None) -> int | None:
    """The exit code of a process, negative for a signal, or None after the timeout."""
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        pid, status = os.waitpid(process, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            return None
        time.sleep(0.002)


def state_of(output: Path) -> str:
    """The state of a run when it was killed."""
    if (output / "run.json").exists():
        return "finished"
    if (output / "model").exists() or list(output.glob(".model.*")):
        return "exporting"
    if list(output.glob("checkpoints/.step-*")):
        return "saving"
    if list(output.glob("checkpoints/step-*")):
        return "training or starting again"
    return "encoding" if list(output.glob("data/.*")) else "before the first checkpoint"


def result(output: Path) -> dict[str, Any]:
    """Hashes of the weights and of all metrics except those of time and memory."""
    weights = hashlib.sha256((output / "model/model.safetensors").read_bytes()).hexdigest()
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in step.items() if key not in TIMED} for step in steps]
    return {"weights": weights, "steps": len(steps), "metrics": hashlib.sha256(json.dumps(kept).encode()).hexdigest()}


def run(kills: int, steps: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run once without kills, then repeatedly with kills until all are used; returns the counts."""
    data, tokenizer = folder / "train.jsonl", folder / "tokenizer"
    comparisons(data, 64)
    small_tokenizer(tokenizer, data.read_text())
    start_time = time.monotonic()
    log = folder / "log"
    if wait_for(start(command(folder / "whole", data, tokenizer, steps), log), None) != 0:
        raise SystemExit(log.read_text())
    duration = time.monotonic() - start_time
    expected = result(folder / "whole")
    rng = random.Random(seed)
    states: Counter[str] = Counter()
    runs = unequal = damaged = leftovers = 0
    while sum(states.values()) < kills:
        output = folder / f"killed-{runs}"
        while True:
            process = start(command(output, data, tokenizer, steps), log)
            code = wait_for(process, rng.uniform(0, duration) if sum(states.values()) < kills else None)
            if code is None:
                os.kill(process, signal.SIGKILL)
                code = wait_for(process, None)
                states[state_of(output)] += 1
                print(f"kill {sum(states.values())}: {state_of(output)}", file=sys.stderr, flush=True)
            damaged += "damaged" in log.read_text()
            if code == 0:
                break
            if code and code > 0:
                raise SystemExit(f"the same command did not continue: {log.read_text()}")
        runs += 1
        unequal += result(output) != expected
        leftovers += len([path for path in output.rglob(".*") if path.suffix in (".partial", ".old")])
    return {
        "kills": sum(states.values()),
        "where": dict(states),
        "runs": runs,
        "runs that differ from the uninterrupted one": unequal,
        "told of damage": damaged,
        "leftovers": leftovers,
        "seconds of an uninterrupted run": round(duration, 1),
        **expected,
    }


def main() -> None:
    """Print the counts as JSON; exit with 1 if a run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = run(arguments.kills, arguments.steps, arguments.seed, Path(folder))
    print(json.dumps(counts, indent=2))
    sys.exit(1 if counts["runs that differ from the uninterrupted one"] else 0)


if __name__ == "__main__":
    main()
