"""One process or many, the same loop: FSDP2 under ``torchrun``, float32 master weights in a plain process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from polar_rm.model.devices import claim_device
from polar_rm.model.reward_model import RewardModel
from polar_rm.training.exchange import Exchange, OtherRankFailed

T = TypeVar("T")

# Seconds. DTensor's cache keeps the process group, and so gloo's threads, beyond its end. A thread that has just finished a
# collective needs the interpreter once more, to drop the tensors; where it gets it only at shutdown, the whole process aborts.
_GLOO_LETS_GO = 0.2


@dataclass(frozen=True, slots=True)
class World:
    """This process among all that ``torchrun`` started; alone, rank 0 of 1. exchange: how ranks talk; None alone."""

    rank: int
    size: int
    device: torch.device
    exchange: Exchange | None = None

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what all share, and speaks for all."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Summed over ranks, in float64."""
        if self.size == 1:
            return values
        total = self.add_up(torch.tensor(values, dtype=torch.float64, device=self.device))
        return [float(v) for v in total.tolist()]

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """Summed over ranks, where they are."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_main(self, work: Callable[[], T]) -> T:
        """Rank 0 works, however long; every rank gets its result (as JSON gives it back), or ends with its error."""
        result: T = self.exchange.from_main(work) if self.exchange else work()
        return result

    def gather(self, value: T) -> list[T]:
        """What every rank says, on every rank."""
        return self.exchange.gather(value) if self.exchange else [value]

    def heed(self, stop: Callable[[], bool]) -> None:
        """stop: whether this process was asked to stop; a rank that then waits for a dead one ends by itself."""
        if self.exchange:
            self.exchange.stop_requested = stop


_worlds = count()


@contextmanager
def world(device: str) -> Iterator[World]:
    """Joins the process group that ``torchrun`` describes in the environment, and leaves it at the end.

    An error on one rank ends all ranks with its message. Nothing long is waited for in a collective (see
    :mod:`polar_rm.training.exchange`), so torch's own time limits stay: they end a run whose peer is dead.
    """
    device = claim_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, torch.device(device))
        return
    local = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    exchange = Exchange.join(dist.get_rank(), size, next(_worlds))
    exchange.watch()
    failed = False
    try:
        yield World(dist.get_rank(), size, local, exchange)
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            # The end is near: torchrun's signal must not come before the line that tells why.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        exchange.fail(explained := exchange.explain(error))
        failed = explained is error and not isinstance(error, OtherRankFailed)
        if explained is error:
            raise
        raise explained from error
    finally:
        dist.destroy_process_group()
        exchange.close()
        if failed:
            exchange.linger()
        if device == "cpu":
            time.sleep(_GLOO_LETS_GO)


class Weights:
    """The float32 tensors that the optimiser owns, whatever the forward computes in.

    Many ranks: FSDP2 shards float32 parameters and gathers them in the compute type. One process: the same semantics by hand,
    with bfloat16 copies in the modules; gradients are added up in float32. Either way ``named`` has the model's own names, so
    a checkpoint of one kind opens in the other.
    """

    def __init__(self, model: RewardModel, where: World, compute: torch.dtype) -> None:
        self.model = model
        self._is_main = where.is_main
        self._copies: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._frozen: dict[str, torch.Tensor] = {}  # what the compute type can't hold; full_state gives it back
        if where.size > 1:
            _shard(model, compute)
        trainable = {name: p for name, p in model.backbone.named_parameters() if p.requires_grad}
        if where.size > 1 or compute == torch.float32:
            self.named: dict[str, torch.Tensor] = dict(trainable)
            return
        self.named = {}
        for name, parameter in model.backbone.named_parameters():
            if name.startswith("score."):
                self.named[name] = parameter
                continue
            if name in trainable:
                master = parameter.detach().clone()
                self.named[name] = master
                self._copies.append((parameter, master))
            exact, parameter.data = parameter.data, parameter.data.to(compute)
            if name in trainable:
                parameter.register_post_accumulate_grad_hook(_add_to(master))
            elif not torch.equal(parameter.data.to(exact.dtype), exact):
                self._frozen[name] = exact.cpu()

    def rebind(self) -> None:
        """After a sharded model was filled: its parameters are other objects than before."""
        self.named = {name: p for name, p in self.model.backbone.named_parameters() if p.requires_grad}

    def publish(self) -> None:
        """After an optimiser step: show the new weights to the modules."""
        with torch.no_grad():
            if self._copies:
                shown, masters = zip(*self._copies, strict=True)
                torch._foreach_copy_(list(shown), list(masters))

    def clip(self, limit: float) -> torch.Tensor:
        """Scale all gradients to a norm of at most ``limit``; returns the norm before, on the device and equal on all ranks."""
        norm = nn.utils.clip_grad_norm_(self.named.values(), limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def full_state(self) -> dict[str, torch.Tensor]:
        """The model's complete float32 state dict, in host memory, on rank 0; empty on the others.

        Collective: every rank must call it. Other ranks hold one whole tensor at a time, for a moment.
        """
        exact = self._frozen | self.named
        state = {}
        for name, tensor in self.model.backbone.state_dict().items():
            whole = exact.get(name, tensor).detach()
            whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
            if self._is_main:
                state[name] = whole.float().cpu()
        return state


def _shard(model: RewardModel, compute: torch.dtype) -> None:
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for layer in model.backbone.base_model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model.backbone.score, mp_policy=MixedPrecisionPolicy())  # the head stays float32
    fully_shard(model, mp_policy=policy)


def fill_shards(model: nn.Module, source: Mapping[str, torch.Tensor] | None, device: torch.device) -> None:
    """Give a sharded model on the meta device its memory and values, a tensor at a time.

    source: all parameters and buffers by name on rank 0, None elsewhere. No rank but 0 ever holds more than its shards and one
    whole tensor.
    """
    model.to_empty(device=device)
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in tensors.items():
            whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if source is not None:
                whole.copy_(source[name])
            if isinstance(tensor, DTensor):
                part = distribute_tensor(whole, tensor.device_mesh, tensor.placements)
                tensor.to_local().copy_(part.to_local())
            else:
                dist.broadcast(whole, 0)
                tensor.copy_(whole)


def _add_to(master: torch.Tensor):  # type: ignore[no-untyped-def]
    def hook(parameter: torch.Tensor) -> None:
        if master.grad is None:
            master.grad = parameter.grad.float()  # type: ignore[union-attr]
        else:
            master.grad.add_(parameter.grad)  # type: ignore[arg-type]
        parameter.grad = None

    return hook
