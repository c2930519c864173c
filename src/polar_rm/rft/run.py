"""``polar rft``: reinforcement fine-tuning of a policy on one machine, by TRL's GRPO or RLOO with a reward model.

For larger scale use verl or OpenRLHF, with the adapters in this folder.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polar_rm.common.files import claim_folder, is_claimed, read_json, sha256, write_json
from polar_rm.common.locks import owned
from polar_rm.common.manifests import check_manifest
from polar_rm.common.outputs import FOUND, output_line
from polar_rm.common.processes import is_main_rank
from polar_rm.common.provenance import versions
from polar_rm.common.sources import model_folder
from polar_rm.errors import ConfigError
from polar_rm.records import find_files, side_file
from polar_rm.rft.baseline import SftRun, sft_arguments, train_sft
from polar_rm.rft.callbacks import EvaluateCallback, MetricsCallback, MonitorCallback, OnLog
from polar_rm.rft.checkpoints import last_checkpoint, remove_incomplete_checkpoints, step_of
from polar_rm.rft.config import RftConfig
from polar_rm.rft.data import RftData, read_data
from polar_rm.rft.evaluations import Evaluator, open_judges
from polar_rm.rft.monitor import Monitor
from polar_rm.rft.packages import require_packages
from polar_rm.rft.page import write_page
from polar_rm.rft.policy import check_prompts, load_policy, save_policy, train_to_end, trainer_arguments
from polar_rm.rft.report import Finished, build_report
from polar_rm.rft.trl import PolarReward

_HOLDS = "a fine-tuned policy"
_log = logging.getLogger("polar_rm.rft")


@dataclass(frozen=True, slots=True)
class _Run:
    """What both policies of a run share. arguments: TRL's settings of the reinforcement fine-tuning."""

    config: RftConfig
    arguments: Any
    data: RftData
    reward: PolarReward
    evaluator: Evaluator | None
    on_log: OnLog


def run(config: RftConfig, on_log: OnLog = lambda row: None) -> dict[str, Any]:
    """Train, save the policy, train the baseline, write the report, and return the results.

    These are TRL's summary; ``held_out``, the comparison of before and after; ``baseline``, that of the two policies; and
    ``stopped`` if a limit of the monitor ended the run. Then its checkpoint is kept, no policy is saved and no baseline trained.

    on_log: called with every row of ``metrics.jsonl``, and with the means of every evaluation (``held_out/JUDGE``).

    Raises:
        PolarError: a package is missing, a key or a row is invalid, a model can't be loaded, an item has no reward, or the output
            folder belongs to other settings, data or models, or is in use.
    """
    require_packages(config)
    for source in (*config.data, *(config.evaluate.data if config.evaluate else ())):
        check_manifest(source)
    arguments = trl_arguments(config)
    is_first = is_main_rank()
    with owned(config.output, "rft") if is_first else nullcontext():
        judges = open_judges(config)
        data = read_data(config, judges, side_file(config.output) if is_first else None)
        for note in data.notes:
            _log.warning("%s", note)
        reward = config.reward.open()
        if is_first:
            claim_folder(config.output, identity(config), _HOLDS, alone=True)
            remove_incomplete_checkpoints(config.output)
        evaluator = None
        if config.evaluate:
            folder = config.output / "evaluation"
            evaluator = Evaluator(folder, config, data.held_out, judges, arguments.max_completion_length, reward)
        return _run(_Run(config, arguments, data, reward, evaluator, on_log), is_first=is_first)


def trl_arguments(config: RftConfig) -> Any:
    """TRL's settings of the reinforcement fine-tuning; those of the baseline are checked, too.

    Raises:
        ConfigError: a key is unknown or has a wrong value.
    """
    import trl

    fixed = {"output_dir": str(config.output), "seed": config.seed}
    arguments = trainer_arguments(getattr(trl, f"{config.algorithm.upper()}Config"), config.trainer, fixed)
    if config.monitor.kl and not arguments.beta:
        raise ConfigError("monitor.kl: TRL measures no KL divergence with trainer.beta 0; set trainer.beta, or remove the limit")
    if config.baseline:
        sft_arguments(config, arguments, steps=1)  # a mistyped key is told before the training
    return arguments


def _run(job: _Run, *, is_first: bool) -> dict[str, Any]:
    config = job.config
    monitor = Monitor(config.monitor)
    results = _train(job, monitor)
    if is_first:
        _write(job, monitor, results)
    if config.baseline and not monitor.stopped:
        sft = train_sft(
            config,
            job.arguments,
            job.data.train,
            job.evaluator,
            job.on_log,
            steps=results["steps"],
            owner=identity(config) if is_first else None,
        )
        if is_first:
            _write(job, monitor, results, sft)
    return results


def _train(job: _Run, monitor: Monitor) -> dict[str, Any]:
    import trl
    from datasets import Dataset

    config = job.config
    tokenizer, model, lora = load_policy(config)
    check_prompts(config, tokenizer, job.data)
    evaluating = EvaluateCallback(job.evaluator, tokenizer, job.on_log) if job.evaluator else None
    trainer = getattr(trl, f"{config.algorithm.upper()}Trainer")(
        model=model,
        processing_class=tokenizer,
        reward_funcs=job.reward,
        args=job.arguments,
        train_dataset=Dataset.from_list(job.data.train),
        peft_config=lora,
        callbacks=[
            MetricsCallback(config.output / "metrics.jsonl", job.on_log),
            MonitorCallback(monitor, lambda reason: _log.warning("monitor: %s", reason)),
            *([evaluating] if evaluating else []),
        ],
    )
    results = train_to_end(trainer, evaluating, monitor)
    if trainer.is_world_process_zero() and not monitor.stopped and not _is_saved(config, results["steps"]):
        save_policy(trainer, tokenizer, config.output / "policy")
    return results


def _write(job: _Run, monitor: Monitor, results: dict[str, Any], sft: SftRun | None = None) -> None:
    """Write the report and ``run.json``, and add to the results what the report says."""
    import trl

    config = job.config
    finished = Finished(results["steps"], job.evaluator.finished() if job.evaluator else {}, monitor.events, job.data, sft)
    report = build_report(config, finished)
    results |= {name: report[name] for name in ("held_out", "baseline", "stopped") if report[name]}
    results["sentences"] = report["sentences"]
    write_json(config.output / "report.json", report)
    write_page(config.output / "report.html", report, config.monitor.absolute())
    settings = config.model_dump(mode="json")
    described = {"config": settings, "results": results, "notes": job.data.notes, "prompts": len(job.data.train)}
    write_json(config.output / "run.json", {**described, "trl": trl.__version__, **versions()})


def describe_output(config: RftConfig) -> str:
    """A plan's line about the output folder: whether the run would start, continue after which step, or is finished. Nothing is
    changed.

    Raises:
        PolarError: the folder holds something else, or a policy of other settings.
    """
    state, checkpoint = FOUND["new"], last_checkpoint(config.output)
    if is_claimed(config.output, lambda: identity(config), _HOLDS, alone=True) and checkpoint:
        step = f"step {step_of(checkpoint):,}"
        state = (
            f"{step} was the last; the run writes its report again" if _is_finished(config) else f"the run continues after {step}"
        )
    return output_line(config.output, state)


def _is_saved(config: RftConfig, steps: int) -> bool:
    """Whether an earlier call saved the policy of this step: it is not replaced, because the user may have added files."""
    return _last_step(config) == steps and (config.output / "policy/config.json").exists()


def _is_finished(config: RftConfig) -> bool:
    """Whether neither the policy nor its baseline has steps left; a run that the monitor stopped has."""
    return _last_step(config) is not None and not (config.baseline and not (config.output / "sft/run.json").exists())


def _last_step(config: RftConfig) -> int | None:
    """The step at which an earlier call ended the training of the policy; None if it did not, or if the monitor stopped it."""
    path = config.output / "run.json"
    results = read_json(path)["results"] if path.exists() else {"stopped": None}
    return None if "stopped" in results else results["steps"]


def identity(config: RftConfig) -> dict[str, Any]:
    """What a run depends on: its settings but for limits and baseline, and the contents of its data and models.

    Files may change between two runs under the same name. A reward server is identified by its address alone.

    Raises:
        PolarError: a file or model does not exist.
    """
    reward = config.reward.encoder if config.reward.is_url else Path(config.reward.source)
    return config.model_dump(mode="json", exclude={"monitor", "baseline"}) | {
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
