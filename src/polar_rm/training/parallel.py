"""One process or many, the same loop: FSDP2 under ``torchrun``, float32 master weights in a plain process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from polar_rm.model.devices import claim_device
from polar_rm.model.reward_model import RewardModel

# Seconds. DTensor's cache keeps the process group, and so gloo's threads, beyond its end. A thread that has just finished a
# collective needs the interpreter once more, to drop the tensors; where it gets it only at shutdown, the whole process aborts.
_GLOO_LETS_GO = 0.2


@dataclass(frozen=True, slots=True)
class World:
    """This process among all that ``torchrun`` started; alone, rank 0 of 1."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Summed over ranks, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(v) for v in total.tolist()]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def world(device: str) -> Iterator[World]:
    """Joins the process group that ``torchrun`` describes in the environment, and leaves it at the end."""
    device = claim_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, torch.device(device))
        return
    local = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size, local)
    finally:
        dist.destroy_process_group()
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

    def publish(self) -> None:
        """After an optimiser step: show the new weights to the modules."""
        with torch.no_grad():
            for parameter, master in self._copies:
                parameter.copy_(master)

    def clip(self, limit: float) -> float:
        """Scale all gradients to a norm of at most ``limit``; returns the norm before."""
        norm = nn.utils.clip_grad_norm_(self.named.values(), limit)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def full_state(self) -> dict[str, torch.Tensor]:
        """The model's complete float32 state dict on the main rank (collective: every rank must call it)."""
        exact = self._frozen | self.named
        return {name: _gather(exact.get(name, tensor)) for name, tensor in self.model.backbone.state_dict().items()}


def _shard(model: RewardModel, compute: torch.dtype) -> None:
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for layer in model.backbone.base_model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model.backbone.score, mp_policy=MixedPrecisionPolicy())  # the head stays float32
    fully_shard(model, mp_policy=policy)


def _gather(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).float().cpu()


def _add_to(master: torch.Tensor):  # type: ignore[no-untyped-def]
    def hook(parameter: torch.Tensor) -> None:
        if master.grad is None:
            master.grad = parameter.grad.float()  # type: ignore[union-attr]
        else:
            master.grad.add_(parameter.grad)  # type: ignore[arg-type]
        parameter.grad = None

    return hook
