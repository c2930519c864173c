"""Is a run that is killed, again and again, the run that is not? ``polar pretrain`` of a tiny model gets SIGKILL at random
moments, then the same command goes on; in the end weights and metrics must equal those of an uninterrupted run, bit for bit.

Every attempt is a fork of one process that has only imported: so kills fall into work (encoding, loading, training, saving,
exporting) and not into imports. One thread, since sums of another order round otherwise.

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

# Not equal from run to run: they are about time and memory.
TIMED = {"seconds", "tokens_per_second", "pairs_per_second", "memory_gib", "mfu"}


def comparisons(path: Path, count: int) -> None:
    """Rows whose better candidate repeats the reference's words."""
    rng = random.Random(0)
    words = "fox dog turtle river bank capital country metre lazy quick brown green slow".split()
    rows = []
    for number in range(count):
        reference = " ".join(rng.choices(words, k=rng.randint(2, 12)))
        worse = " ".join(rng.choices("0123456789", k=rng.randint(2, 12)))
        rows.append({"prompt": f"Question {number}?", "reference": reference, "chosen": reference + "!", "rejected": worse})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def small_tokenizer(folder: Path, text: str) -> None:
    """A byte-level BPE of a few hundred tokens: read in a moment, so that kills fall into other things."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], bpe)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))


def command(output: Path, data: Path, tokenizer: Path, steps: int) -> list[str]:
    """A run with a checkpoint a step."""
    overrides = [
        "model.preset=1m", f"model.tokenizer={tokenizer}", "model.encoder={max_length: 256, max_response_length: 64}",
        f"data.train=[{data}]", f"output={output}", f"max_steps={steps}", "epochs=1000", "batch_size=8", "optim.lr=1e-3",
        "row_tokens=512", "precision=fp32", "device=cpu", "log.tensorboard=false", "checkpoint_every=1",
    ]  # fmt: skip
    return ["polar", "pretrain", *overrides]


def start(arguments: list[str], log: Path) -> int:
    """The command in a fork; its process id."""
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


def ended(process: int, within: float | None) -> int | None:
    """The exit code, negative for a signal; None where it has not ended in time."""
    until = None if within is None else time.monotonic() + within
    while True:
        pid, status = os.waitpid(process, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            return None
        time.sleep(0.002)


def state_of(output: Path) -> str:
    """Where a run was when it was killed."""
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
    """Hashes of the weights and of all metrics that are not about time."""
    weights = hashlib.sha256((output / "model/model.safetensors").read_bytes()).hexdigest()
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in step.items() if key not in TIMED} for step in steps]
    return {"weights": weights, "steps": len(steps), "metrics": hashlib.sha256(json.dumps(kept).encode()).hexdigest()}


def run(kills: int, steps: int, seed: int, folder: Path) -> dict[str, Any]:
    """One run in peace, then runs under fire until all kills are used up; the figures."""
    data, tokenizer = folder / "train.jsonl", folder / "tokenizer"
    comparisons(data, 64)
    small_tokenizer(tokenizer, data.read_text())
    began = time.monotonic()
    log = folder / "log"
    if ended(start(command(folder / "whole", data, tokenizer, steps), log), None) != 0:
        raise SystemExit(log.read_text())
    life = time.monotonic() - began
    expected = result(folder / "whole")
    rng = random.Random(seed)
    moments: Counter[str] = Counter()
    runs = unequal = damaged = leftovers = 0
    while sum(moments.values()) < kills:
        output = folder / f"killed-{runs}"
        while True:
            process = start(command(output, data, tokenizer, steps), log)
            code = ended(process, rng.uniform(0, life) if sum(moments.values()) < kills else None)
            if code is None:
                os.kill(process, signal.SIGKILL)
                code = ended(process, None)
                moments[state_of(output)] += 1
                print(f"kill {sum(moments.values())}: {state_of(output)}", file=sys.stderr, flush=True)
            damaged += "damaged" in log.read_text()
            if code == 0:
                break
            if code and code > 0:
                raise SystemExit(f"the same command did not go on: {log.read_text()}")
        runs += 1
        unequal += result(output) != expected
        leftovers += len([path for path in output.rglob(".*") if path.suffix in (".partial", ".old")])
    return {
        "kills": sum(moments.values()),
        "where": dict(moments),
        "runs": runs,
        "runs that differ from the uninterrupted one": unequal,
        "told of damage": damaged,
        "leftovers": leftovers,
        "seconds of an uninterrupted run": round(life, 1),
        **expected,
    }


def main() -> None:
    """Print the figures as JSON; exit with 1 where a run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(arguments.kills, arguments.steps, arguments.seed, Path(folder))
    print(json.dumps(figures, indent=2))
    sys.exit(1 if figures["runs that differ from the uninterrupted one"] else 0)


if __name__ == "__main__":
    main()
