"""Tensor product whose weights of each edge are the last linear map of a radial network, without storing the weights.

    w_ep = Σ_h t_eh W_hp,    out = tensor_product(x, y, w),  or over a graph  tensor_product_conv(x, y, w, rows, cols)

with the formula and the weights of `tensor_product`, and t the hidden features of the radial network. The edges are
worked through in blocks whose weights (`NUMBERS` of them) stay in the caches; the derivative makes them again. So an
edge keeps its hidden features for the backward pass, some 64 numbers, instead of its weights, often thousands.

On a GPU products of mode 'uvu' with one channel of y and at most 128 hidden features make the weights of a tile of
edges inside the kernel (float32); for others the weights of a block of edges are stored, 32 MB at a time.

It is linear in x, y, t and W; all derivatives of any order are compositions of the same kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from nextham_kernels.checks import check_range, check_shapes, check_tensors, tracing
from nextham_kernels.loading import kernels
from nextham_kernels.ops.tensor_product import cpu, reference
from nextham_kernels.ops.tensor_product.conv import edge_orders
from nextham_kernels.ops.tensor_product.reference import Product
from nextham_kernels.registration import define
from nextham_kernels.result_memory import empty, empty_like

__all__ = ["tensor_product_radial"]

NUMBERS = 1 << 19
"""Weights held at a time: 2 MB in float32, a second-level cache; at least 64 edges, at most 1,024."""


def _reference(
    x: torch.Tensor,
    y: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    cols: torch.Tensor,
    by_row: torch.Tensor,
    by_col: torch.Tensor,
    n_rows: int,
    word: str,
) -> torch.Tensor:
    """Without a graph `n_rows` is -1."""
    if n_rows < 0:
        return reference.tensor_product(x, y, hidden @ weight, word)
    return reference.tensor_product_conv(x, y, hidden @ weight, rows, cols, by_row, by_col, n_rows, word)


def _blocks(n: int, n_weights: int) -> Iterator[slice]:
    step = min(1024, max(64, NUMBERS // n_weights // 64 * 64))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _forward(
    x: torch.Tensor,
    y: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    cols: torch.Tensor,
    by_row: torch.Tensor,
    by_col: torch.Tensor,
    n_rows: int,
    word: str,
) -> torch.Tensor:
    run, plan, d = kernels().tensor_product_forward, cpu.plan_of(word, x.dtype), reference.product_of(word).dims[2]
    out = empty(x, (y.shape[0], d)) if n_rows < 0 else empty(x, (n_rows, d)).zero_()
    for block in _blocks(y.shape[0], weight.shape[1]):
        if n_rows < 0:
            given = (x[block], y[block], hidden[block] @ weight)
            run(*plan, *(t.numpy() for t in given), *cpu.NO_INDICES, out[block].numpy())
        else:
            edges = by_row[block]
            given = (x, y[edges], hidden[edges] @ weight, cols[edges], edges[:0], rows[edges], out)
            run(*plan, *(t.numpy() for t in given))
    return out


def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    cols: torch.Tensor,
    by_row: torch.Tensor,
    by_col: torch.Tensor,
    n_rows: int,
    word: str,
    needs: list[bool],
) -> list[torch.Tensor]:
    run, plan = kernels().tensor_product_backward, cpu.plan_of(word, x.dtype)
    tensors, graph = (x, y, hidden, weight), n_rows >= 0
    grads = [empty_like(t) if need else t.new_empty(0, 0) for t, need in zip(tensors, needs, strict=False)]
    for i, summed in ((0, graph), (3, True)):
        if needs[i] and summed:
            grads[i].zero_()
    wanted = [needs[0], needs[1], needs[2] or needs[3]]
    for block in _blocks(y.shape[0], weight.shape[1]):
        edges = by_col[block] if graph else block
        own = hidden[edges]
        given = (grad if graph else grad[block], x if graph else x[block], y[edges], own @ weight)
        indices = (cols[edges], edges[:0], rows[edges]) if graph else ()
        pulled = [
            (grads[0] if graph else grads[0][block]) if wanted[0] else grads[0],
            torch.empty_like(given[2]) if wanted[1] else grads[1],
            torch.empty_like(given[3]) if wanted[2] else x.new_empty(0, 0),
        ]
        indices = [t.numpy() for t in indices] or cpu.NO_INDICES
        run(*plan, *(t.numpy() for t in given), *indices, *wanted, *(t.numpy() for t in pulled))
        if needs[1]:
            grads[1][edges] = pulled[1]
        if needs[2]:
            grads[2][edges] = pulled[2] @ weight.T
        if needs[3]:
            grads[3].addmm_(own.T, pulled[2])
    return [*grads, *(torch.empty_like(t) for t in (rows, cols, by_row, by_col))]


_op = define(
    "tensor_product_radial",
    "Tensor x, Tensor y, Tensor hidden, Tensor weight, Tensor rows, Tensor cols, Tensor by_row, Tensor by_col, "
    "SymInt n_rows, str word",
    _reference,
    _forward,
    _backward,
    lambda x, y, hidden, weight, rows, cols, by_row, by_col, n_rows, word: x.new_empty(
        y.shape[0] if n_rows < 0 else n_rows, reference.product_of(word).dims[2]
    ),
    lambda i, n_rows, word: (n_rows, reference.weighted(word) if i in (2, 3) else word),
    gpu=("tensor_product.kernel.forward_radial", "tensor_product.kernel.backward_radial"),
)


def tensor_product_radial(
    x: torch.Tensor,
    y: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    product: Product,
    rows: torch.Tensor | None = None,
    cols: torch.Tensor | None = None,
    n_rows: int | None = None,
    orders: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Multiplies two irreps features with weights made from radial features; the formula is on the op's page.

    Args:
        x: [e, d₁] in the layout `product.irreps_1`, or with a graph of its nodes [n, d₁]; float32 or float64.
        y: [e, d₂] in the layout `product.irreps_2`, same dtype.
        hidden: t [e, h], the features before the last linear map of the radial network.
        weight: W [h, product.n_weights], its matrix.
        product: the paths, from `nextham_kernels.ops.tensor_product.product`; at least one has weights.
        rows: int64 [e], where each edge's product is added, 0 ≤ rows < n_rows; None without a graph.
        cols: int64 [e], the node of each edge, 0 ≤ cols < n; with `rows`.
        n_rows: number of rows of the result, with `rows`; by default n.
        orders: `edge_orders(rows, cols)`, where several calls share a graph; by default it is made here.

    Returns:
        [e, d₃] in the layout `product.irreps_out`, or with a graph [n_rows, d₃].

    Raises:
        ValueError: a wrong shape, an index out of range, or a product without weights.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> from nextham_kernels.ops.tensor_product import product
        >>> times = product("1x0e", "1x0e", "1x0e", [(0, 0, 0, "uvu", True)])
        >>> x, y, hidden = torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor([[1.0, 4.0]])
        >>> tensor_product_radial(x, y, hidden, torch.tensor([[1.0], [0.5]]), times)
        tensor([[18.]])
    """
    if not product.n_weights:
        raise ValueError("product: expected a path with weights, got none")
    if (rows is None) != (cols is None):
        raise ValueError("rows, cols: expected both or none")
    floating = {"x": x, "y": y, "hidden": hidden, "weight": weight}
    patterns = {
        "x": (x, f"{'e' if rows is None else 'n'} {product.dims[0]}"),
        "y": (y, f"e {product.dims[1]}"),
        "hidden": (hidden, "e h"),
        "weight": (weight, f"h {product.n_weights}"),
    }
    if rows is None:
        check_tensors(**floating)
        check_shapes(**patterns)
        none = torch.empty(0, dtype=torch.int64, device=x.device)
        return _op(x, y, hidden, weight, none, none, none, none, -1, product.word)
    by_row, by_col = edge_orders(rows, cols) if orders is None else orders
    integer = {"rows": rows, "cols": cols, "by_row": by_row, "by_col": by_col}
    check_tensors(**floating, integer=integer)
    check_shapes(**patterns, **{name: (t, "e") for name, t in integer.items()})
    n_rows = x.shape[0] if n_rows is None else n_rows
    if not tracing():
        check_range("rows", rows, n_rows)
        check_range("cols", cols, x.shape[0])
    return _op(x, y, hidden, weight, rows, cols, by_row, by_col, n_rows, product.word)
