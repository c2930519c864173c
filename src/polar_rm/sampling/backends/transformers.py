"""Policies that run in this process, on transformers. torch is imported on use: the other backends do without."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from polar_rm.sampling.base import Backend, Machine, Policy


class TransformersPolicy(Policy):
    """model: a folder or ``package:NAME``. gguf_file: which one in it. n_layers: run only its first layers."""

    backend: Literal["transformers"] = "transformers"
    gguf_file: str | None = None
    n_layers: PositiveInt | None = None

    def open(self, machine: Machine) -> Backend:
        """See :meth:`Policy.open`; the model stays loaded for the next policy of the same one."""
        from polar_rm.model.devices import claim_device, compute_dtype
        from polar_rm.sampling.backends.generation import TransformersBackend

        device = claim_device(machine.device)
        dtype = compute_dtype(machine.precision, device)
        return TransformersBackend(self, dtype, device, machine.batch_size, gguf_file=self.gguf_file, n_layers=self.n_layers)
