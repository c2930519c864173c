"""``polar rft``: reinforcement fine-tuning of a policy on one machine, by TRL's GRPO or RLOO with a reward model.

For larger scale use verl or OpenRLHF, with the adapters in this folder.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, set_seed

from polar_rm.common.config import suggestion
from polar_rm.common.extras import needs
from polar_rm.common.files import atomic_directory, claim_folder, read_json, sha256, write_json
from polar_rm.common.locks import owned
from polar_rm.common.manifests import check_manifest
from polar_rm.common.provenance import versions
from polar_rm.errors import ConfigError, PolarError
from polar_rm.model.devices import compute_dtype, pick_device
from polar_rm.model.language_models import load_causal_lm, model_folder
from polar_rm.records import find_files
from polar_rm.rft.callbacks import EvaluateCallback, MetricsCallback, MonitorCallback, OnLog
from polar_rm.rft.comparison import before_and_after
from polar_rm.rft.config import RftConfig
from polar_rm.rft.data import RftData, read_data
from polar_rm.rft.evaluations import Evaluator, open_judges
from polar_rm.rft.monitor import Monitor
from polar_rm.rft.trl import PolarReward
from polar_rm.training.lora import adapter_settings

_log = logging.getLogger("polar_rm.rft")


def run(config: RftConfig, on_log: OnLog = lambda row: None) -> dict[str, Any]:
    """Train, save the policy, and return the results: TRL's summary, ``held_out`` with the comparison of before and after, and
    ``stopped`` if a limit of the monitor ended the run. Then its checkpoint is kept and no policy is saved.

    on_log: called with every row of ``metrics.jsonl``, and with the means of every evaluation (``held_out/JUDGE``).

    Raises:
        PolarError: a package is missing, a key or a row is invalid, a model can't be loaded, an item has no reward, or the output
            folder belongs to other settings, data or models, or is in use.
    """
    with needs("rft", "polar rft"):
        import datasets  # noqa: F401
        import trl
    for source in (*config.data, *(config.evaluate.data if config.evaluate else ())):
        check_manifest(source)
    arguments = _arguments(getattr(trl, f"{config.algorithm.upper()}Config"), config)
    if config.monitor.kl and not arguments.beta:
        raise ConfigError("monitor.kl: TRL measures no KL divergence with trainer.beta 0; set trainer.beta, or remove the limit")
    judges = open_judges(config)
    data = read_data(config, judges)
    for note in data.notes:
        _log.warning("%s", note)
    reward = config.reward.open()
    is_first = int(os.environ.get("RANK", "0")) == 0
    with owned(config.output, "rft") if is_first else nullcontext():
        if is_first:
            claim_folder(config.output, identity(config), "a fine-tuned policy")
            remove_incomplete_checkpoints(config.output)
        evaluator = None
        if config.evaluate:
            folder = config.output / "evaluation"
            evaluator = Evaluator(folder, config, data.held_out, judges, arguments.max_completion_length, reward)
        return _train(config, arguments, data, reward, evaluator, on_log)


def _train(
    config: RftConfig, arguments: Any, data: RftData, reward: PolarReward, evaluator: Evaluator | None, on_log: OnLog
) -> dict[str, Any]:
    import trl
    from datasets import Dataset

    tokenizer, model, lora = load_policy(config)
    monitor = Monitor(config.monitor)
    evaluating = EvaluateCallback(evaluator, tokenizer, on_log) if evaluator else None
    trainer = getattr(trl, f"{config.algorithm.upper()}Trainer")(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(data.train),
        peft_config=lora,
        callbacks=[
            MetricsCallback(config.output / "metrics.jsonl", on_log),
            MonitorCallback(monitor, lambda reason: _log.warning("monitor: %s", reason)),
            *([evaluating] if evaluating else []),
        ],
    )
    results = train_to_end(trainer, evaluating, monitor)
    if stopped := monitor.stopped:
        results["stopped"] = dict(stopped)
    if trainer.is_world_process_zero():
        if not stopped:
            save_policy(trainer, tokenizer, config.output / "policy")
        if evaluator:
            results["held_out"] = before_and_after(evaluator.finished(), seed=config.seed)
        write_json(
            config.output / "run.json",
            {
                "config": config.model_dump(mode="json"),
                "results": results,
                "notes": data.notes,
                "prompts": len(data.train),
                "trl": trl.__version__,
                **versions(),
            },
        )
    return results


def load_policy(config: RftConfig) -> tuple[Any, Any, Any]:
    """The tokenizer and the model of the starting policy in float32, and the adapter's settings (None: all weights are trained).

    Raises:
        PolarError: the model can't be loaded, or a chat policy has no chat template.
    """
    # With bf16, TRL computes in copies of these weights.
    tokenizer, model = load_causal_lm(config.policy.model, config.policy.gguf_file, torch.float32)
    if config.policy.kind == "chat" and not tokenizer.chat_template:
        raise PolarError(f"{config.policy.model}: the model has no chat template; policy.kind=base needs none")
    lora = config.lora and adapter_settings(config.lora, target_modules="all-linear", task_type="CAUSAL_LM")
    set_seed(config.seed)  # for PEFT's random adapter; TRL sets this seed itself from version 1.15 on
    return tokenizer, model, lora


def train_to_end(trainer: Any, evaluating: EvaluateCallback | None, monitor: Monitor | None = None) -> dict[str, Any]:
    """Train from the last checkpoint to the end, evaluate the trained policy, and return the trainer's summary.

    monitor: reads the rows before the checkpoint; where its limits stopped the run there, nothing is trained.
    """
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_checkpoint(Path(trainer.args.output_dir))
    if evaluating and trainer.is_world_process_zero():
        evaluating.evaluator.forget_after(step_of(checkpoint) if checkpoint else 0)
    state = read_json(checkpoint / "trainer_state.json") if checkpoint else {}
    if monitor:
        monitor.read(state.get("log_history", []))
    has_ended = state.get("max_steps") and state["global_step"] >= state["max_steps"]
    if checkpoint and (has_ended or (monitor and monitor.stopped)):
        # The run ended before its policy was saved or evaluated. From its last checkpoint the trainer would go one step further.
        trainer._load_from_checkpoint(str(checkpoint))
        step, results = int(state["global_step"]), state["log_history"][-1]
    else:
        results = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics
        step = trainer.state.global_step
    if evaluating:
        evaluating.evaluate(step, trainer.model, trainer.args, is_first=trainer.is_world_process_zero())
    return dict(results)


def save_policy(trainer: Any, tokenizer: Any, target: Path) -> None:
    """Save the trained policy, with its adapter merged."""
    policy = trainer.accelerator.unwrap_model(trainer.model)
    with atomic_directory(target) as folder:
        (policy.merge_and_unload() if hasattr(policy, "merge_and_unload") else policy).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def identity(config: RftConfig) -> dict[str, Any]:
    """What a run depends on: its settings but for the monitor's limits, and the contents of its data and models.

    Files may change between two runs under the same name. A reward server is identified by its address alone.

    Raises:
        PolarError: a file or model does not exist.
    """
    reward = config.reward.encoder if config.reward.is_url else Path(config.reward.source)
    return config.model_dump(mode="json", exclude={"monitor"}) | {
        "files": {
            "data": [sha256(file) for source in config.data for file in find_files(source)],
            "held_out": [sha256(file) for source in config.evaluate.data for file in find_files(source)]
            if config.evaluate
            else None,
            "judges": {judge.title: judge.identity() for judge in config.evaluate.judges} if config.evaluate else None,
            "policy": sha256(model_folder(config.policy.model)),
            "reward": sha256(reward) if reward else None,
        }
    }


def checkpoints(output: Path) -> dict[Path, bool]:
    """TRL's checkpoints by step, and whether each is complete, which means that it has ``trainer_state.json``, the last file."""
    result: dict[Path, bool] = {}
    folders = (path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal())
    for folder in sorted(folders, key=step_of):
        try:
            read_json(folder / "trainer_state.json")
        except PolarError:
            result[folder] = False
        else:
            result[folder] = True
    return result


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def last_checkpoint(output: Path) -> Path | None:
    """The checkpoint from which a run continues, or None for a new run."""
    return next((folder for folder, is_complete in reversed(checkpoints(output).items()) if is_complete), None)


def remove_incomplete_checkpoints(output: Path) -> None:
    """Remove checkpoints that a kill left incomplete, because TRL itself would continue from the highest number."""
    for folder, is_complete in checkpoints(output).items():
        if not is_complete:
            _log.warning(
                "%s: removed, because it is incomplete (no trainer_state.json); the checkpoint before it is used", folder
            )
            shutil.rmtree(folder)


def _arguments(kind: type, config: RftConfig) -> Any:
    """TRL's settings. Raises ConfigError with a suggestion for a mistyped key."""
    fixed = {"output_dir": str(config.output), "seed": config.seed}
    allowed = {field.name for field in fields(kind)} - fixed.keys()
    for key in config.trainer:
        if key not in allowed:
            raise ConfigError(f"trainer.{key}: not a key of {kind.__name__} that can be set here{suggestion(key, allowed)}")
    bf16 = compute_dtype("auto", pick_device("auto")) == torch.bfloat16
    defaults = {"bf16": bf16 and not config.trainer.get("fp16"), "report_to": "none", "logging_steps": 1, "disable_tqdm": True}
    try:
        arguments = kind(**{**defaults, **config.trainer, **fixed})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"trainer: {error}") from error
    if arguments.fsdp or arguments.deepspeed:
        raise ConfigError("trainer: fsdp and deepspeed are not supported; for sharded training use verl or OpenRLHF")
    return arguments
