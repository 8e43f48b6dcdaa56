"""Convolution over a graph: gather, tensor product, sum, without the features of edges.

    out_n = Σ_{e: rows_e = n} tensor_product(x[cols_e], y_e, w_e)

with the formula and the weights of `tensor_product`. Neither the gathered x nor the product of an edge is stored: the
kernel reads nodes by `cols` and adds each edge's product to its node. Sums run in a fixed order (edges of a node in
ascending order, a node never shared by two threads), so results do not change from run to run. The derivative is one
sweep over the edges sorted by `cols`, and deterministic alike.

It is linear in x, y and the weights; all derivatives of any order are compositions of the same kernels.
"""

from __future__ import annotations

import torch

from nextham_kernels.checks import check_range, check_shapes, check_tensors, tracing
from nextham_kernels.ops.tensor_product import cpu, reference
from nextham_kernels.ops.tensor_product.reference import Product
from nextham_kernels.registration import define

__all__ = ["edge_orders", "tensor_product_conv"]

_op = define(
    "tensor_product_conv",
    "Tensor x, Tensor y, Tensor weight, Tensor rows, Tensor cols, Tensor by_row, Tensor by_col, SymInt n_rows, "
    "str word",
    reference.tensor_product_conv,
    cpu.forward_conv,
    cpu.backward_conv,
    lambda x, y, weight, rows, cols, by_row, by_col, n_rows, word: x.new_empty(
        n_rows, reference.product_of(word).dims[2]
    ),
    lambda i, n_rows, word: (n_rows, reference.weighted(word) if i == 2 else word),
    gpu=("tensor_product.kernel.forward_conv", "tensor_product.kernel.backward_conv"),
)


def tensor_product_conv(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor | None,
    rows: torch.Tensor,
    cols: torch.Tensor,
    n_rows: int,
    product: Product,
    orders: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Multiplies the node at one end of each edge by the edge's feature and sums at the other end.

    Args:
        x: nodes [n, d₁] in the layout `product.irreps_1`, float32 or float64.
        y: edges [e, d₂] in the layout `product.irreps_2`, same dtype.
        weight: [e, product.n_weights], or [product.n_weights] shared by all edges, same dtype; None without weights.
        rows: int64 [e], where each edge's product is added, 0 ≤ rows < n_rows.
        cols: int64 [e], the node of each edge, 0 ≤ cols < n.
        n_rows: number of rows of the result.
        product: the paths, from `nextham_kernels.ops.tensor_product.product`.
        orders: `edge_orders(rows, cols)`, where several calls share a graph; by default it is made here.

    Returns:
        [n_rows, d₃] in the layout `product.irreps_out`; zero where no edge ends.

    Raises:
        ValueError: a wrong shape, or an index out of range.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> from nextham_kernels.ops.tensor_product import product
        >>> times = product("1x0e", "1x0e", "1x0e", [(0, 0, 0, "uvu", False)])
        >>> x, y = torch.tensor([[2.0], [3.0]]), torch.ones(3, 1)
        >>> rows, cols = torch.tensor([1, 1, 0]), torch.tensor([0, 1, 1])
        >>> tensor_product_conv(x, y, None, rows, cols, 2, times)
        tensor([[3.],
                [5.]])
    """
    if weight is None:
        weight = x.new_zeros(0)
    by_row, by_col = edge_orders(rows, cols) if orders is None else orders
    check_tensors(x=x, y=y, weight=weight, integer={"rows": rows, "cols": cols, "by_row": by_row, "by_col": by_col})
    check_shapes(
        x=(x, f"n {product.dims[0]}"),
        y=(y, f"e {product.dims[1]}"),
        weight=(weight, f"{'e ' * (weight.ndim == 2)}{product.n_weights}"),
        rows=(rows, "e"),
        cols=(cols, "e"),
        by_row=(by_row, "e"),
        by_col=(by_col, "e"),
    )
    if not tracing():
        check_range("rows", rows, n_rows)
        check_range("cols", cols, x.shape[0])
    return _op(x, y, weight, rows, cols, by_row, by_col, n_rows, product.word)


def edge_orders(rows: torch.Tensor, cols: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the edges sorted by rows and by cols, int64 [e] each, equal ones in ascending order."""
    return torch.argsort(rows, stable=True), torch.argsort(cols, stable=True)
