"""Bloch sum: calls of the C++ kernel."""

from __future__ import annotations

import torch

from nextham_kernels.loading import kernels
from nextham_kernels.result_memory import empty, empty_like


def forward(
    blocks: torch.Tensor, coefficient: torch.Tensor, edges: torch.Tensor, pairs: torch.Tensor, size: int, spins: int
) -> torch.Tensor:
    """Runs `bloch_sum_forward`."""
    dense = empty(blocks, (coefficient.shape[1], size, size, 2))  # the kernel writes all of it, zeros too
    kernels().bloch_sum_forward(*(t.numpy() for t in (blocks, coefficient, edges, pairs)), spins, dense.numpy())
    return dense


def backward(
    grad: torch.Tensor,
    blocks: torch.Tensor,
    coefficient: torch.Tensor,
    edges: torch.Tensor,
    pairs: torch.Tensor,
    size: int,
    spins: int,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs `bloch_sum_backward`, the adjoint map."""
    if needs[1]:
        raise RuntimeError("bloch_sum: there is no derivative with respect to the phases")
    grad_blocks = empty_like(blocks)
    if needs[0]:
        arrays = (grad, coefficient, edges, pairs)
        kernels().bloch_sum_backward(*(t.numpy() for t in arrays), spins, grad_blocks.numpy())
    return [grad_blocks, *(torch.empty_like(t) for t in (coefficient, edges, pairs))]
