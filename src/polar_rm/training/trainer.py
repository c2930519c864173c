"""The loop of ``polar pretrain`` and ``polar finetune``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from polar_rm.common import provenance
from polar_rm.common.files import sha256, write_json
from polar_rm.common.progress import progress_bar
from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import ConfigError, NonFinite
from polar_rm.model.devices import compute_dtype
from polar_rm.model.language_models import model_folder
from polar_rm.model.packing import batches, deal, first_fit, pack
from polar_rm.records import OnBadRow
from polar_rm.training import metrics, state
from polar_rm.training.config import TrainConfig
from polar_rm.training.data import EncodedCorpus, encode_corpus
from polar_rm.training.lora import add_lora, merge_lora
from polar_rm.training.losses import count_units, loss_sum, penalty_sum
from polar_rm.training.parallel import Weights, World, world
from polar_rm.training.plan import Plan, make_plan
from polar_rm.training.prepare import build_model
from polar_rm.training.schedule import learning_rate
from polar_rm.training.signals import StopRequested, stop_signals
from polar_rm.training.totals import Totals

# A rank without a row in a micro-step still takes part in FSDP's collectives, with this tree and a loss of zero.
_IDLE = PrefixTree([0], [[0], [0]], (0, 1))


class Trainer:
    """Everything that a run holds. ``fit`` is the loop; one optimiser step is ``optimize``."""

    def __init__(self, config: TrainConfig, where: World, *, console: Console | None = None) -> None:
        self.config, self.where = config, where
        self.console = console or Console(stderr=True, soft_wrap=True)
        self.compute = compute_dtype(config.precision, where.device.type)
        self.model = build_model(config, where)
        self.train_set = self._encode(config.data.train, "train")
        self.eval_set = self._encode(config.data.eval, "eval") if config.data.eval else None
        self.plan = make_plan(config, self.model, self.train_set)
        if config.lora:
            add_lora(self.model, config.lora, config.seed)
        if config.activation_checkpointing:
            backbone = self.model.backbone  # transformers 5 renames the method, 4 has only the old name
            enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        if config.compile:
            # Whole layers would compile again for every layout; these parts hold nearly all element-wise work.
            for layer in self.model.backbone.base_model.layers:
                for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
                    part.compile(dynamic=True)
        self.weights = Weights(self.model, where, self.compute)
        self.optimizer = torch.optim.AdamW(
            self.weights.named.values(),
            lr=self.plan.peak_lr,
            betas=config.optim.betas,
            eps=config.optim.eps,
            weight_decay=config.optim.weight_decay,
            fused=where.size == 1,
        )
        # Checkpoints of adapters rest on weights that they don't hold.
        base = config.model.resume_from or config.model.init
        self._base = sha256(model_folder(base)) if config.lora and base else None
        self.step = 0
        self.results: dict[str, Any] = {}  # of the newest step and evaluation; travels with checkpoints

    def fit(self) -> dict[str, Any]:
        """Run to the end, or continue an interrupted run to the end; returns what ``run.json`` records under ``results``."""
        config, plan = self.config, self.plan
        self._resume()
        sinks = metrics.open_sinks(config, self.step) if self.where.main else []
        steps = batches(len(self.train_set), plan.batch_size, seed=config.seed, start_step=self.step)
        peak = metrics.peak_flops(self.where.device, self.compute)
        with progress_bar(self.console, enabled=self.where.main) as bar, stop_signals() as stop:
            task = bar.add_task(config.output.name, total=plan.steps, completed=self.step, status="")
            while self.step < plan.steps:
                began = time.perf_counter()
                values = self.optimize(next(steps).tolist())
                values["mfu"] = values.pop("flops") / (time.perf_counter() - began) / peak / self.where.size
                self.step += 1
                self.results |= {"steps": self.step, "train": dict(values)}
                last = self.step == plan.steps
                if self.eval_set and (last or (config.eval_every and self.step % config.eval_every == 0)):
                    self.results["eval"] = self.evaluate(self.eval_set)
                    values |= {f"eval_{name}": value for name, value in self.results["eval"].items()}
                for sink in sinks:
                    sink.write(self.step, values)
                bar.update(task, completed=self.step, status=f"loss {values['loss']:.3f} acc {values['accuracy']:.3f}")
                stopping = any(self.where.sum([float(stop.requested)]))
                if (config.checkpoint_every and self.step % config.checkpoint_every == 0) or last or stopping:
                    self.save()
                if stopping and not last:
                    raise StopRequested(f"stopped at step {self.step} of {plan.steps}; the same command continues")
        for sink in sinks:
            sink.close()
        self._finish()
        if any(self.where.sum([float(stop.requested)])):  # in the last step: whoever called must not go on to further work
            raise StopRequested(f"stopped; {config.output} is finished")
        return self.results

    def optimize(self, indices: list[int]) -> dict[str, float]:
        """One optimiser step on one global batch of comparisons."""
        began = time.perf_counter()
        torch.manual_seed(hash((self.config.seed, self.step, self.where.rank)) % 2**63)  # for dropout; nothing else is random
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.plan.steps, self.plan.peak_lr, self.config.optim)
        values = self.accumulate(indices)
        norm = self.weights.clip(self.config.optim.clip)
        if not math.isfinite(norm):
            raise NonFinite(f"step {self.step + 1}: the gradient's norm is {norm} on {self._describe(indices)}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.weights.publish()
        seconds = time.perf_counter() - began
        values |= {"grad_norm": norm, "lr": self.optimizer.param_groups[0]["lr"], "seconds": seconds}
        values |= {"tokens_per_second": values["tokens"] / seconds, "pairs_per_second": values["pairs"] / seconds}
        values["memory_gib"] = metrics.peak_memory(self.where.device)
        return values

    def accumulate(self, indices: list[int]) -> dict[str, float]:
        """Add up the gradients of the mean loss over a global batch; every rank computes the same plan for it."""
        trees = self._trees(indices)
        # The loss is divided by what the *whole* batch holds, so rows with many pairs weigh more, as they should.
        units = sum(count_units([tree.ranks], self.config.loss) for tree in trees.values())
        candidates = sum(len(tree.ranks) for tree in trees.values())
        totals = Totals()
        for own in self._own_rows({i: tree.n_tokens for i, tree in trees.items()}):
            row = pack([trees[i] for i in own] or [_IDLE]).to(self.where.device)
            scores = self.model(row)
            loss = loss_sum(scores, row.ranks, self.config.loss) / units + penalty_sum(scores, self.config.loss) / candidates
            if not torch.isfinite(loss):
                raise NonFinite(f"step {self.step + 1}: the loss is {loss.item()} on {self._describe(own)}")
            # FSDP averages gradients over ranks; the division above already was global.
            (loss * (self.where.size if own else 0)).backward()
            if own:
                totals.add(loss.detach(), scores.detach(), row)
                totals.flops += metrics.training_flops(self.model.backbone.config, row.layout, self.config.lora)
        return totals.reduce(self.where)

    @torch.no_grad()
    def evaluate(self, corpus: EncodedCorpus) -> dict[str, float]:
        """Loss, accuracy and margin on a whole corpus."""
        self.model.eval()
        totals = Totals()
        chunk = 64 * max(1, self.config.row_tokens // corpus.stats.longest)
        for start in range(0, len(corpus), chunk):
            for own in self._own_rows({i: int(corpus.lengths[i]) for i in range(start, min(start + chunk, len(corpus)))}):
                row = pack([corpus[i] for i in own] or [_IDLE]).to(self.where.device)
                scores = self.model(row)
                if own:
                    totals.add(loss_sum(scores, row.ranks, self.config.loss), scores, row)
                    totals.units += count_units(row.ranks, self.config.loss)
        self.model.train()
        values = totals.reduce(self.where)
        return {name: values[name] for name in ("loss", "accuracy", "margin")}

    def save(self) -> None:
        """A checkpoint of the run, from which it continues exactly."""
        meta = {"identity": self._identity(), "results": self.results}
        folder = self.config.output / "checkpoints"
        state.save(folder, self.step, self.weights, self.optimizer, meta, self.where, self.config.keep_checkpoints)

    def _resume(self) -> None:
        path = state.latest(self.config.output / "checkpoints")
        self.model.train()
        if path is None:
            return
        meta = state.read_meta(path)
        changed = [key for key, value in self._identity().items() if meta["identity"].get(key) != value]
        if changed:
            raise ConfigError(
                f"{path}: this run was started with another {', '.join(changed)}; use the old settings or another output folder"
            )
        state.load(path, self.weights, self.optimizer, self.where)
        self.step, self.results = int(meta["step"]), meta["results"]
        if self.where.main:
            self.console.print(f"resuming {self.config.output} behind step {self.step}")

    def _identity(self) -> dict[str, Any]:
        """What must not change between the parts of a run. How it is computed may: world size, row budget, precision, logging."""
        config = self.config.model_dump(mode="json", include={"model", "optim", "loss", "lora", "epochs", "max_steps", "seed"})
        return config | {
            "base": self._base,
            "batch_size": self.plan.batch_size,
            "data": self.train_set.digest,
            "identical_steps": self.config.data.identical_steps,
            "encoder": self.model.encoder.hash,
        }

    def _trees(self, indices: Sequence[int]) -> dict[int, PrefixTree]:
        """The step's comparisons by their index; which of them have an identical candidate is a function of (seed, step)."""
        trees = {i: self.train_set[i] for i in indices}
        share = 1 - self.step / self.config.data.identical_steps if self.config.data.identical_steps else 0.0
        drawn = np.random.default_rng([self.config.seed, self.step]).random(len(trees)) < share
        return {
            i: self.model.encoder.with_identical(tree) if chosen else tree
            for (i, tree), chosen in zip(trees.items(), drawn, strict=True)
        }

    def _own_rows(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """This rank's row of every micro-step, as keys of ``lengths`` (tokens); empty where other ranks still have one."""
        indices, sizes = list(lengths), list(lengths.values())
        rows = first_fit(sizes, self.config.row_tokens)
        for ranks in deal(rows, sizes, self.where.size):
            yield [indices[i] for i in ranks[self.where.rank]]

    def _encode(self, paths: list[Path], name: str) -> EncodedCorpus:
        """The main rank encodes, the others open its file."""
        options: dict[str, Any] = {"empty_reference": self.config.data.reference == "empty"}
        skip = self.config.data.on_bad_row == "skip"
        bad = OnBadRow("skip", self.config.output / f"{name}.rejected.jsonl") if skip else None
        if self.where.main:
            with self.console.status(f"encoding {name} data") as status:
                encode_corpus(
                    paths,
                    self.model.encoder,
                    self.config.output / "data",
                    on_bad_row=bad,
                    progress=lambda n: status.update(f"encoding {name} data: {n:,} comparisons"),
                    **options,
                )
            if bad and bad.count:
                self.console.print(f"{bad.count} bad rows of the {name} data were skipped, see {bad.side_file}")
        self.where.barrier()
        return encode_corpus(paths, self.model.encoder, self.config.output / "data", on_bad_row=bad, **options)

    def _describe(self, indices: Sequence[int]) -> str:
        named = "; ".join(self.train_set.describe(i) for i in indices[:8])
        return named + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")

    def _finish(self) -> None:
        """Export the native checkpoint and write ``run.json``."""
        full = self.weights.full_state()
        if self.where.main:
            merged = merge_lora(self.model, full) if self.config.lora else full
            self.model.save(self.config.output / "model", merged)
            write_json(
                self.config.output / "run.json",
                {
                    "config": self.config.model_dump(mode="json"),
                    "plan": asdict(self.plan),
                    "data": {str(path): sha256(path) for path in [*self.config.data.train, *self.config.data.eval]},
                    "encoder_hash": self.model.encoder.hash,
                    "seed": self.config.seed,
                    **provenance.versions(),
                    "results": self.results,
                },
            )
        self.where.barrier()


def train(config: TrainConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Run a config to its end; under ``torchrun`` every rank calls this."""
    with world(config.device) as where:
        return Trainer(config, where, console=console).fit()


def plan(config: TrainConfig, *, console: Console | None = None) -> Plan:
    """What :func:`train` would do; encodes the data and builds the model, trains nothing."""
    with world(config.device) as where:
        return Trainer(config, where, console=console).plan
