"""Tensor product: calls of the C++ kernel."""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np
import torch

from nextham_kernels.loading import kernels
from nextham_kernels.ops.tensor_product.plan import tables
from nextham_kernels.ops.tensor_product.reference import product_of

_NO_INDEX = np.empty(0, dtype=np.int64)


@functools.cache
def _plan(word: str, dtype: torch.dtype, module: ModuleType) -> object:
    """The tables of a product, copied into the kernel's own."""
    given = tables(word)
    kind, number = ("TensorProduct32", np.float32) if dtype == torch.float32 else ("TensorProduct64", np.float64)
    return getattr(module, kind)(*given._replace(coefficients=given.coefficients.astype(number)))


def forward(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, word: str) -> torch.Tensor:
    """Runs the plan's `forward`."""
    out = x.new_empty(len(x), product_of(word).dims[2])
    _plan(word, x.dtype, kernels()).forward(x.numpy(), y.numpy(), weight.numpy(), _NO_INDEX, _NO_INDEX, out.numpy())
    return out


def backward(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, word: str, needs: list[bool]
) -> list[torch.Tensor]:
    """Runs the plan's `backward`."""
    grads = [torch.empty_like(t) if need else t.new_empty(0, 0) for t, need in zip((x, y, weight), needs, strict=True)]
    if needs[2] and weight.ndim == 1:
        grads[2].zero_()
    arrays = (t.numpy() for t in (grad, x, y, weight))
    plan = _plan(word, x.dtype, kernels())
    plan.backward(*arrays, _NO_INDEX, _NO_INDEX, *needs, *(g.numpy() for g in grads))
    return grads
