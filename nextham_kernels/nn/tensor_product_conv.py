"""A tensor product between gathering nodes and summing edges, in one kernel."""

from __future__ import annotations

import torch

from nextham_kernels.nn.tensor_product import TensorProduct
from nextham_kernels.ops.tensor_product.conv import tensor_product_conv

__all__ = ["TensorProductConv"]


class TensorProductConv(TensorProduct):
    """`TensorProduct` of the nodes at one end of edges with features of the edges, summed at the other end.

    The constructor, the weights and their names are those of `TensorProduct` (e3nn's `o3.TensorProduct`). For a layer

        messages = product(nodes[cols], harmonics, weight)
        nodes = messages.new_zeros(n, d).index_add(0, rows, messages)

    it gives the same without storing `nodes[cols]` and `messages`, and always sums in the same order.
    """

    def forward(
        self,
        nodes: torch.Tensor,
        edges: torch.Tensor,
        weight: torch.Tensor | list[torch.Tensor] | None,
        rows: torch.Tensor,
        cols: torch.Tensor,
        n_rows: int | None = None,
        orders: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Returns Σ over the edges of each row.

        Args:
            nodes: [n, irreps_in1.dim].
            edges: [e, irreps_in2.dim].
            weight: [e, weight_numel], or [weight_numel] with shared weights; None for internal weights.
            rows: int64 [e], where each edge is summed.
            cols: int64 [e], the node of each edge.
            n_rows: rows of the result, by default n.
            orders: `nextham_kernels.ops.tensor_product.conv.edge_orders(rows, cols)`, where layers share a graph.
        """
        weight = self._get_weights(weight)
        weight = weight if self.weight_numel else None
        n_rows = nodes.shape[0] if n_rows is None else n_rows
        return tensor_product_conv(nodes, edges, weight, rows, cols, n_rows, self._product, orders)
