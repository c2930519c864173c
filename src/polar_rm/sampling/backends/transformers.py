"""Policies that run in this process, on transformers. torch is imported on use, because the other backends don't need it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from polar_rm.sampling.base import Backend, Machine, Policy


class TransformersPolicy(Policy):
    """A policy that runs in this process; policies of one model share its weights."""

    backend: Literal["transformers"] = "transformers"
    gguf_file: str | None = Field(None, description="Name of the GGUF file with the weights, in the model's folder.")
    n_layers: PositiveInt | None = Field(None, description="Run only the first N layers of the model.")

    def open(self, machine: Machine) -> Backend:
        """See :meth:`Policy.open`; the model stays loaded for the next policy that uses it."""
        from polar_rm.model.devices import claim_device, compute_dtype
        from polar_rm.sampling.backends.generation import TransformersBackend

        device = claim_device(machine.device)
        dtype = compute_dtype(machine.precision, device)
        return TransformersBackend(self, dtype, device, machine.batch_size, gguf_file=self.gguf_file, n_layers=self.n_layers)
