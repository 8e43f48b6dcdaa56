"""Tensor product: calls of the C++ kernel."""

from __future__ import annotations

import functools

import numpy as np
import torch

from nextham_kernels.loading import kernels
from nextham_kernels.ops.tensor_product.plan import tables
from nextham_kernels.ops.tensor_product.reference import product_of
from nextham_kernels.result_memory import empty, empty_like

NO_INDICES = (np.empty(0, dtype=np.int64),) * 3  # of the operand's row, the edge and the result's row


@functools.cache
def plan_of(word: str, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The tables of a product as the kernel takes them: lengths and numbers in one array, and the coefficients."""
    given = tables(word)
    integer = [a for name, a in given._asdict().items() if name != "coefficients"]
    number = np.float32 if dtype == torch.float32 else np.float64
    lengths = np.array([a.size for a in integer], dtype=np.int32)
    return np.concatenate([lengths, *(a.ravel() for a in integer)]), given.coefficients.astype(number)


def forward(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, word: str) -> torch.Tensor:
    """Runs `tensor_product_forward`."""
    out = empty(x, (len(x), product_of(word).dims[2]))
    arrays = (t.numpy() for t in (x, y, weight))
    kernels().tensor_product_forward(*plan_of(word, x.dtype), *arrays, *NO_INDICES, out.numpy())
    return out


def backward(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, word: str, needs: list[bool]
) -> list[torch.Tensor]:
    """Runs `tensor_product_backward`."""
    grads = [empty_like(t) if need else t.new_empty(0, 0) for t, need in zip((x, y, weight), needs, strict=True)]
    if needs[2] and weight.ndim == 1:
        grads[2].zero_()
    arrays = (t.numpy() for t in (grad, x, y, weight))
    plan, outputs = plan_of(word, x.dtype), (g.numpy() for g in grads)
    kernels().tensor_product_backward(*plan, *arrays, *NO_INDICES, *needs, *outputs)
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
    """Runs `tensor_product_forward` over the edges sorted by rows, which adds to its result."""
    if not len(rows):
        return x.new_zeros(n_rows, product_of(word).dims[2])
    out = empty(x, (n_rows, product_of(word).dims[2])).zero_()
    arrays = (t.numpy() for t in (x, y, weight, cols[by_row], by_row, rows[by_row], out))
    kernels().tensor_product_forward(*plan_of(word, x.dtype), *arrays)
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
    """Runs `tensor_product_backward` over the edges sorted by cols."""
    needs = needs[:3]
    if not len(rows):
        return [torch.zeros_like(t) for t in (x, y, weight, rows, cols, by_row, by_col)]
    grads = [empty_like(t) if need else t.new_empty(0, 0) for t, need in zip((x, y, weight), needs, strict=True)]
    for i, summed in ((0, True), (2, weight.ndim == 1)):
        if needs[i] and summed:
            grads[i].zero_()
    arrays = (t.numpy() for t in (grad, x, y, weight, cols[by_col], by_col, rows[by_col]))
    plan, outputs = plan_of(word, x.dtype), (g.numpy() for g in grads)
    kernels().tensor_product_backward(*plan, *arrays, *needs, *outputs)
    return [*grads, *(torch.empty_like(t) for t in (rows, cols, by_row, by_col))]
