"""Policies that run in this process, on transformers. torch is imported on use: the other backends do without."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from polar_rm.sampling.base import Backend, Machine, Policy


class TransformersPolicy(Policy):
    """Runs in this process; policies of one model share its weights."""

    backend: Literal["transformers"] = "transformers"
    gguf_file: str | None = Field(None, description="Name of the GGUF in the model's folder that holds the weights.")
    n_layers: PositiveInt | None = Field(None, description="Run only so many layers, the first ones.")

    def open(self, machine: Machine) -> Backend:
        """See :meth:`Policy.open`; the model stays loaded for the next policy of the same one."""
        from polar_rm.model.devices import claim_device, compute_dtype
        from polar_rm.sampling.backends.generation import TransformersBackend

        device = claim_device(machine.device)
        dtype = compute_dtype(machine.precision, device)
        return TransformersBackend(self, dtype, device, machine.batch_size, gguf_file=self.gguf_file, n_layers=self.n_layers)
