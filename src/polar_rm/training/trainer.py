"""The training loop of ``polar pretrain`` and ``polar finetune``."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from rich.console import Console

from polar_rm.attention.layout import TreeLayout
from polar_rm.common import provenance
from polar_rm.common.checksums import describe_files
from polar_rm.common.files import write_json
from polar_rm.common.locks import owned
from polar_rm.common.progress import plain_console, say, show_progress
from polar_rm.encoded.corpus import EncodedCorpus
from polar_rm.encoded.order import batches
from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import ConfigError, NonFinite
from polar_rm.model.devices import compute_dtype
from polar_rm.model.layers import checkpoint_activations, compile_layers
from polar_rm.model.packing import pack
from polar_rm.publishing.card import model_card, write_card
from polar_rm.training import metrics, state
from polar_rm.training.cluster import check_cluster
from polar_rm.training.config import TrainConfig
from polar_rm.training.lora import add_lora, merge_lora
from polar_rm.training.losses import Pairs, count_items, loss_sum, pair_indices, penalty_sum
from polar_rm.training.parallel import Weights, World, fill_shards, join_world
from polar_rm.training.plan import Plan, check_room
from polar_rm.training.prepare import Prepared, plan_for, prepare, start_model
from polar_rm.training.resume import check_identity, describe_output, identity, is_finished
from polar_rm.training.rows import Row, RowMaker, Step, ahead
from polar_rm.training.schedule import learning_rate
from polar_rm.training.signals import StopRequested, stop_signals
from polar_rm.training.splitting import backward_in_parts, parts_of
from polar_rm.training.totals import Totals

LossOf = Callable[[torch.Tensor, Pairs], torch.Tensor]


class Trainer:
    """The state of a run. ``fit`` is the loop; ``optimize`` is one optimiser step."""

    def __init__(
        self, config: TrainConfig, world: World, prepared: Prepared | None = None, *, console: Console | None = None
    ) -> None:
        """Load the model and set up the optimiser. prepared: the result of ``prepare``, which is called if it is left out."""
        self.config, self.world = config, world
        self.console = console or plain_console(stderr=True)
        self.prepared = prepared or prepare(config, world, console=self.console)
        self.train_set, self.eval_set, self.plan = self.prepared.train_set, self.prepared.eval_set, self.prepared.plan
        self.compute = compute_dtype(config.precision, world.device.type)
        check_room(self.plan, str(world.device), n_ranks=world.size, n_here=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self.model, source = start_model(config, self.prepared.blueprint, world)
        if config.lora:
            for model in filter(None, (self.model, source)):
                add_lora(model, config.lora, config.seed)
        compiled = config.compile and compile_layers(self.model.backbone, self.compute)
        self.rows = RowMaker(config, world, self.model.encoder, compiled)
        if config.activation_checkpointing:
            every = config.activation_checkpointing is True
            checkpoint_activations(self.model.backbone, None if every else int(config.activation_checkpointing))
        self.weights = Weights(self.model, world, self.compute, config.shard_ranks)
        if world.size > 1:
            tensors = [*source.named_parameters(), *source.named_buffers()] if source else []
            fill_shards(self.model, dict(tensors) if source else None, world.device)
            self.weights.rebind()
        self.optimizer = torch.optim.AdamW(
            self.weights.named.values(),
            lr=self.plan.peak_lr,
            betas=config.optim.betas,
            eps=config.optim.eps,
            weight_decay=config.optim.weight_decay,
            fused=True,  # one pass over memory instead of a dozen, for shards as well
        )
        self.step = 0
        self._upcoming: Iterator[Step | Row] | None = None  # made by a thread within ``fit``
        self._waited = 0.0  # seconds that this step has waited for rows
        self.results: dict[str, Any] = {}  # of the last step and evaluation; saved in checkpoints
        self.last_line: dict[str, Any] = {}  # the last step's line in metrics.jsonl; saved, too, to repair a truncated file

    def fit(self) -> dict[str, Any]:
        """Run to the end, or continue an interrupted run to the end; returns ``results`` of ``run.json``.

        Of a finished run nothing is changed: its model may have got a calibration, or files of the user.
        """
        config, plan = self.config, self.plan
        self._resume()
        if self.world.from_main(lambda: is_finished(config, self.prepared, self.step)):
            if self.world.is_main:
                self._report(f"{config.output}: all {self.step:,} steps are done and the model is saved; nothing is changed")
            return self.results
        sinks = metrics.open_sinks(config, self.step, self.last_line, self._report) if self.world.is_main else []
        steps, again = (self._batches() for _ in range(2))
        made = self.rows.steps(self.train_set, islice(((step, each.tolist()) for step, each in again), plan.steps - self.step))
        peak = metrics.peak_flops(self.world.device, self.compute)
        showing = show_progress(self.console, unit="steps", enabled=self.world.is_main)
        with showing as progress, stop_signals() as stop, ahead(made) as self._upcoming:
            self.world.set_stop(lambda: stop.requested)
            progress(config.output.name, self.step, plan.steps)
            while self.step < plan.steps:
                start = time.perf_counter()
                values = self.optimize(next(steps)[1].tolist())
                values["mfu"] = values["flops"] / (time.perf_counter() - start) / peak / self.world.size
                self.step += 1
                self.results |= {"steps": self.step, "train": dict(values)}
                last = self.step == plan.steps
                if self.eval_set and (last or (config.eval_every and self.step % config.eval_every == 0)):
                    self.results["eval"] = self._evaluate_checked(self.eval_set)
                    values |= {f"eval_{name}": value for name, value in self.results["eval"].items()}
                self.last_line = {"step": self.step, **values}
                for sink in sinks:
                    sink.write(self.step, values)
                status = f"loss {values['loss']:.3f}, accuracy {values['accuracy']:.3f}"
                progress(config.output.name, self.step, plan.steps, status)
                stopping = any(self.world.sum([float(stop.requested)]))
                if (config.checkpoint_every and self.step % config.checkpoint_every == 0) or last or stopping:
                    for sink in sinks:
                        sink.sync()
                    self.save()
                if stopping and not last:
                    raise StopRequested(f"stopped at step {self.step} of {plan.steps}; the same command continues")
        self._upcoming = None
        for sink in sinks:
            sink.close()
        self._finish()
        if any(self.world.gather(stop.requested)):  # in the last step: the caller must not continue with other work
            raise StopRequested(f"stopped; {config.output} is finished")
        return self.results

    def _batches(self) -> Iterator[tuple[int, np.ndarray]]:
        """(step, indices) of this step and all that follow."""
        return enumerate(
            batches(len(self.train_set), self.plan.batch_size, seed=self.config.seed, start_step=self.step), self.step
        )

    def optimize(self, indices: list[int]) -> dict[str, float]:
        """One optimiser step on one global batch of comparisons."""
        start = time.perf_counter()
        torch.manual_seed(dropout_seed(self.config.seed, self.step, self.world.rank))  # for dropout; nothing else is random
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.plan.steps, self.plan.peak_lr, self.config.optim)
        totals = self._backward(indices)
        # Only this line of a step waits for the device: the optimiser steps only after loss and gradient are known to be finite.
        values = self._read(totals, self.weights.clip(self.config.optim.clip))
        if not math.isfinite(norm := values["grad_norm"]):
            raise NonFinite(f"step {self.step + 1}: the gradient's norm is {norm} on {self._describe(indices)}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.weights.update_copies()
        seconds = time.perf_counter() - start
        values |= {"lr": self.optimizer.param_groups[0]["lr"], "seconds": seconds, "data_seconds": self._waited}
        values |= {"tokens_per_second": values["tokens"] / seconds, "pairs_per_second": values["pairs"] / seconds}
        values["memory_gib"] = metrics.peak_memory(self.world.device)
        return values

    def accumulate(self, indices: list[int]) -> dict[str, float]:
        """Accumulate the gradients of the mean loss over a global batch; every rank computes the same distribution of rows."""
        return self._read(self._backward(indices))

    def _backward(self, indices: list[int]) -> Totals:
        """Forward and backward, row by row; nothing here waits for the device."""
        rows = self._upcoming or self.rows.steps(self.train_set, [(self.step, indices)])
        self._waited = 0.0
        step = self._next(rows)
        assert isinstance(step, Step)
        assert step.indices == indices
        totals = Totals(self.world.device)

        def loss_of(scores: torch.Tensor, pairs: Pairs) -> torch.Tensor:
            """The share of some comparisons in the mean loss of the batch."""
            loss = loss_sum(scores, pairs, self.config.loss) / step.items
            return loss + penalty_sum(scores, self.config.loss) / step.candidates

        for _ in range(step.n_rows):
            in_row, row = self._next(rows)  # type: ignore[misc]
            row = row.to(self.world.device)
            pairs = pair_indices(row.ranks, self.world.device)
            scores = self.model(row)
            loss = loss_of(scores, pairs)
            # FSDP averages gradients over ranks, but the division above is global already.
            (loss * (self.world.size if in_row else 0)).backward()
            if in_row:
                self._count(totals, in_row, row.layout, loss, scores, pairs)
        if step.split:
            self._backward_split(step.split, loss_of, totals)
        return totals

    def _backward_split(self, trees: Mapping[int, PrefixTree], loss_of: LossOf, totals: Totals) -> None:
        """Forward and backward of comparisons that are longer than a row, each of whose candidates any rank may compute."""

        def scores_of(tree: PrefixTree | None, number: int) -> torch.Tensor:
            torch.manual_seed(dropout_seed(self.config.seed, self.step, self.world.rank, number))  # equal in both passes
            scores: torch.Tensor = self.model(self.rows.row([tree] if tree else []).to(self.world.device))
            return scores

        def backward(all_scores: torch.Tensor) -> None:
            by_tree = all_scores.split([len(tree.ranks) for tree in trees.values()])
            for (index, tree), scores in zip(trees.items(), by_tree, strict=True):
                pairs = pair_indices([tree.ranks], self.world.device)
                loss = loss_of(scores, pairs)
                loss.backward()
                if self.world.is_main:
                    self._count(totals, [index], pack([tree]).layout, loss, scores, pairs)

        parts = parts_of(list(trees.values()), self.config.row_tokens)
        backward_in_parts(parts, self.world, scores_of, backward)

    def _count(
        self, totals: Totals, indices: Sequence[int], layout: TreeLayout, loss: torch.Tensor, scores: torch.Tensor, pairs: Pairs
    ) -> None:
        totals.add(indices, loss, scores, pairs, layout.n_tokens)
        totals.flops += metrics.training_flops(self.model.backbone.config, layout, self.config.lora)

    def _next(self, rows: Iterator[Step | Row]) -> Step | Row:
        start = time.perf_counter()
        following = next(rows)
        self._waited += time.perf_counter() - start
        return following

    def _read(self, totals: Totals, norm: torch.Tensor | None = None) -> dict[str, float]:
        """The values of a batch over all ranks.

        Raises:
            NonFinite: the loss of a row, of any rank, is not finite. All ranks raise it: otherwise the others would wait in the
                next collective.
        """
        values, not_finite = totals.read(self.world, norm)
        if not_finite:
            bad = totals.first_not_finite()
            message = f"the loss is {bad[0]} on {self._describe(bad[1])}" if bad else None
            first = next(filter(None, self.world.gather(message)))
            raise NonFinite(f"step {self.step + 1}: {first}")
        return values

    @torch.no_grad()
    def evaluate(self, corpus: EncodedCorpus) -> dict[str, float]:
        """Loss, accuracy and margin on a whole corpus."""
        self.model.eval()
        totals = Totals(self.world.device)
        chunk = 64 * max(1, self.config.row_tokens // corpus.stats.longest)
        with ahead(self.rows.rows(corpus, chunk)) as rows:
            for in_row, row in rows:
                row = row.to(self.world.device)
                pairs = pair_indices(row.ranks, self.world.device)
                scores = self.model(row)
                if in_row:
                    totals.add(in_row, loss_sum(scores, pairs, self.config.loss), scores, pairs, row.layout.n_tokens)
                    totals.items += count_items(row.ranks, self.config.loss)
        self.model.train()
        values = totals.read(self.world).values
        return {name: values[name] for name in ("loss", "accuracy", "margin")}

    def _evaluate_checked(self, corpus: EncodedCorpus) -> dict[str, float]:
        """:meth:`evaluate`, with a check of the values.

        Raises:
            NonFinite: a value is not finite; the message names the comparisons with scores that are not.
        """
        values = self.evaluate(corpus)
        if wrong := [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]:
            indices = [i for each in self.world.gather(self._not_finite(corpus)) for i in each]
            raise NonFinite(f"step {self.step}: evaluation: {', '.join(wrong)} on {describe(corpus, sorted(indices))}")
        return values

    @torch.no_grad()
    def _not_finite(self, corpus: EncodedCorpus) -> list[int]:
        """The comparisons in this rank's rows that have a score that is not finite. Every rank must call this."""
        self.model.eval()
        indices = []
        for in_row, row in self.rows.rows(corpus, len(corpus)):
            scores = self.model(row.to(self.world.device))
            sizes = [len(corpus[i].ranks) for i in in_row]
            by_tree = scores[: sum(sizes)].split(sizes)
            indices += [i for i, part in zip(in_row, by_tree, strict=True) if not part.isfinite().all()]
        self.model.train()
        return indices

    def save(self) -> None:
        """Save a checkpoint, from which the run continues exactly."""
        meta = {"identity": identity(self.config, self.prepared), "results": self.results, "line": self.last_line}
        folder = self.config.output / "checkpoints"
        state.save(folder, self.step, self.weights, self.optimizer, meta, self.world, self.config.keep_checkpoints)

    def _resume(self) -> None:
        self.model.train()
        folder = self.config.output / "checkpoints"

        def find() -> dict[str, Any] | None:
            checkpoint = state.find_newest(folder, self._report)
            return {"name": checkpoint[0].name, **checkpoint[1]} if checkpoint else None

        meta = self.world.from_main(find)
        if meta is None:
            return
        path = folder / meta["name"]
        check_identity(path, meta["identity"], identity(self.config, self.prepared))
        state.load(path, meta["step"], self.weights, self.optimizer, self.world)
        self.step, self.results, self.last_line = int(meta["step"]), meta["results"], meta["line"]
        if self.world.is_main:
            self._report(f"resuming {self.config.output} after step {self.step}")

    def _report(self, message: str) -> None:
        say(self.console, message)

    def _describe(self, indices: Sequence[int]) -> str:
        return describe(self.train_set, indices)

    def _finish(self) -> None:
        """Export the native checkpoint with its card, and write ``run.json``, on rank 0 and without a time limit."""
        full = self.weights.full_state()
        self.world.from_main(lambda: self._export(full))

    def _export(self, full: dict[str, torch.Tensor]) -> None:
        merged = merge_lora(self.model, full) if self.config.lora else full
        self.model.mark_trained(embeddings=not self.config.lora)
        folder = self.config.output / "model"
        self.model.save(folder, merged)
        write_json(
            self.config.output / "run.json",
            {
                "identity": identity(self.config, self.prepared),
                "model": describe_files(folder),
                "config": self.config.model_dump(mode="json"),
                "plan": asdict(self.plan),
                "data": self.prepared.inputs,
                "bad_rows": {
                    name: corpus.rejected for name, corpus in (("train", self.train_set), ("eval", self.eval_set)) if corpus
                },
                "encoder_hash": self.model.encoder.hash,
                "optimizer": {"name": type(self.optimizer).__name__, "fused": self.optimizer.defaults["fused"]},
                "seed": self.config.seed,
                **provenance.versions(),
                "results": self.results,
            },
        )
        write_card(folder, model_card(folder, f"{self.config.output.name}/model"))


def describe(corpus: EncodedCorpus, indices: Sequence[int]) -> str:
    """The files and numbers of comparisons, of the first eight by name."""
    first = "; ".join(corpus.describe(i) for i in indices[:8])
    return first + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")


def dropout_seed(*numbers: int) -> int:
    """The seed of dropout masks: of (seed, step, rank), and for a part of a comparison (seed, step, rank, number of the part).

    It depends only on the arguments, not on the versions of Python and numpy.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def train(config: TrainConfig, *, verb: str = "pretrain", console: Console | None = None) -> dict[str, Any]:
    """Run a config to its end; under ``torchrun`` every rank calls this.

    verb: the name of the owner of the output, in the error of another process that wants the same output.

    Raises:
        PolarError: another process works on this output, settings or data are bad, or the disk is full.
    """
    with join_world(config.device) as world, _owner(config, world, verb):
        if config.shard_ranks and world.size % config.shard_ranks:
            raise ConfigError(f"shard_ranks: {config.shard_ranks} does not divide the {world.size} ranks of this run")
        prepared = prepare(config, world, console=console)
        return Trainer(config, world, prepared, console=console).fit()


def plan(config: TrainConfig, *, console: Console | None = None, gpus: tuple[int, str] | None = None) -> Plan:
    """The plan of :func:`train`. It encodes the data, but loads no weights and trains nothing. Another process may be at work in
    the output folder.

    gpus: a number and a kind of GPUs, for which the plan gets ``cluster``.

    Raises:
        PolarError: settings or data are bad, or the output folder belongs to a run of other settings.
    """
    if gpus:
        check_cluster(config, *gpus)
    with join_world(config.device) as world:
        prepared = prepare(config, world, console=console)
        output = world.from_main(lambda: describe_output(config, prepared))
    planned = plan_for(config, prepared, *gpus) if gpus else prepared.plan
    return replace(planned, output=output)


def _owner(config: TrainConfig, world: World, verb: str) -> AbstractContextManager[None]:
    """The output's lock, held by rank 0 for all ranks; if rank 0 can't get it, all ranks end with its message."""
    return owned(config.output, verb) if world.is_main else nullcontext()
