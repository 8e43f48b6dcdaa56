"""Tensor product: calls of the C++ kernel."""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np
import torch

from nextham_kernels.loading import kernels
from nextham_kernels.ops.tensor_product.plan import tables
from nextham_kernels.ops.tensor_product.reference import product_of

NO_INDICES = (np.empty(0, dtype=np.int64),) * 3  # of the operand's row, the edge and the result's row


@functools.cache
def plan_of(word: str, dtype: torch.dtype, module: ModuleType) -> object:
    """The tables of a product, copied into the kernel's own."""
    given = tables(word)
    kind, number = ("TensorProduct32", np.float32) if dtype == torch.float32 else ("TensorProduct64", np.float64)
    return getattr(module, kind)(*given._replace(coefficients=given.coefficients.astype(number)))


def forward(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, word: str) -> torch.Tensor:
    """Runs the plan's `forward`."""
    out = x.new_empty(len(x), product_of(word).dims[2])
    plan_of(word, x.dtype, kernels()).forward(x.numpy(), y.numpy(), weight.numpy(), *NO_INDICES, out.numpy())
    return out


def backward(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, word: str, needs: list[bool]
) -> list[torch.Tensor]:
    """Runs the plan's `backward`."""
    grads = [torch.empty_like(t) if need else t.new_empty(0, 0) for t, need in zip((x, y, weight), needs, strict=True)]
    if needs[2] and weight.ndim == 1:
        grads[2].zero_()
    arrays = (t.numpy() for t in (grad, x, y, weight))
    plan = plan_of(word, x.dtype, kernels())
    plan.backward(*arrays, *NO_INDICES, *needs, *(g.numpy() for g in grads))
    return grads


def forward_conv(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    cols: torch.Tensor,
    by_row: torch.Tensor,
    by_col: torch.Tensor,
    n_rows: int,
    word: str,
) -> torch.Tensor:
    """Runs the plan's `forward` over the edges sorted by rows."""
    if not len(rows):
        return x.new_zeros(n_rows, product_of(word).dims[2])
    out = x.new_empty(n_rows, product_of(word).dims[2])
    arrays = (t.numpy() for t in (x, y, weight, cols[by_row], by_row, rows[by_row], out))
    plan_of(word, x.dtype, kernels()).forward(*arrays)
    return out


def backward_conv(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    cols: torch.Tensor,
    by_row: torch.Tensor,
    by_col: torch.Tensor,
    n_rows: int,
    word: str,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs the plan's `backward` over the edges sorted by cols."""
    needs = needs[:3]
    if not len(rows):
        return [torch.zeros_like(t) for t in (x, y, weight, rows, cols, by_row, by_col)]
    grads = [torch.empty_like(t) if need else t.new_empty(0, 0) for t, need in zip((x, y, weight), needs, strict=True)]
    if needs[2] and weight.ndim == 1:
        grads[2].zero_()
    arrays = (t.numpy() for t in (grad, x, y, weight, cols[by_col], by_col, rows[by_col]))
    plan_of(word, x.dtype, kernels()).backward(*arrays, *needs, *(g.numpy() for g in grads))
    return [*grads, *(torch.empty_like(t) for t in (rows, cols, by_row, by_col))]
