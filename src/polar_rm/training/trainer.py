"""The loop of ``polar pretrain`` and ``polar finetune``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from rich.console import Console

from polar_rm.common import provenance
from polar_rm.common.files import write_json
from polar_rm.common.locks import owned
from polar_rm.common.progress import plain_console, progress_bar, say
from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import ConfigError, NonFinite
from polar_rm.model.devices import compute_dtype
from polar_rm.model.layers import checkpoint_activations, compile_layers
from polar_rm.model.packing import PackedRow, batches, deal, first_fit, pack
from polar_rm.training import metrics, state
from polar_rm.training.config import TrainConfig
from polar_rm.training.data import EncodedCorpus
from polar_rm.training.lora import add_lora, merge_lora
from polar_rm.training.losses import count_units, loss_sum, pair_indices, penalty_sum
from polar_rm.training.parallel import Weights, World, fill_shards, world
from polar_rm.training.plan import Plan
from polar_rm.training.prepare import Prepared, prepare, start_model
from polar_rm.training.schedule import learning_rate
from polar_rm.training.signals import StopRequested, stop_signals
from polar_rm.training.totals import Totals

# A rank without a row in a micro-step still takes part in FSDP's collectives, with this tree and a loss of zero.
_IDLE = PrefixTree([0], [[0], [0]], (0, 1))

# Rows for compiled layers are filled up to a multiple of so many tokens.
_MULTIPLE = 64


class Trainer:
    """Everything that a run holds. ``fit`` is the loop; one optimiser step is ``optimize``."""

    def __init__(
        self, config: TrainConfig, where: World, prepared: Prepared | None = None, *, console: Console | None = None
    ) -> None:
        """prepared: of this config and world; prepared now if it is left out."""
        self.config, self.where = config, where
        self.console = console or plain_console(stderr=True)
        self.prepared = prepared or prepare(config, where, console=self.console)
        self.train_set, self.eval_set, self.plan = self.prepared.train_set, self.prepared.eval_set, self.prepared.plan
        self.compute = compute_dtype(config.precision, where.device.type)
        self.model, source = start_model(config, self.prepared.blueprint, where)
        if config.lora:
            for model in filter(None, (self.model, source)):
                add_lora(model, config.lora, config.seed)
        self._compiled = config.compile and compile_layers(self.model.backbone, self.compute)
        if config.activation_checkpointing:
            checkpoint_activations(self.model.backbone)
        self.weights = Weights(self.model, where, self.compute)
        if where.size > 1:
            tensors = [*source.named_parameters(), *source.named_buffers()] if source else []
            fill_shards(self.model, dict(tensors) if source else None, where.device)
            self.weights.rebind()
        self.optimizer = torch.optim.AdamW(
            self.weights.named.values(),
            lr=self.plan.peak_lr,
            betas=config.optim.betas,
            eps=config.optim.eps,
            weight_decay=config.optim.weight_decay,
            fused=where.size == 1,
        )
        self.step = 0
        self.results: dict[str, Any] = {}  # of the newest step and evaluation; travels with checkpoints
        self.line: dict[str, Any] = {}  # of the newest step in metrics.jsonl; travels, too, should the file be cut

    def fit(self) -> dict[str, Any]:
        """Run to the end, or continue an interrupted run to the end; returns what ``run.json`` records under ``results``."""
        config, plan = self.config, self.plan
        self._resume()
        sinks = metrics.open_sinks(config, self.step, self.line, self._report) if self.where.is_main else []
        steps = batches(len(self.train_set), plan.batch_size, seed=config.seed, start_step=self.step)
        peak = metrics.peak_flops(self.where.device, self.compute)
        with progress_bar(self.console, enabled=self.where.is_main) as bar, stop_signals() as stop:
            self.where.heed(lambda: stop.requested)
            task = bar.add_task(config.output.name, total=plan.steps, completed=self.step, status="")
            while self.step < plan.steps:
                began = time.perf_counter()
                values = self.optimize(next(steps).tolist())
                values["mfu"] = values.pop("flops") / (time.perf_counter() - began) / peak / self.where.size
                self.step += 1
                self.results |= {"steps": self.step, "train": dict(values)}
                last = self.step == plan.steps
                if self.eval_set and (last or (config.eval_every and self.step % config.eval_every == 0)):
                    self.results["eval"] = self._evaluated(self.eval_set)
                    values |= {f"eval_{name}": value for name, value in self.results["eval"].items()}
                self.line = {"step": self.step, **values}
                for sink in sinks:
                    sink.write(self.step, values)
                bar.update(task, completed=self.step, status=f"loss {values['loss']:.3f} acc {values['accuracy']:.3f}")
                stopping = any(self.where.sum([float(stop.requested)]))
                if (config.checkpoint_every and self.step % config.checkpoint_every == 0) or last or stopping:
                    for sink in sinks:
                        sink.sync()
                    self.save()
                if stopping and not last:
                    raise StopRequested(f"stopped at step {self.step} of {plan.steps}; the same command continues")
        for sink in sinks:
            sink.close()
        self._finish()
        if any(self.where.gather(stop.requested)):  # in the last step: whoever called must not go on to further work
            raise StopRequested(f"stopped; {config.output} is finished")
        return self.results

    def optimize(self, indices: list[int]) -> dict[str, float]:
        """One optimiser step on one global batch of comparisons."""
        began = time.perf_counter()
        torch.manual_seed(dropout_seed(self.config.seed, self.step, self.where.rank))  # nothing else is random
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.plan.steps, self.plan.peak_lr, self.config.optim)
        totals = self._backward(indices)
        # The one place of a step that waits for the device: nothing is stepped before it is known to be finite.
        values = self._read(totals, self.weights.clip(self.config.optim.clip))
        if not math.isfinite(norm := values["grad_norm"]):
            raise NonFinite(f"step {self.step + 1}: the gradient's norm is {norm} on {self._describe(indices)}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.weights.publish()
        seconds = time.perf_counter() - began
        values |= {"lr": self.optimizer.param_groups[0]["lr"], "seconds": seconds}
        values |= {"tokens_per_second": values["tokens"] / seconds, "pairs_per_second": values["pairs"] / seconds}
        values["memory_gib"] = metrics.peak_memory(self.where.device)
        return values

    def accumulate(self, indices: list[int]) -> dict[str, float]:
        """Add up the gradients of the mean loss over a global batch; every rank computes the same plan for it."""
        return self._read(self._backward(indices))

    def _backward(self, indices: list[int]) -> Totals:
        """Forwards and backwards, row by row; nothing in here waits for the device."""
        trees = self._trees(indices)
        # The loss is divided by what the *whole* batch holds, so rows with many pairs weigh more, as they should.
        units = sum(count_units([tree.ranks], self.config.loss) for tree in trees.values())
        candidates = sum(len(tree.ranks) for tree in trees.values())
        totals = Totals(self.where.device)
        for own in self._own_rows({i: tree.n_tokens for i, tree in trees.items()}):
            row = self._row([trees[i] for i in own])
            pairs = pair_indices(row.ranks, self.where.device)
            scores = self.model(row)
            loss = loss_sum(scores, pairs, self.config.loss) / units + penalty_sum(scores, self.config.loss) / candidates
            # FSDP averages gradients over ranks; the division above already was global.
            (loss * (self.where.size if own else 0)).backward()
            if own:
                totals.add(own, loss, scores, pairs, row.layout.n_tokens)
                totals.flops += metrics.training_flops(self.model.backbone.config, row.layout, self.config.lora)
        return totals

    def _row(self, trees: Sequence[PrefixTree]) -> PackedRow:
        """Trees on their way to the device, or where there are none, the idle one."""
        return pack(trees or [_IDLE], multiple=_MULTIPLE if self._compiled else 1).to(self.where.device)

    def _read(self, totals: Totals, norm: torch.Tensor | None = None) -> dict[str, float]:
        """What a batch added up to, over all ranks.

        Raises:
            NonFinite: the loss of a row of any rank, on all ranks; the others would wait for it in the next collective.
        """
        values, not_finite = totals.read(self.where, norm)
        if not_finite:
            own = totals.offending()
            found = f"the loss is {own[0]} on {self._describe(own[1])}" if own else None
            first = next(filter(None, self.where.gather(found)))
            raise NonFinite(f"step {self.step + 1}: {first}")
        return values

    @torch.no_grad()
    def evaluate(self, corpus: EncodedCorpus) -> dict[str, float]:
        """Loss, accuracy and margin on a whole corpus."""
        self.model.eval()
        totals = Totals(self.where.device)
        chunk = 64 * max(1, self.config.row_tokens // corpus.stats.longest)
        for start in range(0, len(corpus), chunk):
            for own in self._own_rows({i: int(corpus.lengths[i]) for i in range(start, min(start + chunk, len(corpus)))}):
                row = self._row([corpus[i] for i in own])
                pairs = pair_indices(row.ranks, self.where.device)
                scores = self.model(row)
                if own:
                    totals.add(own, loss_sum(scores, pairs, self.config.loss), scores, pairs, row.layout.n_tokens)
                    totals.units += count_units(row.ranks, self.config.loss)
        self.model.train()
        values = totals.read(self.where).values
        return {name: values[name] for name in ("loss", "accuracy", "margin")}

    def _evaluated(self, corpus: EncodedCorpus) -> dict[str, float]:
        """:meth:`evaluate`, checked.

        Raises:
            NonFinite: a value is not finite; names the comparisons whose scores are not.
        """
        values = self.evaluate(corpus)
        if wrong := [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]:
            found = [i for each in self.where.gather(self._without_score(corpus)) for i in each]
            raise NonFinite(f"step {self.step}: evaluation: {', '.join(wrong)} on {describe(corpus, sorted(found))}")
        return values

    @torch.no_grad()
    def _without_score(self, corpus: EncodedCorpus) -> list[int]:
        """This rank's comparisons among the first ones that have a score that is not finite (collective)."""
        self.model.eval()
        found = []
        for own in self._own_rows(dict(enumerate(corpus.lengths.tolist()))):
            scores = self.model(self._row([corpus[i] for i in own]))
            sizes = [len(corpus[i].ranks) for i in own]
            found += [i for i, part in zip(own, scores[: sum(sizes)].split(sizes), strict=True) if not part.isfinite().all()]
        self.model.train()
        return found

    def save(self) -> None:
        """A checkpoint of the run, from which it continues exactly."""
        meta = {"identity": self._identity(), "results": self.results, "line": self.line}
        folder = self.config.output / "checkpoints"
        state.save(folder, self.step, self.weights, self.optimizer, meta, self.where, self.config.keep_checkpoints)

    def _resume(self) -> None:
        self.model.train()
        folder = self.config.output / "checkpoints"

        def find() -> dict[str, Any] | None:
            found = state.newest(folder, self._report)
            return {"name": found[0].name, **found[1]} if found else None

        meta = self.where.from_main(find)
        if meta is None:
            return
        path = folder / meta["name"]
        changed = [key for key, value in self._identity().items() if meta["identity"].get(key) != value]
        if changed:
            raise ConfigError(
                f"{path}: this run was started with another {', '.join(changed)}; use the old settings or another output folder"
            )
        state.load(path, meta["step"], self.weights, self.optimizer, self.where)
        self.step, self.results, self.line = int(meta["step"]), meta["results"], meta["line"]
        if self.where.is_main:
            self._report(f"resuming {self.config.output} behind step {self.step}")

    def _report(self, message: str) -> None:
        say(self.console, message)

    def _identity(self) -> dict[str, Any]:
        """What must not change between the parts of a run. How it is computed may: world size, row budget, precision, logging."""
        config = self.config.model_dump(mode="json", include={"model", "optim", "loss", "lora", "epochs", "max_steps", "seed"})
        return config | {
            "base": self.prepared.base,
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

    def _describe(self, indices: Sequence[int]) -> str:
        return describe(self.train_set, indices)

    def _finish(self) -> None:
        """Export the native checkpoint and write ``run.json``; rank 0 may take its time."""
        full = self.weights.full_state()
        self.where.from_main(lambda: self._export(full))

    def _export(self, full: dict[str, torch.Tensor]) -> None:
        merged = merge_lora(self.model, full) if self.config.lora else full
        self.model.mark_trained(embeddings=not self.config.lora)
        self.model.save(self.config.output / "model", merged)
        write_json(
            self.config.output / "run.json",
            {
                "config": self.config.model_dump(mode="json"),
                "plan": asdict(self.plan),
                "data": self.prepared.inputs,
                "bad_rows": {
                    name: corpus.rejected for name, corpus in (("train", self.train_set), ("eval", self.eval_set)) if corpus
                },
                "encoder_hash": self.model.encoder.hash,
                "seed": self.config.seed,
                **provenance.versions(),
                "results": self.results,
            },
        )


def describe(corpus: EncodedCorpus, indices: Sequence[int]) -> str:
    """Where comparisons came from, the first eight of them."""
    named = "; ".join(corpus.describe(i) for i in indices[:8])
    return named + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Of a step's dropout masks: a function of its arguments alone, whatever Python and numpy run it."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def train(config: TrainConfig, *, verb: str = "pretrain", console: Console | None = None) -> dict[str, Any]:
    """Run a config to its end; under ``torchrun`` every rank calls this. verb: what others are told who want the same output.

    Raises:
        PolarError: another process works on this output, bad settings or data, a full disk.
    """
    with world(config.device) as where, _owner(config, where, verb):
        prepared = prepare(config, where, console=console)
        return Trainer(config, where, prepared, console=console).fit()


def plan(config: TrainConfig, *, verb: str = "pretrain", console: Console | None = None) -> Plan:
    """What :func:`train` would do. Encodes the data; loads no weights and trains nothing."""
    with world(config.device) as where, _owner(config, where, verb):
        return prepare(config, where, console=console).plan


def _owner(config: TrainConfig, where: World, verb: str) -> AbstractContextManager[None]:
    """Rank 0 owns the output for all; if it can't, all end with its message."""
    return owned(config.output, verb) if where.is_main else nullcontext()
