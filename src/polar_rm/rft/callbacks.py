"""What happens while TRL trains: metrics are written, limits are watched, the policy is evaluated."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from polar_rm.rft.evaluations import Evaluator, Row, means
from polar_rm.rft.monitor import Monitor
from polar_rm.sampling.backends.generation import TransformersBackend
from polar_rm.training.metrics import JsonlSink

OnLog = Callable[[dict[str, Any]], None]


class MetricsCallback(TrainerCallback):  # type: ignore[misc]
    """Writes every row that TRL logs. In a resumed run, the rows after the checkpoint are replaced."""

    def __init__(self, path: Path, report: OnLog) -> None:
        self.path, self.report = path, report
        self.sink: JsonlSink | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the file."""
        if state.is_world_process_zero:
            self.sink = JsonlSink(self.path, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the newest row."""
        if self.sink:
            row = state.log_history[-1]
            self.sink.write(row["step"], {name: value for name, value in row.items() if name != "step"})
            self.report(row)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Finish the file."""
        if self.sink:
            self.sink.close()


class MonitorCallback(TrainerCallback):  # type: ignore[misc]
    """Tells every event of a monitor, and ends the training at one that stops, with a checkpoint.

    All processes log the same rows, so they end at the same step.
    """

    def __init__(self, monitor: Monitor, tell: Callable[[str], None]) -> None:
        self.monitor, self.tell = monitor, tell

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read the newest row."""
        for event in self.monitor.read(state.log_history[-1:]):
            if state.is_world_process_zero:
                self.tell(event["reason"])
        if self.monitor.stopped:
            control.should_save = control.should_training_stop = True


class EvaluateCallback(TrainerCallback):  # type: ignore[misc]
    """Evaluates the policy before the training (unless ``is_continued``: the starting policy is known) and every N steps.

    A step's policy is evaluated when the next step begins, behind the step's checkpoint: an evaluation that is interrupted is
    continued from that checkpoint by the same policy.
    """

    def __init__(self, evaluator: Evaluator, tokenizer: Any, report: OnLog, *, starts: bool = True) -> None:
        self.evaluator, self.tokenizer, self.report, self.starts = evaluator, tokenizer, report, starts
        settings = evaluator.config.evaluate
        self.every = settings.every if settings else 0

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Evaluate the policy of the last step, if it is due."""
        step = state.global_step
        if (step == 0 and self.starts) or (step and self.every and step % self.every == 0):
            self.evaluate(step, model, args, is_first=state.is_world_process_zero)

    def evaluate(self, step: int, model: Any, args: Any, *, is_first: bool = True) -> list[Row]:
        """Evaluate a model in memory. is_first: whether this is the first process; the others wait in their next collective."""
        if not is_first:
            return []
        evaluator = self.evaluator
        was_there = evaluator.path(step).exists()
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's layers are inside the base model
        device = next(base.parameters()).device.type
        batch_size = evaluator.config.evaluate.batch_size if evaluator.config.evaluate else 1
        with (
            same_randomness(),
            torch.autocast(device, torch.bfloat16) if args.bf16 else nullcontext(),
            TransformersBackend.around(evaluator.policy(), self.tokenizer, base, batch_size) as backend,
        ):
            rows = evaluator.evaluate(step, lambda: backend)
        if not was_there:
            self.report({"step": step, **{f"held_out/{name}": value for name, value in means(rows).items()}})
        return rows


@contextmanager
def same_randomness() -> Iterator[None]:
    """Within the block random numbers may be drawn; afterwards all generators are as before, so that training doesn't notice."""
    python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(of_numpy)
