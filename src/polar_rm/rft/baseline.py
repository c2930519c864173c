"""The baseline of a run: the same starting policy, fine-tuned on the references of the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from polar_rm.common.files import claim_folder, read_json, write_json
from polar_rm.errors import ConfigError
from polar_rm.evaluation.contenders.native import free_memory
from polar_rm.records import Text, flatten
from polar_rm.rft.callbacks import EvaluateCallback, MetricsCallback, OnLog
from polar_rm.rft.checkpoints import remove_incomplete_checkpoints
from polar_rm.rft.config import RftConfig
from polar_rm.rft.data import texts_of
from polar_rm.rft.evaluations import Evaluator, Row
from polar_rm.rft.policy import load_policy, save_policy, train_to_end, trainer_arguments

# The settings that make the budget: of the run, or, for the number of updates, of what it did.
_BUDGET = ("per_device_train_batch_size", "gradient_accumulation_steps")

# The settings that both have, if the baseline sets none. Where and in how many processes TRL computes is a state of the process:
# a second set of settings that says something else would change it for the first.
_SHARED = (
    *("save_steps", "save_strategy", "save_total_limit", "logging_steps", "gradient_checkpointing", "bf16", "fp16"),
    *("use_cpu", "ddp_backend", "ddp_timeout"),
)
_LEARNING_RATE, _ADAPTER_LEARNING_RATE = 2e-5, 2e-4  # TRL's default, and the one that its guide recommends for adapters


@dataclass(frozen=True, slots=True)
class SftRun:
    """A finished baseline. evaluations: rows by step, without step 0, which is that of the run. results: TRL's summary, with
    ``steps``, ``sequences`` (in all updates) and ``passes`` over the references."""

    results: dict[str, Any]
    evaluations: dict[int, list[Row]]


def train_sft(
    config: RftConfig,
    arguments: Any,
    rows: Sequence[Mapping[str, Any]],
    evaluator: Evaluator | None,
    on_log: OnLog,
    *,
    steps: int,
    owner: dict[str, Any] | None,
) -> SftRun:
    """Train and evaluate the baseline in ``OUTPUT/sft``; a finished one is read, and an interrupted one is continued.

    arguments: TRL's settings of the run. rows: its training rows. steps: the number of its updates. owner: what the run depends
    on; None in all processes but the first.

    Raises:
        PolarError: a key is invalid, or the folder holds a baseline of other settings.
    """
    import trl
    from datasets import Dataset

    output = config.output / "sft"
    own = replace(evaluator, folder=output / "evaluation") if evaluator else None
    if owner is not None and config.baseline:
        identity = owner | {"baseline": config.baseline.model_dump(mode="json"), "steps": steps}
        claim_folder(output, identity, "a baseline", alone=True)
        remove_incomplete_checkpoints(output)
    if (output / "run.json").exists():
        return SftRun(read_json(output / "run.json"), own.finished() if own else {})
    free_memory()
    tokenizer, model, lora = load_policy(config)
    settings = sft_arguments(config, arguments, steps=steps)
    examples = [_example(row["prompt"], text, config.policy.kind) for row in rows for text in texts_of(row["reference"])]
    evaluating = EvaluateCallback(own, tokenizer, _named(on_log), starts=False) if own else None
    trainer = trl.SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=settings,
        train_dataset=Dataset.from_list(examples),
        peft_config=lora,
        callbacks=[MetricsCallback(output / "metrics.jsonl", _named(on_log)), *([evaluating] if evaluating else [])],
    )
    results = train_to_end(trainer, evaluating)
    sequences = steps * settings.per_device_train_batch_size * settings.gradient_accumulation_steps * settings.world_size
    results |= {"sequences": sequences, "passes": sequences / len(examples)}
    if trainer.is_world_process_zero():
        save_policy(trainer, tokenizer, output / "policy")
        write_json(output / "run.json", results)
    return SftRun(results, own.finished() if own else {})


def sft_arguments(config: RftConfig, arguments: Any, *, steps: int) -> Any:
    """TRL's settings of the baseline. arguments: those of the run, whose budget it has.

    Raises:
        ConfigError: a key of ``baseline.trainer`` is unknown, has a wrong value, or belongs to the budget.
    """
    import trl

    keys = config.baseline.trainer if config.baseline else {}
    if fixed := next((key for key in keys if key in (*_BUDGET, "max_steps", "num_train_epochs")), None):
        raise ConfigError(f"baseline.trainer.{fixed}: the budget is that of the run: its updates and its sequences in each")
    defaults = {name: getattr(arguments, name) for name in _SHARED if hasattr(arguments, name)}
    defaults["learning_rate"] = _ADAPTER_LEARNING_RATE if config.lora else _LEARNING_RATE
    defaults["max_length"] = None  # TRL would cut references without a word
    budget = {name: getattr(arguments, name) for name in _BUDGET} | {"max_steps": steps}
    fixed_values = {**budget, "output_dir": str(config.output / "sft"), "seed": config.seed}
    return trainer_arguments(trl.SFTConfig, {**defaults, **keys}, fixed_values, "baseline.trainer")


def _example(prompt: Any, reference: Text, kind: str) -> dict[str, Any]:
    """A reference in TRL's prompt-completion format, whose loss is that of the completion alone."""
    if kind == "base":
        return {"prompt": prompt, "completion": flatten(reference)}
    answer = [{"role": "assistant", "content": reference}] if isinstance(reference, str) else reference
    return {"prompt": prompt, "completion": answer}


def _named(on_log: OnLog) -> OnLog:
    """Rows of the baseline are reported as such."""
    return lambda row: on_log({**row, "policy": "sft"})
