"""Hamiltonian blocks to irreps and back: the definition, pair by pair."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from nextham_kernels.clebsch_gordan import wigner_3j


def pairs(shells: tuple[int, ...]) -> Iterator[tuple[int, int, slice, slice]]:
    """Yields l₁, l₂, rows and columns of each shell pair."""
    starts = [sum(2 * l + 1 for l in shells[:s]) for s in range(len(shells))]
    for l1, row in zip(shells, starts, strict=True):
        for l2, column in zip(shells, starts, strict=True):
            yield l1, l2, slice(row, row + 2 * l1 + 1), slice(column, column + 2 * l2 + 1)


def coupled(l1: int, l2: int) -> range:
    """Returns the degrees of l₁ ⊗ l₂."""
    return range(abs(l1 - l2), l1 + l2 + 1)


@functools.cache
def layout(shells: tuple[int, ...], spinor: bool) -> list[tuple[int, int]]:
    """Returns (l, parity) of each irrep, in order."""
    out = []
    for l1, l2, _, _ in pairs(shells):
        degrees = list(coupled(l1, l2))
        if spinor:
            degrees += [j for l in coupled(l1, l2) for j in coupled(l, 1)]
        out += [(l, (-1) ** (l1 + l2)) for l in degrees]
    return 2 * out if spinor else out


def spin_components(blocks: torch.Tensor) -> torch.Tensor:
    """(uu, ud, du, dd) → (h₀, h_y, h_z, h_x)."""
    uu, ud, du, dd = blocks.unbind(1)
    return torch.stack([uu + dd, 1j * (ud - du), uu - dd, ud + du], dim=1) / 2**0.5


def spin_blocks(h: torch.Tensor) -> torch.Tensor:
    """(h₀, h_y, h_z, h_x) → (uu, ud, du, dd)."""
    h0, hy, hz, hx = h.unbind(1)
    return torch.stack([h0 + hz, hx - 1j * hy, hx + 1j * hy, h0 - hz], dim=1) / 2**0.5


def blocks_to_irreps(blocks: torch.Tensor, shells: tuple[int, ...]) -> torch.Tensor:
    """x_LM = (2L+1) Σ C(L,l₁,l₂) H, then L ⊗ 1e → J for the spin vector."""
    spinor = blocks.shape[1] == 4
    if spinor:
        h = spin_components(blocks)
        h = torch.stack([h.real, h.imag], dim=1)  # [e, part, spin, a, b]
    else:
        h = blocks[:, None]
    out = []
    for l1, l2, rows, columns in pairs(shells):
        scalars, vectors = [], []
        for l in coupled(l1, l2):
            c = (2 * l + 1) * wigner_3j(l, l1, l2, h.dtype, h.device)
            x = torch.einsum("kij,epsij->epsk", c, h[..., rows, columns])
            scalars.append(x[:, :, 0])
            if spinor:
                for j in coupled(l, 1):
                    c = (2 * j + 1) * wigner_3j(j, l, 1, h.dtype, h.device)
                    vectors.append(torch.einsum("jks,epsk->epj", c, x[:, :, 1:]))
        out += scalars + vectors
    return torch.cat(out, dim=2).flatten(1)


def irreps_to_blocks(x: torch.Tensor, shells: tuple[int, ...], spinor: bool) -> torch.Tensor:
    """H = Σ_LM C(l₁,l₂,L) x_LM, for the spin vector after x_L,s = Σ_J C(L,1,J) x_J."""
    x = x.unflatten(1, (2 if spinor else 1, -1))  # [e, part, d]
    rows, start = [[] for _ in shells], 0

    def take(l: int) -> torch.Tensor:
        nonlocal start
        start += 2 * l + 1
        return x[:, :, start - 2 * l - 1 : start]

    for pair, (l1, l2, _, _) in enumerate(pairs(shells)):
        spins = [[take(l)] for l in coupled(l1, l2)]  # per L: [spin component][e, part, k]
        if spinor:
            for l, spin in zip(coupled(l1, l2), spins, strict=True):
                c = {j: wigner_3j(l, 1, j, x.dtype, x.device) for j in coupled(l, 1)}
                vector = sum(torch.einsum("ksj,epj->epsk", c[j], take(j)) for j in c)
                spin.extend(vector.unbind(2))
        block = sum(
            torch.einsum("ijk,epsk->epsij", wigner_3j(l1, l2, l, x.dtype, x.device), torch.stack(spin, dim=2))
            for l, spin in zip(coupled(l1, l2), spins, strict=True)
        )
        rows[pair // len(shells)].append(block)
    h = torch.cat([torch.cat(row, dim=4) for row in rows], dim=3)  # [e, part, spin, a, b]
    if not spinor:
        return h[:, 0]
    return spin_blocks(torch.complex(h[:, 0].contiguous(), h[:, 1].contiguous()))
