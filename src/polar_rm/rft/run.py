"""``polar rft``: reinforcement fine-tuning of a policy on one machine, by TRL's GRPO or RLOO with a reward model.

For larger scale use verl or OpenRLHF, with the adapters in this folder.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, set_seed

from polar_rm.common.config import suggestion
from polar_rm.common.extras import needs
from polar_rm.common.files import atomic_directory, claim_folder, read_json, sha256, write_json
from polar_rm.common.locks import owned
from polar_rm.common.manifests import check_manifest
from polar_rm.common.provenance import versions
from polar_rm.errors import ConfigError, PolarError
from polar_rm.model.devices import compute_dtype, pick_device
from polar_rm.model.language_models import load_causal_lm, model_folder
from polar_rm.records import OnBadRow, Text, find_files, read_referenced_prompts, side_file
from polar_rm.rft.config import RftConfig
from polar_rm.rft.trl import PolarReward
from polar_rm.training.lora import adapter_settings
from polar_rm.training.metrics import JsonlSink

_log = logging.getLogger("polar_rm.rft")

OnLog = Callable[[dict[str, Any]], None]


def run(config: RftConfig, on_log: OnLog = lambda row: None) -> dict[str, Any]:
    """Train, save the policy, and return TRL's summary. on_log: called with every row of ``metrics.jsonl``.

    Raises:
        PolarError: a package is missing, a key or a row is invalid, a model can't be loaded, an item has no reward, or the output
            folder belongs to other settings, data or models, or is in use.
    """
    with needs("rft", "polar rft"):
        import datasets  # noqa: F401
        import trl
    for source in config.data:
        check_manifest(source)
    arguments = _arguments(getattr(trl, f"{config.algorithm.upper()}Config"), config)
    rows = read_rows(config)
    reward = config.reward.open()
    is_first = int(os.environ.get("RANK", "0")) == 0
    with owned(config.output, "rft") if is_first else nullcontext():
        if is_first:
            claim_folder(config.output, identity(config), "a fine-tuned policy")
            remove_incomplete_checkpoints(config.output)
        return _train(config, arguments, rows, reward, on_log)


def _train(config: RftConfig, arguments: Any, rows: list[dict[str, Any]], reward: PolarReward, on_log: OnLog) -> dict[str, Any]:
    import trl
    from datasets import Dataset

    # With bf16, TRL computes in copies of these weights.
    tokenizer, model = load_causal_lm(config.policy.model, config.policy.gguf_file, torch.float32)
    if config.policy.kind == "chat" and not tokenizer.chat_template:
        raise PolarError(f"{config.policy.model}: the model has no chat template; policy.kind=base needs none")
    lora = config.lora and adapter_settings(config.lora, target_modules="all-linear", task_type="CAUSAL_LM")
    set_seed(config.seed)  # for PEFT's random adapter; TRL sets this seed itself from version 1.15 on
    trainer = getattr(trl, f"{config.algorithm.upper()}Trainer")(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        peft_config=lora,
        callbacks=[_Metrics(config.output / "metrics.jsonl", on_log)],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_checkpoint(config.output)
    results = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics
    if trainer.is_world_process_zero():
        policy = trainer.accelerator.unwrap_model(trainer.model)
        with atomic_directory(config.output / "policy") as folder:
            (policy.merge_and_unload() if lora else policy).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        write_json(
            config.output / "run.json",
            {"config": config.model_dump(mode="json"), "results": results, "trl": trl.__version__, **versions()},
        )
    return dict(results)


def identity(config: RftConfig) -> dict[str, Any]:
    """What a run depends on: its settings, and the contents of its data, its policy and its reward model.

    Files may change between two runs under the same name. A reward server is identified by its address alone.

    Raises:
        PolarError: a file or model does not exist.
    """
    reward = config.reward.encoder if config.reward.is_url else Path(config.reward.source)
    return config.model_dump(mode="json") | {
        "files": {
            "data": [sha256(file) for source in config.data for file in find_files(source)],
            "policy": sha256(model_folder(config.policy.model)),
            "reward": sha256(reward) if reward else None,
        }
    }


def checkpoints(output: Path) -> dict[Path, bool]:
    """TRL's checkpoints by step, and whether each is complete, which means that it has ``trainer_state.json``, the last file."""
    result: dict[Path, bool] = {}
    folders = (path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal())
    for folder in sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-"))):
        try:
            read_json(folder / "trainer_state.json")
        except PolarError:
            result[folder] = False
        else:
            result[folder] = True
    return result


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


class _Metrics(TrainerCallback):  # type: ignore[misc]
    """Writes every row that TRL logs. In a resumed run, the rows after the checkpoint are replaced."""

    def __init__(self, path: Path, on_log: OnLog) -> None:
        self.path, self.report = path, on_log
        self.sink: JsonlSink | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.sink = JsonlSink(self.path, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.sink:
            row = state.log_history[-1]
            self.sink.write(row["step"], {name: value for name, value in row.items() if name != "step"})
            self.report(row)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.sink:
            self.sink.close()


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


def read_rows(config: RftConfig) -> list[dict[str, Any]]:
    """The data in TRL's format: prompts of a chat policy are lists of messages.

    Raises:
        PolarError: a row is bad, a column mixes strings and messages, or a file lies in the output folder.
    """
    for source in config.data:
        find_files(source, [config.output])
    bad = OnBadRow(config.on_bad_row, side_file(config.output / "data"))
    rows = [
        {
            "prompt": _messages(prompt) if config.policy.kind == "chat" else prompt,
            "reference": reference,
            "wrapper": wrapper or config.reward.wrapper,
        }
        for prompt, reference, wrapper in read_referenced_prompts(config.data, bad)
    ]
    for column in ("prompt", "reference"):
        if len({isinstance(row[column], str) for row in rows}) > 1:
            raise PolarError(
                f"data: field {column!r} is a string in some rows and a list of messages in others; a table needs one"
            )
    return rows


def _messages(prompt: Text) -> Text:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    # In a table all messages get the keys of all other messages, and chat templates would render the missing values.
    return [{"role": message["role"], "content": message["content"]} for message in prompt]
