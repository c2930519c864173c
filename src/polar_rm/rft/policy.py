"""The policy of a run: loaded, trained by one of TRL's trainers, saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, set_seed

from polar_rm.common.config import suggestion
from polar_rm.common.files import atomic_directory, read_json
from polar_rm.common.processes import n_started
from polar_rm.common.text import first_line
from polar_rm.errors import ConfigError, PolarError
from polar_rm.model.bars import without_bars
from polar_rm.model.devices import compute_dtype, pick_device
from polar_rm.model.language_models import load_causal_lm
from polar_rm.records import flatten
from polar_rm.rft.callbacks import EvaluateCallback
from polar_rm.rft.checkpoints import last_checkpoint, step_of
from polar_rm.rft.config import RftConfig
from polar_rm.rft.data import RftData, messages
from polar_rm.rft.monitor import Monitor
from polar_rm.training.lora import adapter_settings


def load_policy(config: RftConfig) -> tuple[Any, Any, Any]:
    """The tokenizer and the model of the starting policy in float32, and the adapter's settings (None: all weights are trained).

    Raises:
        PolarError: the model can't be loaded.
    """
    # With bf16, TRL computes in copies of these weights.
    tokenizer, model = load_causal_lm(config.policy.model, config.policy.gguf_file, torch.float32)
    lora = config.lora and adapter_settings(config.lora, target_modules="all-linear", task_type="CAUSAL_LM")
    set_seed(config.seed)  # for PEFT's random adapter; TRL sets this seed itself from version 1.15 on
    return tokenizer, model, lora


def check_prompts(config: RftConfig, tokenizer: Any, data: RftData) -> None:
    """Check that the policy's chat template renders every prompt that is a conversation: TRL would stop in the midst of training.

    Raises:
        PolarError: there is no chat template, or it refuses a prompt.
    """
    is_chat = config.policy.kind == "chat"
    prompts = [row["prompt"] for row in data.train]
    prompts += [messages(task.prompt) if is_chat else task.prompt for task in data.held_out]
    conversations = [prompt for prompt in prompts if not isinstance(prompt, str)]
    if not tokenizer.chat_template and (is_chat or conversations):
        way = "policy.kind=base needs none" if is_chat else "policy.kind=base needs none where prompts are strings"
        raise PolarError(f"{config.policy.model}: the model has no chat template; {way}")
    for prompt in conversations:
        try:
            tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program and may raise any exception
            text = " ".join(flatten(prompt).split())
            raise PolarError(
                f"{config.policy.model}: its chat template refuses the prompt {text:.60}: {first_line(error)}"
            ) from error


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
    return {**results, "steps": step}


@without_bars()
def save_policy(trainer: Any, tokenizer: Any, target: Path) -> None:
    """Save the trained policy, with its adapter merged."""
    policy = trainer.accelerator.unwrap_model(trainer.model)
    with atomic_directory(target) as folder:
        (policy.merge_and_unload() if hasattr(policy, "merge_and_unload") else policy).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def describe_machine(keys: Mapping[str, Any]) -> str:
    """A plan's words for where and in which precision TRL computes. keys: those of a config's ``trainer``."""
    settings = {**_machine_settings(keys), **keys}
    device = "cpu (trainer.use_cpu)" if settings.get("use_cpu") else pick_device("auto")
    return f"{device}, {'bfloat16' if settings['bf16'] else 'float16' if settings.get('fp16') else 'float32'}"


def _machine_settings(keys: Mapping[str, Any]) -> dict[str, bool]:
    """What the machine decides of TRL's settings. Without a GPU TRL wants to be told so, except where several processes were
    started: only the user knows how these talk to each other."""
    device = pick_device("auto")
    bf16 = compute_dtype("auto", device) == torch.bfloat16 and not keys.get("fp16")
    use_cpu = device == "cpu" and n_started() == 1
    return {"bf16": bf16} | ({"use_cpu": True} if use_cpu else {})


def trainer_arguments(kind: type, keys: Mapping[str, Any], fixed: Mapping[str, Any], where: str = "trainer") -> Any:
    """TRL's settings from a config's keys. fixed: settings that a config can't change. where: the keys' place in the config.

    Raises:
        ConfigError: a key is unknown (with a suggestion) or has a wrong value.
    """
    allowed = {field.name for field in fields(kind)} - fixed.keys()
    for key in keys:
        if key not in allowed:
            raise ConfigError(f"{where}.{key}: not a key of {kind.__name__} that can be set here{suggestion(key, allowed)}")
    defaults = {**_machine_settings(keys), "report_to": "none", "logging_steps": 1, "disable_tqdm": True}
    try:
        arguments = kind(**{**defaults, **keys, **fixed})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error
    if arguments.fsdp or arguments.deepspeed:
        raise ConfigError(f"{where}: fsdp and deepspeed are not supported; for sharded training use verl or OpenRLHF")
    if n_started() != arguments.world_size:
        raise ConfigError(
            f"{where}: {n_started()} processes were started, but TRL sees {arguments.world_size}; without GPUs set use_cpu: true "
            "and ddp_backend: gloo"
        )
    return arguments
