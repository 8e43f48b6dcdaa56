"""A tensor product with its radial network inside, over edges or over a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from e3nn import nn, o3

from nextham_kernels.nn.tensor_product import TensorProduct
from nextham_kernels.ops.tensor_product.radial import tensor_product_radial

__all__ = ["RadialTensorProduct"]


class RadialTensorProduct(TensorProduct):
    """`TensorProduct` with weights from a radial network, which are not stored.

    For a layer of an e3nn model

        weight = radial(numbers)  # e3nn.nn.FullyConnectedNet
        messages = product(nodes[cols], harmonics, weight)
        nodes = messages.new_zeros(n, d).index_add(0, rows, messages)

    it gives the same without storing weights, `nodes[cols]` and messages. `radial` is e3nn's `FullyConnectedNet`, so
    its parameters have the names (`radial.layer0.weight` …) and values that a checkpoint of such a layer has.

    Args:
        irreps_in1: of the nodes.
        irreps_in2: of the edges.
        irreps_out: of the result.
        instructions: paths of the product; at least one has weights.
        radial: widths of the radial network but for the last, which is the number of weights.
        act: its activation.
        kwargs: further arguments of `o3.TensorProduct`.
    """

    def __init__(
        self,
        irreps_in1: o3.Irreps,
        irreps_in2: o3.Irreps,
        irreps_out: o3.Irreps,
        instructions: list[tuple],
        radial: Sequence[int],
        act: Callable[[torch.Tensor], torch.Tensor] = torch.nn.functional.silu,
        **kwargs: object,
    ) -> None:
        super().__init__(
            irreps_in1, irreps_in2, irreps_out, instructions, shared_weights=False, internal_weights=False, **kwargs
        )
        self.radial = nn.FullyConnectedNet([*radial, self.weight_numel], act)

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        radial: torch.Tensor,
        rows: torch.Tensor | None = None,
        cols: torch.Tensor | None = None,
        n_rows: int | None = None,
        orders: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Returns the product of each edge [e, irreps_out.dim], or its sums at nodes [n_rows, irreps_out.dim].

        Args:
            x: [e, irreps_in1.dim], or with `cols` of nodes [n, irreps_in1.dim].
            y: [e, irreps_in2.dim].
            radial: what the radial network reads [e, radial[0]].
            rows: int64 [e], where each edge is summed.
            cols: int64 [e], the node of each edge.
            n_rows: rows of the result, by default n.
            orders: `nextham_kernels.ops.tensor_product.conv.edge_orders(rows, cols)`, where layers share a graph.
        """
        *layers, last = self.radial
        for layer in layers:
            radial = layer(radial)
        weight = last.weight / (last.h_in * last.var_in / last.var_out) ** 0.5
        return tensor_product_radial(x, y, radial, weight, self._product, rows, cols, n_rows, orders)
