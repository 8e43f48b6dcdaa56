"""Matrix elements of a potential between orbitals on a grid: the definition."""

from __future__ import annotations

import torch


def degrees_of(shells: str) -> tuple[tuple[int, ...], ...]:
    """The degrees of each species in a setting such as `0,0,1;0,1`."""
    return tuple(tuple(map(int, word.split(","))) if word else () for word in shells.split(";"))


def points(step: torch.Tensor, brick: torch.Tensor) -> torch.Tensor:
    """Returns the points of a brick [p, 3], the last index counting fastest."""
    axes = [torch.arange(int(f), int(f + s), device=step.device) for f, s in zip(brick[:3], brick[3:], strict=True)]
    return torch.cartesian_prod(*axes).to(step) @ step


def orbitals(d: torch.Tensor, table: torch.Tensor, degrees: tuple[int, ...], per_length: float) -> torch.Tensor:
    """Returns the orbitals of one atom at vectors d from it, f(|d|) |d|^l Y_lm [p, a]; table is [row, 4, s]."""
    from e3nn import o3

    square = (d * d).sum(1)
    x = torch.where(square > 0, square, torch.ones_like(square)).sqrt() * (square > 0) * per_length
    row = x.detach().floor().long()
    inside = row < len(table)
    c = table[torch.where(inside, row, torch.zeros_like(row))]
    t = (x - row)[:, None]
    radial = (((c[:, 3] * t + c[:, 2]) * t + c[:, 1]) * t + c[:, 0]) * inside[:, None]
    harmonics = {
        l: o3.spherical_harmonics(l, d[:, [1, 2, 0]], normalize=False, normalization="integral") for l in set(degrees)
    }
    return torch.cat([radial[:, s : s + 1] * harmonics[l] for s, l in enumerate(degrees)], dim=1)


def grid_integrals(
    weight: torch.Tensor,
    centres: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    rows: torch.Tensor,
    bricks: torch.Tensor,
    starts: torch.Tensor,
    species: torch.Tensor,
    pairs: torch.Tensor,
    pair_starts: torch.Tensor,
    per_length: float,
    size: int,
    shells: str,
    most: int,
) -> torch.Tensor:
    """Σ over the points of all bricks.

    Args:
        weight: [p].
        centres: [i, 3].
        table: [row, 4, s].
        step: [3, 3].
        rows: [z + 1].
        bricks: [c, 6].
        starts: [c + 1].
        species: [i].
        pairs: [q, 3].
        pair_starts: [c + 1].
        per_length: rows per unit of length.
        size: length of the result.
        shells: degrees of each species, as `degrees_of` reads them.
        most: the most orbitals of a brick, which the GPU's kernel asks for.

    Returns:
        [size].
    """
    result, first = weight.new_zeros(size), 0
    kinds = degrees_of(shells)
    for c, brick in enumerate(bricks):
        r = points(step, brick)
        w = weight[first : first + len(r)]
        first += len(r)
        start = int(starts[c])
        values = []
        for i in range(start, int(starts[c + 1])):
            z = int(species[i])
            of_species = table[int(rows[z]) : int(rows[z + 1])]
            values.append(orbitals(r - centres[i], of_species, kinds[z], per_length))
        for pair in pairs[int(pair_starts[c]) : int(pair_starts[c + 1])]:
            a, b, offset = (int(number) for number in pair)
            block = ((values[a] * w[:, None]).T @ values[b]).flatten()
            result = result.index_add(0, torch.arange(offset, offset + len(block), device=result.device), block)
    return result
