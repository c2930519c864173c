"""The description of a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from polar_rm.encoding.encoder import Encoder
from polar_rm.model.weights import LazyTensor

Layout = Literal["native", "internlm2"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """A converted checkpoint that can be written.

    config: the values of ``config.json``. files: relative path -> content. notes: what a user should know.
    """

    title: str
    config: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]
    files: Mapping[str, bytes]
    encoder: Encoder
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that will be written."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def describe(self) -> list[tuple[str, str]]:
        """Lines (name, value) that describe the conversion to a user."""
        settings = self.encoder.settings
        dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in self.tensors.values()})
        parameters = sum(prod(tensor.shape) for tensor in self.tensors.values())
        return [
            ("layout", self.title),
            ("parameters", f"{parameters:,} in {len(self.tensors):,} tensors, {', '.join(dtypes)}"),
            ("disk", f"{self.nbytes / 1e9:,.2f} GB"),
            ("separator", f"{settings.separator_token} = {self.encoder.separator_id}"),
            ("scoring token", f"{settings.reward_token} = {self.encoder.reward_id}"),
            ("lengths", f"{settings.max_length:,} in all, {settings.max_response_length:,} a response"),
            ("encoder", self.encoder.hash),
            *(("note", note) for note in self.notes),
        ]
