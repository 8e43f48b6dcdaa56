"""Gaussian radial basis.

B_ec = exp(−(r_e − μ_c)² / 2σ²), centres μ_c = linspace(0, stop, n) and σ = 0.5 · stop / n.

On the CPU what is below 1e-30 (in float64 1e-290) comes out as zero, so that no product with a weight is denormal.

Any derivative exists. Source: the published network (64 Gaussians up to 10 Å).
"""

from __future__ import annotations

import torch

from nextham_kernels.checks import check_shapes, check_tensors
from nextham_kernels.ops.radial_basis import cpu, reference
from nextham_kernels.registration import define

__all__ = ["radial_basis"]

_op = define(
    "radial_basis",
    "Tensor distance, int n, float stop",
    reference.radial_basis,
    cpu.forward,
    cpu.backward,
    lambda distance, n, stop: distance.new_empty(distance.shape[0], n),
    gpu=("radial_basis.kernel.forward", "radial_basis.kernel.backward"),
)


def radial_basis(distance: torch.Tensor, n: int, stop: float) -> torch.Tensor:
    """Expands distances in n Gaussians with centres from 0 to stop.

    Args:
        distance: r [e], Å, float32 or float64.
        n: number of Gaussians, at least 2.
        stop: last centre, Å.

    Returns:
        [e, n].

    Raises:
        ValueError: a wrong shape, n < 2, or stop not positive.
        TypeError: a wrong dtype.

    Example:
        >>> import torch
        >>> radial_basis(torch.tensor([0.0, 1.0]), 3, 2.0).round(decimals=4)
        tensor([[1.0000, 0.0111, 0.0000],
                [0.0111, 1.0000, 0.0111]])
    """
    check_tensors(distance=distance)
    check_shapes(distance=(distance, "e"))
    if n < 2:
        raise ValueError(f"n: expected at least 2 Gaussians, got {n}")
    if not stop > 0:
        raise ValueError(f"stop: expected a positive distance, got {stop}")
    return _op(distance, n, float(stop))
