"""Gate: the C++ kernel's tables and calls."""

from __future__ import annotations

import functools

import numpy as np
import torch

from nextham_kernels.clebsch_gordan import dim_of, irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.loading import kernels
from nextham_kernels.ops.gate.reference import SIGMOID_SCALE, SILU_SCALE, counts
from nextham_kernels.result_memory import empty, empty_like


@functools.cache
def gate_of(irreps_out: str, edge: bool) -> np.ndarray:
    """Which gate scales each number behind the scalars, int32 [d_out − scalars]."""
    irreps = irreps_of(irreps_out)
    n_scalars, _ = counts(irreps)
    channel = np.cumsum([0, *(mul for mul, _ in irreps)])
    flat = np.concatenate([np.repeat(np.arange(mul), ir.dim) + channel[b] for b, (mul, ir) in enumerate(irreps)])
    if edge:
        flat = flat[edge_layout(irreps).index.numpy()]
    return (flat[n_scalars:] - n_scalars).astype(np.int32)


def _settings(irreps_out: str, edge: bool) -> tuple[np.ndarray, int, int, float, float]:
    return gate_of(irreps_out, edge), *counts(irreps_of(irreps_out)), SILU_SCALE, SIGMOID_SCALE


def forward(x: torch.Tensor, irreps_out: str, edge: bool, skip: int) -> torch.Tensor:
    """Runs `gate_forward`."""
    y = empty(x, (len(x), dim_of(irreps_out)))
    kernels().gate_forward(x.numpy(), skip, *_settings(irreps_out, edge), y.numpy())
    return y


def backward(
    grad: torch.Tensor, x: torch.Tensor, irreps_out: str, edge: bool, skip: int, needs: list[bool]
) -> list[torch.Tensor]:
    """Runs `gate_backward`; `needs` has one entry, which is true."""
    grad_x = empty_like(x)
    kernels().gate_backward(grad.numpy(), x.numpy(), skip, *_settings(irreps_out, edge), grad_x.numpy())
    return [grad_x]
