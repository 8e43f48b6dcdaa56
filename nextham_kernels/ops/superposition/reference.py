"""Superposition of atomic functions on a grid: the definition."""

from __future__ import annotations

import torch


def points(step: torch.Tensor, brick: torch.Tensor) -> torch.Tensor:
    """Returns the points of a brick [p, 3], the last index counting fastest."""
    axes = [torch.arange(int(f), int(f + s), device=step.device) for f, s in zip(brick[:3], brick[3:], strict=True)]
    return torch.cartesian_prod(*axes).to(step) @ step


def interpolated(distance: torch.Tensor, table: torch.Tensor, first: int, last: int, per_length: float) -> torch.Tensor:
    """Returns the cubics of rows first … last − 1 at a distance [p, f]; zero beyond."""
    x = distance * per_length
    row = x.detach().floor().long()
    inside = row < last - first
    c = table[first + torch.where(inside, row, torch.zeros_like(row))]  # [p, 4, f]
    t = (x - row)[:, None]
    return (((c[:, 3] * t + c[:, 2]) * t + c[:, 1]) * t + c[:, 0]) * inside[:, None]


def superposition(
    centres: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    rows: torch.Tensor,
    bricks: torch.Tensor,
    starts: torch.Tensor,
    species: torch.Tensor,
    per_length: float,
    n_points: int,
) -> torch.Tensor:
    """Σ over the atoms of each brick.

    Args:
        centres: [i, 3].
        table: [row, 4, 4].
        step: [3, 3].
        rows: [z + 1].
        bricks: [c, 6].
        starts: [c + 1].
        species: [i].
        per_length: rows per unit of length.
        n_points: p.

    Returns:
        [p, 5].
    """
    results = []
    for c, brick in enumerate(bricks):
        r = points(step, brick)
        potential, density = r.new_zeros(len(r)), r.new_zeros(len(r))
        gradient, hessian = r.new_zeros(len(r), 3), r.new_zeros(len(r), 3, 3)
        for i in range(int(starts[c]), int(starts[c + 1])):
            d = r - centres[i]
            square = (d * d).sum(1)
            distance = torch.where(square > 0, square, torch.ones_like(square)).sqrt() * (square > 0)
            z = int(species[i])
            v, n, slope, curvature = interpolated(distance, table, int(rows[z]), int(rows[z + 1]), per_length).unbind(1)
            potential, density = potential + v, density + n
            gradient = gradient + slope[:, None] * d
            along = (curvature - slope) / torch.where(square > 0, square, torch.ones_like(square))
            hessian = hessian + slope[:, None, None] * torch.eye(3).to(d)
            hessian = hessian + along[:, None, None] * d[:, :, None] * d[:, None, :]
        laplacian = hessian.diagonal(dim1=1, dim2=2).sum(1)
        curved = torch.einsum("pi,pij,pj->p", gradient, hessian, gradient)
        results.append(torch.stack([potential, density, (gradient * gradient).sum(1), laplacian, curved], dim=1))
    return torch.cat([step.new_zeros(0, 5), *results])
