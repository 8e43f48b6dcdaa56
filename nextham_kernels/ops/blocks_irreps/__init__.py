"""Hamiltonian blocks to irreps and back.

A block couples the shells of one atom (rows) with those of another (columns). Shell pairs (s₁, s₂) are taken row by
row. A pair of degrees (l₁, l₂) couples to L = |l₁ − l₂| … l₁ + l₂ with parity (−1)^(l₁+l₂):

    x_LM = (2L+1) Σ wigner_3j(L,l₁,l₂)_M,m₁m₂ H_m₁m₂        H_m₁m₂ = Σ_LM wigner_3j(l₁,l₂,L)_m₁m₂,M x_LM

With spin, H = (h₀·1 + h_x σ_x + h_y σ_y + h_z σ_z)/√2. The scalar h₀ is coupled as above; the vector (h_y, h_z, h_x),
a 1e, gives L first and is then coupled again, L ⊗ 1e → J, by the same rule. A pair's irreps are all L of h₀, then for
each L its J = |L − 1| … L + 1; together (2l₁+1)(2l₂+1) components, with spin four times as many. The output is the real
parts of all pairs, then the imaginary parts. The published layout, shells (0,0,0,0,1,1,2,2,3) for every atom, has 81
pairs and 2 · 2916 = 5832 components.

Edges of other elements have fewer shells. `places` lets them share one layout: component i of a block's own irreps
lies at place places[i] of the row, or nowhere (−1): not computed on the way there, zero on the way back.

Blocks are in e3nn's component order m = −l … l with the usual signs; an edge i→j has rows of i, columns of j, and spin
components uu, ud, du, dd. Both directions are linear, inverse to each other, and any derivative exists.
Source: DeepH-E3, Gong et al. (2023); the parts of `SPINS` are those that corrections of the published network use.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from nextham_kernels.checks import check_irreps_dim, check_range, check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.blocks_irreps import cpu, reference
from nextham_kernels.registration import define

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["SPINS", "block_irreps", "blocks_to_irreps", "irreps_to_blocks"]

SPINS = ("spinor", "uu", "scalar", "scalar+vector")
"""What `irreps_to_blocks` rebuilds of a block with spin."""

_to_irreps = define(
    "blocks_to_irreps",
    "Tensor blocks, Tensor places, int[] rows, int[] columns, int width",
    reference.blocks_to_irreps,
    cpu.to_irreps_forward,
    cpu.to_irreps_backward,
    cpu.irreps_like,
    linear_part=lambda i, *settings: settings,
    gpu=("blocks_irreps.kernel.to_irreps_forward", "blocks_irreps.kernel.to_irreps_backward"),
)
_to_blocks = define(
    "irreps_to_blocks",
    "Tensor x, Tensor places, int[] rows, int[] columns, str spin",
    reference.irreps_to_blocks,
    cpu.to_blocks_forward,
    cpu.to_blocks_backward,
    cpu.blocks_like,
    linear_part=lambda i, *settings: settings,
    gpu=("blocks_irreps.kernel.to_blocks_forward", "blocks_irreps.kernel.to_blocks_backward"),
)


def blocks_to_irreps(
    blocks: torch.Tensor,
    shells: Sequence[int],
    column_shells: Sequence[int] | None = None,
    places: torch.Tensor | None = None,
    width: int | None = None,
) -> torch.Tensor:
    """Couples Hamiltonian blocks to irreps; the formula is on the op's page.

    Args:
        blocks: [e, 4, a, b] complex64 or complex128 with spin (uu, ud, du, dd), or [e, 1, a, b] float32 or float64
            without; a = Σ_s (2l_s + 1) over the rows' shells, b likewise; any unit.
        shells: l of each shell of the rows.
        column_shells: the same of the columns; by default those of the rows.
        places: where each component of `block_irreps` goes, int64 [d], −1: nowhere; by default 0 … d − 1.
        width: components of a row of the result, d by default; those where nothing goes are zero.

    Returns:
        [e, width] real, same unit; by default in the layout `block_irreps(shells, spinor, column_shells)`.

    Raises:
        ValueError: a wrong shape, or a place beyond the row.
        TypeError: real blocks with spin, or complex ones without.

    Example:
        >>> import torch
        >>> blocks_to_irreps(torch.full((1, 1, 1, 1), 2.0), (0,))
        tensor([[2.]])
        >>> blocks_to_irreps(torch.ones(1, 1, 1, 2), (0,), (0, 0), torch.tensor([3, -1]), 4)
        tensor([[0., 0., 0., 1.]])
    """
    spinor = blocks.ndim == 4 and blocks.shape[1] == 4
    check_tensors(blocks=blocks, complex_=spinor)
    rows = _check_shells("shells", shells)
    columns = rows if column_shells is None else _check_shells("column_shells", column_shells)
    sizes = [sum(2 * l + 1 for l in shells) for shells in (rows, columns)]
    check_shapes(blocks=(blocks, f"e {4 if spinor else 1} {sizes[0]} {sizes[1]}"))
    width = sizes[0] * sizes[1] * (8 if spinor else 1) if width is None else width
    places = _check_places(places, sizes[0] * sizes[1] * (8 if spinor else 1), width, blocks.device)
    if spinor:
        blocks = torch.view_as_real(blocks.resolve_conj())
    return _to_irreps(blocks, places, list(rows), list(columns), width)


def irreps_to_blocks(
    x: torch.Tensor,
    shells: Sequence[int],
    spinor: bool,
    column_shells: Sequence[int] | None = None,
    places: torch.Tensor | None = None,
    spin: str = "spinor",
) -> torch.Tensor:
    """Rebuilds Hamiltonian blocks from irreps: the inverse of `blocks_to_irreps`, of a part of the spin if wanted.

    - `spinor`: all of it.
    - `uu`: Re ↑↑, as ↑↑ and ↓↓. It is (h₀ + h_z)/√2, so a vector component enters and the result depends on the axes.
    - `scalar`: Re(↑↑ + ↓↓)/2 = Re h₀/√2, as ↑↑ and ↓↓.
    - `scalar+vector`: the half that time reversal allows, (H + σ_y H* σ_y)/2, which is Re h₀ and i Im h.

    Args:
        x: [e, width], float32 or float64.
        shells: l of each shell of the rows.
        spinor: with spin or without.
        column_shells: the same of the columns; by default those of the rows.
        places: where in `x` each component of `block_irreps` lies, int64 [d], −1: zero; by default 0 … d − 1.
        spin: one of `SPINS`; without spin it is not read.

    Returns:
        [e, 4, a, b] complex with spin, [e, 1, a, b] real without; same unit.

    Raises:
        ValueError: a wrong shape, a place beyond the row, or another spin.
        TypeError: a wrong dtype.

    Example:
        >>> import torch
        >>> irreps_to_blocks(torch.tensor([[2.0]]), (0,), spinor=False)
        tensor([[[[2.]]]])
    """
    check_tensors(x=x)
    rows = _check_shells("shells", shells)
    columns = rows if column_shells is None else _check_shells("column_shells", column_shells)
    if spin not in SPINS:
        raise ValueError(f"spin: expected one of {', '.join(SPINS)}, got {spin!r}")
    dim = sum(2 * l + 1 for l in rows) * sum(2 * l + 1 for l in columns) * (8 if spinor else 1)
    if places is None:
        check_irreps_dim("x", x, block_irreps(rows, spinor, columns), dim)
    check_shapes(x=(x, "e d"))
    places = _check_places(places, dim, x.shape[1], x.device)
    blocks = _to_blocks(x, places, list(rows), list(columns), spin if spinor else "none")
    return torch.view_as_complex(blocks) if spinor else blocks


def block_irreps(shells: Sequence[int], spinor: bool, column_shells: Sequence[int] | None = None) -> o3.Irreps:
    """Returns the irreps of a block, in the order of the components and not simplified.

    Example:
        >>> block_irreps((0, 1), spinor=False)
        1x0e+1x1o+1x1o+1x0e+1x1e+1x2e
    """
    rows = _check_shells("shells", shells)
    columns = rows if column_shells is None else _check_shells("column_shells", column_shells)
    return _block_irreps(rows, columns, spinor)


@functools.cache
def _block_irreps(rows: tuple[int, ...], columns: tuple[int, ...], spinor: bool) -> o3.Irreps:
    return irreps_of("+".join(f"1x{l}{'e' if p > 0 else 'o'}" for l, p in reference.layout(rows, columns, spinor)))


def _check_shells(name: str, shells: Sequence[int]) -> tuple[int, ...]:
    if not shells or min(shells) < 0:
        raise ValueError(f"{name}: expected at least one l >= 0, got {tuple(shells)}")
    return tuple(shells)


def _check_places(places: torch.Tensor | None, dim: int, width: int, device: torch.device) -> torch.Tensor:
    if places is None:
        if width != dim:
            raise ValueError(f"width: expected {dim} without places, got {width}")
        return torch.arange(dim, device=device)
    check_tensors(integer={"places": places})
    check_shapes(places=(places, str(dim)))
    check_range("places", places, width, least=-1)
    return places
