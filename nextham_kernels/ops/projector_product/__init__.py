"""Products of projections that share their projectors, summed over the atoms that carry them: V_NL = Σ_A B† D B.

    y_e,k,a,b = Σ_(t of e) Σ_cd left_(t₀),c,a D_k,c,d right_(t₁),d,b

left_n,c,a = ⟨β_c|φ_a⟩ holds the projections of one atom's orbitals on the projectors of another, right likewise; a pair
(t₀, t₁) names two of them with the projectors of the same atom in common. The pairs of result e are those from
starts_e to starts_e+1. D are the strengths, several matrices k at once (four in a relativistic pseudopotential).

It is linear in left, right and D; derivatives exist up to second order (they are the reference's). Source: L. Kleinman,
D. M. Bylander, Phys. Rev. Lett. 48, 1425 (1982); with spin-orbit coupling `nextham.h0.nonlocal_part`.
"""

from __future__ import annotations

import torch

from nextham_kernels.checks import check_range, check_shapes, check_starts, check_tensors
from nextham_kernels.ops.projector_product import cpu, reference
from nextham_kernels.registration import define

__all__ = ["projector_product"]

_op = define(
    "projector_product",
    "Tensor left, Tensor right, Tensor strength, Tensor pairs, Tensor starts",
    reference.projector_product,
    cpu.forward,
    None,
    lambda left, right, strength, pairs, starts: left.new_empty(
        len(starts) - 1, len(strength), left.shape[2], right.shape[2]
    ),
    gpu=("projector_product.kernel.forward",),
)


def projector_product(
    left: torch.Tensor, right: torch.Tensor, strength: torch.Tensor, pairs: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    """Sums products of projections; the formula is on the op's page.

    Args:
        left: [n, c, a], float32 or float64.
        right: [m, c, b], same dtype; may be `left`.
        strength: D [k, c, c], same dtype; its zeros cost nothing.
        pairs: which of left and which of right, int64 [t, 2].
        starts: the first pair of each result and, last, t; int64 [e + 1], ascending.

    Returns:
        [e, k, a, b].

    Raises:
        ValueError: a wrong shape, an index out of range, or starts that do not ascend from 0 to t.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> left, strength = torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[[3.0]]])
        >>> pairs, starts = torch.tensor([[0, 0], [1, 1], [0, 1]]), torch.tensor([0, 2, 3])
        >>> projector_product(left, left, strength, pairs, starts).flatten()
        tensor([15.,  6.])
    """
    check_tensors({"pairs": pairs, "starts": starts}, left=left, right=right, strength=strength)
    check_shapes(
        left=(left, "n c a"),
        right=(right, "m c b"),
        strength=(strength, "k c c"),
        pairs=(pairs, "t 2"),
        starts=(starts, "s"),
    )
    for side, projections in enumerate((left, right)):
        check_range(f"pairs[:, {side}]", pairs[:, side], len(projections))
    check_starts("starts", starts, max(1, len(starts)), len(pairs))
    return _op(left, right, strength, pairs, starts)
