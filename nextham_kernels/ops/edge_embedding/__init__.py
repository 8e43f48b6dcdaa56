"""The first rows of edges: one or several linear maps of features on e3nn's flat axis, seen in the edges' frames.

    y_ke = D_e W_k x_o(e)

with D_e the rotation into the frame of edge e (`edge_wigner`), rows as in `edge_layout`, o(e) the row of x that belongs
to edge e, and W_k an irreps-wise linear map without bias, [u, v] for each irrep. Linear maps commute with rotations, so
either may come first; the kernel maps first and rotates what is left.

It is the composition of ops that `composition` writes down, with their derivatives. Weights that were packed (`pack`)
run on the CPU in one kernel instead, which has no derivatives.
"""

from __future__ import annotations

import torch

from nextham_kernels.checks import check_range, check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.edge_embedding import composition, cpu
from nextham_kernels.ops.edge_embedding.composition import EmbeddingWeights
from nextham_kernels.ops.edge_embedding.cpu import PackedEmbedding

__all__ = ["EmbeddingWeights", "PackedEmbedding", "edge_embedding", "pack"]


def pack(weights: EmbeddingWeights) -> PackedEmbedding:
    """Returns the weights as the CPU kernel reads them; they do not follow later changes.

    Raises:
        TypeError: weights on another device than the CPU.
        ValueError: columns in which the components of a channel do not lie one after the other.
        RuntimeError: the kernels are not built.
    """
    for matrix in weights.matrices.values():
        if matrix.device.type != "cpu":
            raise TypeError(f"weights: expected tensors on the CPU, got {matrix.device}")
    return cpu.pack(weights)


def edge_embedding(
    x: torch.Tensor,
    wigner: torch.Tensor,
    weights: EmbeddingWeights | PackedEmbedding,
    order: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the rows of edges under each map; the formula is on the op's page.

    Args:
        x: features [g, width], float32 or float64.
        wigner: D_e [e, w] of `edge_wigner`; its l_max may exceed that of the irreps.
        weights: plain weights, or packed ones, which record no gradient.
        order: o(e), which row of `x` belongs to each edge [e], int64; None: its own.

    Returns:
        y [k, e, d], d being the dimension of `irreps_out`.

    Raises:
        ValueError: a wrong shape, or an index that is out of range.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> from nextham_kernels.clebsch_gordan import irreps_of
        >>> from nextham_kernels.ops.rotation import edge_wigner
        >>> scalar = irreps_of("0e")[0].ir
        >>> weights = EmbeddingWeights("1x0e", "1x0e", {scalar: torch.tensor([[2.0, 3.0]])}, 2)
        >>> wigner = edge_wigner(torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), 0)
        >>> edge_embedding(torch.tensor([[1.0], [10.0]]), wigner, weights, torch.tensor([1, 0]))
        tensor([[[20.],
                 [ 2.]],
        <BLANKLINE>
                [[30.],
                 [ 3.]]])
    """
    order = torch.arange(len(x), device=x.device) if order is None else order
    check_tensors(x=x, wigner=wigner, integer={"order": order})
    check_shapes(x=(x, f"g {weights.width}"), order=(order, "e"), wigner=(wigner, f"{len(order)} w"))
    least = sum((2 * l + 1) ** 2 for l in range(irreps_of(weights.irreps_out).lmax + 1))
    if wigner.shape[1] < least:
        raise ValueError(f"wigner: expected at least {least} numbers of each edge, got {wigner.shape[1]}")
    if not isinstance(weights, PackedEmbedding):
        return composition.edge_embedding(x, wigner, weights, order)
    check_range("order", order, len(x))
    return cpu.edge_embedding(x, wigner, weights, order)
