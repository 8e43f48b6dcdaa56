"""Gaussian radial basis: the C++ kernel's calls."""

from __future__ import annotations

import torch

from nextham_kernels.loading import kernels
from nextham_kernels.ops.radial_basis.reference import gaussians


def _settings(distance: torch.Tensor, n: int, stop: float) -> tuple[object, float]:
    centres, sigma = gaussians(n, stop)
    return centres.to(distance.dtype).numpy(), 1 / (2 * sigma**2)


def forward(distance: torch.Tensor, n: int, stop: float) -> torch.Tensor:
    """Runs `radial_basis_forward`."""
    y = distance.new_empty(len(distance), n)
    kernels().radial_basis_forward(distance.numpy(), *_settings(distance, n, stop), y.numpy())
    return y


def backward(grad: torch.Tensor, distance: torch.Tensor, n: int, stop: float, needs: list[bool]) -> list[torch.Tensor]:
    """Runs `radial_basis_backward`; `needs` has one entry, which is true."""
    grad_distance = torch.empty_like(distance)
    settings = _settings(distance, n, stop)
    kernels().radial_basis_backward(grad.numpy(), distance.numpy(), *settings, grad_distance.numpy())
    return [grad_distance]
