"""Hamiltonian blocks to irreps and back: the definition, pair by pair. Complex numbers are pairs of real ones here."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch

from nextham_kernels.clebsch_gordan import wigner_3j

Shells = Sequence[int]


def pairs(rows: Shells, columns: Shells) -> Iterator[tuple[int, int, slice, slice]]:
    """Yields l₁, l₂, rows and columns of each shell pair."""
    ends = [[sum(2 * l + 1 for l in shells[: s + 1]) for s in range(len(shells))] for shells in (rows, columns)]
    for l1, row in zip(rows, ends[0], strict=True):
        for l2, column in zip(columns, ends[1], strict=True):
            yield l1, l2, slice(row - 2 * l1 - 1, row), slice(column - 2 * l2 - 1, column)


def coupled(l1: int, l2: int) -> range:
    """Returns the degrees of l₁ ⊗ l₂."""
    return range(abs(l1 - l2), l1 + l2 + 1)


@functools.cache
def layout(rows: tuple[int, ...], columns: tuple[int, ...], spinor: bool) -> list[tuple[int, int]]:
    """Returns (l, parity) of each irrep, in order."""
    out = []
    for l1, l2, _, _ in pairs(rows, columns):
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


def correction(blocks: torch.Tensor, spin: str) -> torch.Tensor:
    """The part of (uu, ud, du, dd) that `spin` names; the formulas are on the op's page."""
    uu, ud, du, dd = blocks.unbind(1)
    if spin == "scalar+vector":
        return (blocks + torch.stack([dd, -du, -ud, uu], dim=1).conj()) / 2
    if spin in ("uu", "scalar"):
        same = uu.real if spin == "uu" else (uu.real + dd.real) / 2
        zero = torch.zeros_like(same)
        same, nothing = torch.complex(same, zero), torch.complex(zero, zero)
        return torch.stack([same, nothing, nothing, same], dim=1)
    return blocks


def blocks_to_irreps(
    blocks: torch.Tensor, places: torch.Tensor, rows: Shells, columns: Shells, width: int
) -> torch.Tensor:
    """x_LM = (2L+1) Σ C(L,l₁,l₂) H, then L ⊗ 1e → J for the spin vector; component i goes to places[i]."""
    spinor = blocks.ndim == 5
    if spinor:
        h = spin_components(torch.view_as_complex(blocks))
        h = torch.stack([h.real, h.imag], dim=1)  # [e, part, spin, a, b]
    else:
        h = blocks[:, None]
    out = []
    for l1, l2, row, column in pairs(rows, columns):
        scalars, vectors = [], []
        for l in coupled(l1, l2):
            c = (2 * l + 1) * wigner_3j(l, l1, l2, h.dtype, h.device)
            x = torch.einsum("kij,epsij->epsk", c, h[..., row, column])
            scalars.append(x[:, :, 0])
            if spinor:
                for j in coupled(l, 1):
                    c = (2 * j + 1) * wigner_3j(j, l, 1, h.dtype, h.device)
                    vectors.append(torch.einsum("jks,epsk->epj", c, x[:, :, 1:]))
        out += scalars + vectors
    full = torch.cat(out, dim=2).flatten(1)
    place = torch.where(places < 0, width, places)
    return full.new_zeros(len(full), width + 1).index_add(1, place, full)[:, :width].contiguous()


def irreps_to_blocks(x: torch.Tensor, places: torch.Tensor, rows: Shells, columns: Shells, spin: str) -> torch.Tensor:
    """H = Σ_LM C(l₁,l₂,L) x_LM, for the spin vector after x_L,s = Σ_J C(L,1,J) x_J; component i is at places[i]."""
    spinor = spin != "none"
    x = torch.cat([x, x.new_zeros(len(x), 1)], dim=1)[:, torch.where(places < 0, x.shape[1], places)]
    x = x.unflatten(1, (2 if spinor else 1, -1))  # [e, part, d]
    strips, start = [[] for _ in rows], 0

    def take(l: int) -> torch.Tensor:
        nonlocal start
        start += 2 * l + 1
        return x[:, :, start - 2 * l - 1 : start]

    for pair, (l1, l2, _, _) in enumerate(pairs(rows, columns)):
        spins = [[take(l)] for l in coupled(l1, l2)]  # per L: [spin component][e, part, k]
        if spinor:
            for l, components in zip(coupled(l1, l2), spins, strict=True):
                c = {j: wigner_3j(l, 1, j, x.dtype, x.device) for j in coupled(l, 1)}
                vector = sum(torch.einsum("ksj,epj->epsk", c[j], take(j)) for j in c)
                components.extend(vector.unbind(2))
        block = sum(
            torch.einsum("ijk,epsk->epsij", wigner_3j(l1, l2, l, x.dtype, x.device), torch.stack(components, dim=2))
            for l, components in zip(coupled(l1, l2), spins, strict=True)
        )
        strips[pair // len(columns)].append(block)
    h = torch.cat([torch.cat(strip, dim=4) for strip in strips], dim=3)  # [e, part, spin, a, b]
    if not spinor:
        return h[:, 0]
    blocks = spin_blocks(torch.complex(h[:, 0].contiguous(), h[:, 1].contiguous()))
    return torch.view_as_real(correction(blocks, spin))
