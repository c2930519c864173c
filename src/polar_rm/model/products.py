"""Matrix products of linear layers in inference on CPUs: in float32 by oneDNN, where PyTorch takes MKL, or in int8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from polar_rm.model.int8 import Int8Weight

# In AVX2 code both are alike for small weights.
AVAILABLE = torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Product:
    """Replaces the ``forward`` of a linear layer.

    In inference mode in float32 on a CPU it calls oneDNN, which is faster there than MKL: by a tenth with weights of 576 by
    1,536, by a third with 2,048 by 8,192. Everything else, training above all, goes to the layer's own ``forward``, and so does
    all with ``torch.backends.mkldnn.enabled = False``.

    PyTorch has the operator for code of its compiler. oneDNN builds code for every number of rows, which its cache keeps: about
    half a megabyte each. So rows are taken ``ROWS`` at a time, and the rest is filled up to a multiple of ``MULTIPLE``. How a row
    is rounded does not depend on the others.

    int8: the quantised weight to multiply with instead, on any processor; see :mod:`polar_rm.model.int8`.
    """

    ROWS = 512
    MULTIPLE = 16

    def __init__(self, linear: Any) -> None:
        self._linear, self._forward = linear, linear.forward
        self.int8: Int8Weight | None = None
        linear.forward = self

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        if not self._applies(input):
            unchanged: torch.Tensor = self._forward(input)
            return unchanged
        products = [self._multiply(rows) for rows in input.flatten(0, -2).split(self.ROWS)]
        product = products[0] if len(products) == 1 else torch.cat(products)
        return product.view(*input.shape[:-1], -1)

    def _applies(self, input: torch.Tensor) -> bool:
        weight = self._linear.weight
        return bool(
            (self.int8 or (AVAILABLE and torch.backends.mkldnn.enabled))
            and not torch.compiler.is_compiling()
            and torch.is_inference_mode_enabled()
            and input.device.type == "cpu"
            and input.dtype == weight.dtype == torch.float32
            and type(weight) is nn.Parameter  # not distributed over ranks
            and not torch.is_autocast_enabled("cpu")
            and input.numel() > 0
        )

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        n_rows = len(rows)
        filled = pad(rows, (0, 0, 0, -n_rows % self.MULTIPLE))
        if self.int8:
            return self.int8.multiply(filled, self._linear.bias)[:n_rows]
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(filled, self._linear.weight, self._linear.bias, "none", [], "")
        return product[:n_rows]


def attach_products(module: nn.Module) -> None:
    """Attach a :class:`Product` to every linear layer inside a module; a second call changes nothing."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear) and not isinstance(linear.forward, Product):
            Product(linear)


def quantize(module: nn.Module, float32_layers: Sequence[str] = ()) -> None:
    """Give every linear layer inside a module an int8 weight. float32_layers: ends of the names of layers that get none."""
    for name, linear in module.named_modules():
        if isinstance(linear.forward, Product) and not name.endswith(tuple(float32_layers)):
            linear.forward.int8 = Int8Weight(linear.weight)


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Within the block a quantised module computes in float32."""
    products = [each.forward for each in module.modules() if isinstance(each.forward, Product)]
    weights = [product.int8 for product in products]
    try:
        for product in products:
            product.int8 = None
        yield
    finally:
        for product, weight in zip(products, weights, strict=True):
            product.int8 = weight
