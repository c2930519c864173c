"""Products in int8 on CPUs: one scale a token for inputs, one a channel for weights.

Such scales keep outliers of activations apart, which one scale for a whole tensor can't. What rounding does to a model's rewards
is measured before it is used (``polar quantize``); the result is a file in the model's folder.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from polar_rm.common.files import read_json, write_json
from polar_rm.common.identity import check_identity, model_identity
from polar_rm.errors import PolarError

RECORD = "int8.json"
"""The record's name in the folder of the model."""
SCHEMA = "polar-rm/int8/1"

_LARGEST = 127
_TINY = 1e-30


class Int8:
    """Symmetric int8 with one scale a row: values * scales stands for the rows.

    values: int8 [rows, width]. scales: float32 [rows, 1].
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.scales = rows.abs().amax(1, keepdim=True).clamp_min(_TINY) / _LARGEST
        self.values = torch.round(rows / self.scales).to(torch.int8)


class Int8Weight:
    """The quantised weight, [out, in], of a linear layer."""

    def __init__(self, weight: torch.Tensor) -> None:
        channels = Int8(weight.detach())
        self._values, self._scales = channels.values.t(), channels.scales.t()

    def multiply(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """float32 [rows, in] -> float32 [rows, out]. Sums are int32, so that a row's result does not depend on other rows."""
        tokens = Int8(rows)
        product: torch.Tensor = torch._int_mm(tokens.values, self._values).float().mul_(tokens.scales).mul_(self._scales)
        return product if bias is None else product.add_(bias)


@dataclass(frozen=True, slots=True)
class Int8Record:
    """What int8 does to the rewards of one model, measured on comparisons against float32.

    float32_layers: ends of the names of linear layers that stay in float32. spearman: rank correlation of the differences between
    two candidates of a comparison. flipped: share of these pairs whose order is another. offset: the mean of anchored rewards in
    int8 minus that in float32; None: no comparison has a reference. n_pairs, n_comparisons: what was measured. data: names of
    files. encoder, weights: see :func:`model_identity`.
    """

    float32_layers: tuple[str, ...]
    spearman: float
    flipped: float
    offset: float | None
    n_pairs: int
    n_comparisons: int
    data: tuple[str, ...]
    encoder: str = ""
    weights: str = ""

    @classmethod
    def load(cls, model: Path) -> Self:
        """The record in a model's folder.

        Raises:
            PolarError: there is none, it was not written by :meth:`save`, or it belongs to another model.
        """
        path = model / RECORD
        if not path.is_file():
            raise PolarError(
                f"{model}: what int8 does to this model's rewards is not measured yet; first: polar quantize {model}"
            )
        values = read_json(path)
        try:
            if values["schema"] != SCHEMA:
                raise ValueError
            record = cls(
                tuple(map(str, values["float32_layers"])),
                float(values["spearman"]),
                float(values["flipped"]),
                None if values["offset"] is None else float(values["offset"]),
                int(values["n_pairs"]),
                int(values["n_comparisons"]),
                tuple(map(str, values["data"])),
                str(values["encoder"]),
                str(values["weights"]),
            )
        except (KeyError, TypeError, ValueError):
            raise PolarError(f"{path}: not a record of polar quantize") from None
        saved = {"encoder": record.encoder, "weights": record.weights}
        check_identity(path, saved, model, "the measurement", "quantize")
        return record

    def save(self, model: Path) -> None:
        """Write the record into the folder of its model."""
        write_json(model / RECORD, {"schema": SCHEMA, **asdict(self), **model_identity(model)})


def has_int8() -> bool:
    """Whether the processor has instructions for products of int8. Without them float32 is as fast."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def check_int8(device: str) -> None:
    """Check that int8 can be used here.

    Raises:
        PolarError: the device is no CPU, or the processor has no instructions for it.
    """
    if device != "cpu":
        raise PolarError(f"precision int8 is for CPUs; on device {device} use bf16")
    if not has_int8():
        raise PolarError(
            "precision int8: this processor has no instructions for it (VNNI or AMX); use fp32, which is as fast here"
        )
