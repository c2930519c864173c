"""Parallel training: the same loop runs with FSDP2 under ``torchrun`` and with float32 master weights in a single process."""

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
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from polar_rm.common.processes import n_started
from polar_rm.model.devices import claim_device
from polar_rm.model.reward_model import RewardModel
from polar_rm.training.exchange import Exchange, OtherRankFailed, attempt_name

T = TypeVar("T")

# Seconds to wait for gloo's threads. DTensor's cache keeps the process group, and so gloo's threads, alive after the group is
# destroyed. A thread that has just finished a collective needs the interpreter once more to free the tensors; if it gets the
# interpreter only at shutdown, the whole process aborts.
_GLOO_WAIT_S = 0.2


@dataclass(frozen=True, slots=True)
class World:
    """The rank of this process among those that ``torchrun`` started; a single process is rank 0 of 1.

    size: number of ranks. exchange: communication of ranks besides collectives; None for a single process.
    """

    rank: int
    size: int
    device: torch.device
    exchange: Exchange | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes shared files and prints messages."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """The values summed over ranks, in float64."""
        if self.size == 1:
            return values
        total = self.all_reduce(torch.tensor(values, dtype=torch.float64, device=self.device))
        return [float(v) for v in total.tolist()]

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over ranks in place, on its device."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_main(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0, without a time limit; every rank gets the result (as JSON returns it) or the error."""
        result: T = self.exchange.from_main(work) if self.exchange else work()
        return result

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on every rank."""
        return self.exchange.gather(value) if self.exchange else [value]

    def set_stop(self, stop: Callable[[], bool]) -> None:
        """Set the function that says whether this process was asked to stop; after that a rank does not wait for a dead one."""
        if self.exchange:
            self.exchange.stop_requested = stop


_worlds = count()


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the process group that ``torchrun`` describes in the environment, and leave it at the end of the block.

    An error on one rank ends all ranks with its message. No collective waits for long work (see
    :mod:`polar_rm.training.exchange`), so torch's default time limits apply: they end a run with a dead peer.
    """
    device = claim_device(device)
    size = n_started()
    if size == 1:
        yield World(0, 1, torch.device(device))
        return
    local = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(local)
    attempt = attempt_name(next(_worlds))
    store, rank, size = next(rendezvous("env://"))
    store = PrefixStore(f"polar/group/{attempt}", store)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    exchange = Exchange.join(rank, size, attempt)
    exchange.watch()
    failed = False
    try:
        yield World(rank, size, local, exchange)
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            # torchrun's signal must not end this process before it has printed the reason.
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
            exchange.wait_for_others()
        if device == "cpu":
            time.sleep(_GLOO_WAIT_S)


class Weights:
    """The float32 master weights that the optimiser updates, whatever type the forward computes in.

    With several ranks FSDP2 shards float32 parameters and gathers them in the compute type. A single process does the same
    itself: the modules hold copies in the compute type, and gradients are summed in float32. In both cases ``named`` has the
    model's parameter names, so that a checkpoint of one kind can be loaded by the other.
    """

    def __init__(self, model: RewardModel, world: World, compute: torch.dtype, shard_ranks: int | None = None) -> None:
        """shard_ranks: the number of ranks that share one copy; None for all. It must divide the number of ranks."""
        self.model = model
        self._is_main = world.is_main
        self._copies: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._frozen: dict[str, torch.Tensor] = {}  # frozen weights that lose precision in the compute type, for full_state
        if world.size > 1:
            _shard(model, compute, _mesh(world, shard_ranks or world.size))
        trainable = {name: p for name, p in model.backbone.named_parameters() if p.requires_grad}
        if world.size > 1 or compute == torch.float32:
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
        """Find the parameters again after a sharded model was filled, which replaces the parameter objects."""
        self.named = {name: p for name, p in self.model.backbone.named_parameters() if p.requires_grad}

    def update_copies(self) -> None:
        """After an optimiser step, write the new weights into the modules' copies."""
        with torch.no_grad():
            if self._copies:
                copies, masters = zip(*self._copies, strict=True)
                torch._foreach_copy_(list(copies), list(masters))

    def clip(self, limit: float) -> torch.Tensor:
        """Clip the gradients' norm to ``limit``; returns the norm before clipping, on the device and equal on all ranks."""
        norm = nn.utils.clip_grad_norm_(self.named.values(), limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def full_state(self) -> dict[str, torch.Tensor]:
        """The model's complete float32 state dict in host memory on rank 0; an empty one on the other ranks.

        This is a collective: every rank must call it. Ranks other than 0 hold at most one full tensor at a time.
        """
        exact = self._frozen | self.named
        state = {}
        for name, tensor in self.model.backbone.state_dict().items():
            full = exact.get(name, tensor).detach()
            full = full.full_tensor() if isinstance(full, DTensor) else full
            if self._is_main:
                state[name] = full.float().cpu()
        return state


def _mesh(world: World, shard_ranks: int) -> DeviceMesh:
    """The ranks as groups of ``shard_ranks`` neighbours, which torchrun places on one node as far as it can."""
    if shard_ranks == world.size:
        return init_device_mesh(world.device.type, (world.size,))
    copies = world.size // shard_ranks
    return init_device_mesh(world.device.type, (copies, shard_ranks), mesh_dim_names=("copies", "shards"))


def _shard(model: RewardModel, compute: torch.dtype, mesh: DeviceMesh) -> None:
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for layer in model.backbone.base_model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model.backbone.score, mesh=mesh, mp_policy=MixedPrecisionPolicy())  # the head stays float32
    fully_shard(model, mesh=mesh, mp_policy=policy)


def fill_shards(model: nn.Module, source: Mapping[str, torch.Tensor] | None, device: torch.device) -> None:
    """Allocate and fill a sharded model that is on the meta device, one tensor at a time.

    source: all parameters and buffers by name on rank 0; None on the other ranks, which never hold more than their shards and one
    full tensor.
    """
    model.to_empty(device=device)
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in tensors.items():
            full = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if source is not None:
                full.copy_(source[name])
            if isinstance(tensor, DTensor):
                sharded = distribute_tensor(full, tensor.device_mesh, tensor.placements)
                tensor.to_local().copy_(sharded.to_local())
            else:
                dist.broadcast(full, 0)
                tensor.copy_(full)


def _add_to(master: torch.Tensor):  # type: ignore[no-untyped-def]
    """A hook that moves a parameter's gradient to its float32 master weight."""

    def hook(parameter: torch.Tensor) -> None:
        if master.grad is None:
            master.grad = parameter.grad.float()  # type: ignore[union-attr]
        else:
            master.grad.add_(parameter.grad)  # type: ignore[arg-type]
        parameter.grad = None

    return hook
