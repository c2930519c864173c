"""Matrix products by oneDNN in inference on processors with AVX-512, where PyTorch takes MKL for float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

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
    """

    ROWS = 512
    MULTIPLE = 16

    def __init__(self, linear: Any) -> None:
        self._linear, self._forward = linear, linear.forward
        linear.forward = self

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        if not self._is_faster(input):
            unchanged: torch.Tensor = self._forward(input)
            return unchanged
        products = [self._multiply(rows) for rows in input.flatten(0, -2).split(self.ROWS)]
        product = products[0] if len(products) == 1 else torch.cat(products)
        return product.view(*input.shape[:-1], -1)

    def _is_faster(self, input: torch.Tensor) -> bool:
        weight = self._linear.weight
        return bool(
            AVAILABLE
            and not torch.compiler.is_compiling()
            and torch.is_inference_mode_enabled()
            and input.device.type == "cpu"
            and input.dtype == weight.dtype == torch.float32
            and type(weight) is nn.Parameter  # not distributed over ranks
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.enabled
            and input.numel() > 0
        )

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        n_rows = len(rows)
        filled = pad(rows, (0, 0, 0, -n_rows % self.MULTIPLE))
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(filled, self._linear.weight, self._linear.bias, "none", [], "")
        return product[:n_rows]


def attach_products(module: nn.Module) -> None:
    """Attach a :class:`Product` to every linear layer inside a module; a second call changes nothing."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear) and not isinstance(linear.forward, Product):
            Product(linear)
