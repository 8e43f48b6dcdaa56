"""A tensor product with the harmonics of edges and a linear map, evaluated in the frame of each edge."""

from __future__ import annotations

import torch
from e3nn import o3

from nextham_kernels.clebsch_gordan import IrrepsLike
from nextham_kernels.nn.unscripted import Unscripted
from nextham_kernels.ops.depthwise_tensor_product import depthwise_irreps
from nextham_kernels.ops.edge_tensor_product import edge_tensor_product, edge_tensor_product_sizes
from nextham_kernels.ops.linear import linear_fan_in
from nextham_kernels.ops.rotation import edge_wigner, rotate_to_edges, rotate_to_nodes

__all__ = ["EdgeTensorProduct"]


class EdgeTensorProduct(Unscripted, torch.nn.Module):
    """Product of features with the harmonics of an edge vector, each path weighted per edge, then a linear map.

        out = linear(depthwise_tensor_product(x, Y(vector), radial))

    with Y the harmonics l = 0 … l_max of e3nn (`normalize=True`, 'component') and the product that keeps the irreps of
    x ('uvu', 'component' and no path normalisation). In the frame of the edge a path is one number per |m|, so the
    product, whose channels are those of all paths, is never formed; the result is exactly the same. On an edge of zero
    length only l = 0 contributes.

    Args:
        irreps_in: layout of x, and the irreps that the product keeps.
        l_max: largest degree of the harmonics.
        irreps_out: layout of the result.

    Attributes:
        weight: [w], of the linear map, laid out as in `nextham_kernels.ops.linear`; it starts normal with variance one
            over the number of channels that an output sums.
        radial_numel: numbers in `radial` per edge, channels of all paths.
    """

    def __init__(self, irreps_in: IrrepsLike, l_max: int, irreps_out: IrrepsLike) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out, self.l_max = o3.Irreps(irreps_in), o3.Irreps(irreps_out), l_max
        self._names = str(self.irreps_in), str(self.irreps_out)
        self._degree = max([self.irreps_in.lmax, self.irreps_out.lmax])
        self.radial_numel, n_weights = edge_tensor_product_sizes(self._names[0], l_max, self._names[1])
        harmonics = str(o3.Irreps.spherical_harmonics(l_max))
        product, _ = depthwise_irreps(self._names[0], harmonics, self._names[0])
        fan_in = linear_fan_in(product, self._names[1])
        self.weight = torch.nn.Parameter(torch.randn(n_weights) / fan_in.clamp_min(1).sqrt())

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.irreps_in} x 0..{self.l_max} -> {self.irreps_out} | "
            f"{self.radial_numel} radial, {len(self.weight)} weights)"
        )

    def forward(
        self,
        x: torch.Tensor,
        vector: torch.Tensor,
        radial: torch.Tensor,
        src: torch.Tensor | None = None,
        dst: torch.Tensor | None = None,
        n_nodes: int | None = None,
    ) -> torch.Tensor:
        """Returns the mapped product of each edge [e, d_out], or its sums at nodes [n_nodes, d_out].

        Args:
            x: features [e, d_in], or with `src` of nodes [n, d_in].
            vector: edge vectors [e, 3], in e3nn's order.
            radial: weights of the paths [e, radial_numel].
            src: int64 [e], the node of each edge.
            dst: int64 [e], where each edge is summed.
            n_nodes: rows of the result, with `dst`.
        """
        given = x, vector, radial, self.weight, src, dst, n_nodes
        return _product(*given, self._names[0], self.l_max, self._names[1], self._degree)


@torch.compiler.allow_in_graph  # torch.compile sees the ops in it, but need not read how their tables are made
def _product(
    x: torch.Tensor,
    vector: torch.Tensor,
    radial: torch.Tensor,
    weight: torch.Tensor,
    src: torch.Tensor | None,
    dst: torch.Tensor | None,
    n_nodes: int | None,
    irreps_in: str,
    l_max: int,
    irreps_out: str,
    degree: int,
) -> torch.Tensor:
    # The frame's axes are the usual ones, whose (y, z, x) is e3nn's vector.
    wigner = edge_wigner(vector[:, [2, 0, 1]], degree)
    rows = rotate_to_edges(x, wigner, irreps_in, src)
    rows = edge_tensor_product(rows, radial, weight, (vector == 0).all(1), irreps_in, l_max, irreps_out)
    return rotate_to_nodes(rows, wigner, irreps_out, dst, n_nodes)
