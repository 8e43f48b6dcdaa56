"""Linear maps of edge rows: the C++ kernel's tables and calls."""

from __future__ import annotations

import functools

import numpy as np
import torch

from nextham_kernels.clebsch_gordan import dim_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.loading import kernels
from nextham_kernels.ops.edge_linear.reference import pieces


@functools.cache
def tables(irreps_in: str, irreps_out: str, n_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the kernel asks of a pair of layouts, in the order of its arguments.

    Blocks [b, 6] (first column in the input, channels, components, first column in the result, channels, first number
    of the matrix), the columns of the result that no block writes, and those of the bias.
    """
    rows = [
        [p.source[0].start, p.c_in, len(p.source), p.target[0].start, p.c_out, n_heads * p.start]
        for p in pieces(irreps_in, irreps_out)
    ]
    blank = np.ones(dim_of(irreps_out), dtype=bool)
    for piece in pieces(irreps_in, irreps_out):
        for target in piece.target:
            blank[target] = False
    integer = (np.reshape(rows, (-1, 6)), np.flatnonzero(blank), edge_layout(irreps_out).scalars.numpy())
    return tuple(a.astype(np.int32) for a in integer)


def forward(
    x: torch.Tensor,
    heads: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor,
    onsite: torch.Tensor,
    irreps_in: str,
    irreps_out: str,
) -> torch.Tensor:
    """Runs `edge_linear_forward`."""
    y = x.new_empty(len(x), dim_of(irreps_out))
    arrays = (t.numpy() for t in (x, heads, matrix, bias, onsite))
    settings = tables(irreps_in, irreps_out, max(1, heads.shape[1]))
    kernels().edge_linear_forward(*arrays, *settings, y.numpy())
    return y


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    heads: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor,
    onsite: torch.Tensor,
    irreps_in: str,
    irreps_out: str,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs `edge_linear_backward`; the gradients of x and heads come together, those of matrix and bias too."""
    inputs, weights = needs[0] or needs[1], needs[2] or needs[3]
    grad_x, grad_heads = (torch.empty_like(t) if inputs else t.new_empty(0, t.shape[1]) for t in (x, heads))
    grad_matrix, grad_bias = torch.zeros_like(matrix), torch.zeros_like(bias)
    arrays = (t.numpy() for t in (grad, x, heads, matrix, bias, onsite))
    grads = (t.numpy() for t in (grad_x, grad_heads, grad_matrix, grad_bias))
    settings = tables(irreps_in, irreps_out, max(1, heads.shape[1]))
    kernels().edge_linear_backward(*arrays, *settings, inputs, weights, *grads)
    return [grad_x, grad_heads, grad_matrix, grad_bias, torch.empty_like(onsite)]
