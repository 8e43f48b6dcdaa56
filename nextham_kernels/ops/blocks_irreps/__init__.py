"""Hamiltonian blocks to irreps and back.

Shell pairs (s₁, s₂) are taken row by row over the list of shells. A pair of degrees (l₁, l₂) couples to
L = |l₁ − l₂| … l₁ + l₂ with parity (−1)^(l₁+l₂):

    x_LM = (2L+1) Σ wigner_3j(L,l₁,l₂)_M,m₁m₂ H_m₁m₂        H_m₁m₂ = Σ_LM wigner_3j(l₁,l₂,L)_m₁m₂,M x_LM

With spin, H = (h₀·1 + h_x σ_x + h_y σ_y + h_z σ_z)/√2. The scalar h₀ is coupled as above; the vector (h_y, h_z, h_x),
a 1e, gives L first and is then coupled again, L ⊗ 1e → J, by the same rule. A pair's irreps are all L of h₀, then for
each L its J = |L − 1| … L + 1. The output is the real parts of all pairs, then the imaginary parts. The published
layout, shells (0,0,0,0,1,1,2,2,3), has 81 pairs and 2 · 2916 = 5832 components.

Blocks are in e3nn's component order m = −l … l with the usual signs; an edge i→j has rows of i, columns of j, and spin
components uu, ud, du, dd. Both directions are linear and inverse to each other; any derivative exists.
Source: DeepH-E3, Gong et al. (2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from nextham_kernels.checks import check_irreps_dim, check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.blocks_irreps import reference

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["block_irreps", "blocks_to_irreps", "irreps_to_blocks"]


def blocks_to_irreps(blocks: torch.Tensor, shells: Sequence[int]) -> torch.Tensor:
    """Couples Hamiltonian blocks to irreps; the formula is on the op's page.

    Args:
        blocks: [e, 4, a, b] complex64 or complex128 with spin (uu, ud, du, dd), or [e, 1, a, b] float32 or float64
            without; a = b = Σ_s (2l_s + 1); any unit.
        shells: l of each shell.

    Returns:
        [e, d] real, in the layout `block_irreps(shells, spinor)`, same unit.

    Raises:
        ValueError: a wrong shape.
        TypeError: real blocks with spin, or complex ones without.

    Example:
        >>> import torch
        >>> blocks_to_irreps(torch.full((1, 1, 1, 1), 2.0), (0,))
        tensor([[2.]])
    """
    spinor = blocks.ndim == 4 and blocks.shape[1] == 4
    check_tensors(blocks=blocks, complex_=spinor)
    size = str(sum(2 * l + 1 for l in _check_shells(shells)))
    check_shapes(blocks=(blocks, f"e {4 if spinor else 1} {size} {size}"))
    return reference.blocks_to_irreps(blocks, tuple(shells))


def irreps_to_blocks(x: torch.Tensor, shells: Sequence[int], spinor: bool) -> torch.Tensor:
    """Rebuilds Hamiltonian blocks from irreps: the inverse of `blocks_to_irreps`.

    Args:
        x: [e, d], float32 or float64, in the layout `block_irreps(shells, spinor)`.
        shells: l of each shell.
        spinor: with spin or without.

    Returns:
        [e, 4, a, b] complex with spin, [e, 1, a, b] real without; same unit.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong dtype.

    Example:
        >>> import torch
        >>> irreps_to_blocks(torch.tensor([[2.0]]), (0,), spinor=False)
        tensor([[[[2.]]]])
    """
    check_tensors(x=x)
    irreps = block_irreps(shells, spinor)
    check_irreps_dim("x", x, irreps, irreps.dim)
    return reference.irreps_to_blocks(x, tuple(shells), spinor)


def block_irreps(shells: Sequence[int], spinor: bool) -> o3.Irreps:
    """Returns the irreps of a block, in the order of the components and not simplified.

    Example:
        >>> block_irreps((0, 1), spinor=False)
        1x0e+1x1o+1x1o+1x0e+1x1e+1x2e
    """
    layout = reference.layout(tuple(_check_shells(shells)), spinor)
    return irreps_of("+".join(f"1x{l}{'e' if p > 0 else 'o'}" for l, p in layout))


def _check_shells(shells: Sequence[int]) -> Sequence[int]:
    if not shells or min(shells) < 0:
        raise ValueError(f"shells: expected at least one l >= 0, got {tuple(shells)}")
    return shells
