"""Tensor product followed at once by a linear map, without storing the product of all rows.

    out = Σ over the linear map's paths of tensor_product(tensor_product(x, y, w), 1, W)

The rows are worked through in blocks of `ROWS`, whose product stays in the caches; the derivative forms it again. The
linear map is a product with one scalar, whose value is one. It is linear in x, y and both weights; first derivatives
run block by block too, higher ones are compositions of the two products.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from nextham_kernels.checks import check_shapes, check_tensors
from nextham_kernels.loading import kernels
from nextham_kernels.ops.tensor_product import cpu, reference
from nextham_kernels.ops.tensor_product.reference import Product
from nextham_kernels.registration import define
from nextham_kernels.result_memory import empty, empty_like

__all__ = ["tensor_product_linear"]

ROWS = 256
"""Rows whose product is held at a time: 3.4 MB in float32 for the 3,328 numbers of MACE's medium model."""


def _reference(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, linear_weight: torch.Tensor, word: str, linear_word: str
) -> torch.Tensor:
    middle = reference.tensor_product(x, y, weight, word)
    return reference.tensor_product(middle, middle.new_ones(middle.shape[0], 1), linear_weight, linear_word)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS, n)) for start in range(0, n, ROWS))


def _of_rows(weight: torch.Tensor, rows: slice) -> torch.Tensor:
    return weight[rows] if weight.ndim == 2 else weight


def _forward(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, linear_weight: torch.Tensor, word: str, linear_word: str
) -> torch.Tensor:
    run, first, second = kernels().tensor_product_forward, reference.product_of(word), reference.product_of(linear_word)
    out, middle = empty(x, (x.shape[0], second.dims[2])), x.new_empty(min(ROWS, x.shape[0]), first.dims[2])
    product, linear = cpu.plan_of(word, x.dtype), cpu.plan_of(linear_word, x.dtype)
    one = x.new_ones(middle.shape[0], 1)
    for rows in _blocks(x.shape[0]):
        held = middle[: rows.stop - rows.start]
        given = (x[rows], y[rows], _of_rows(weight, rows))
        run(*product, *(t.numpy() for t in given), *cpu.NO_INDICES, held.numpy())
        given = (held, one[: len(held)], linear_weight)
        run(*linear, *(t.numpy() for t in given), *cpu.NO_INDICES, out[rows].numpy())
    return out


def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    linear_weight: torch.Tensor,
    word: str,
    linear_word: str,
    needs: list[bool],
) -> list[torch.Tensor]:
    tensors = (x, y, weight, linear_weight)
    grads = [empty_like(t) if need else t.new_empty(0, 0) for t, need in zip(tensors, needs, strict=True)]
    summed = [i for i in (2, 3) if needs[i] and tensors[i].ndim == 1]
    for i in summed:
        grads[i].zero_()
    for rows in _blocks(x.shape[0]):
        given = (x[rows], y[rows], _of_rows(weight, rows))
        if needs[3]:
            middle = cpu.forward(*given, word)
        else:  # its values do not matter
            middle = grad.new_zeros(len(given[0]), reference.product_of(word).dims[2])
        one = middle.new_ones(middle.shape[0], 1)
        wanted = [any(needs[:3]), False, needs[3]]
        pulled, _, own = cpu.backward(grad[rows], middle, one, linear_weight, linear_word, wanted)
        found = [*cpu.backward(pulled, *given, word, needs[:3]), own] if wanted[0] else [None, None, None, own]
        for i, need in enumerate(needs):
            if need and i in summed:
                grads[i] += found[i]
            elif need:
                grads[i][rows] = found[i]
    return grads


_op = define(
    "tensor_product_linear",
    "Tensor x, Tensor y, Tensor weight, Tensor linear_weight, str word, str linear_word",
    _reference,
    _forward,
    _backward,
    lambda x, y, weight, linear_weight, word, linear_word: x.new_empty(
        x.shape[0], reference.product_of(linear_word).dims[2]
    ),
    lambda i, word, linear_word: (reference.weighted(word) if i == 2 else word, linear_word),
    gpu=("tensor_product.kernel.forward_linear", "tensor_product.kernel.backward_linear"),
)


def tensor_product_linear(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor | None,
    linear_weight: torch.Tensor,
    product: Product,
    linear: Product,
) -> torch.Tensor:
    """Multiplies two irreps features and maps the result; the formula is on the op's page.

    Args:
        x: [e, d₁] in the layout `product.irreps_1`, float32 or float64.
        y: [e, d₂] in the layout `product.irreps_2`, same dtype.
        weight: [product.n_weights] or [e, product.n_weights]; None without weights.
        linear_weight: [linear.n_weights].
        product: the paths of the product.
        linear: the paths of the map: 'uvw' of the product's result with 1x0e.

    Returns:
        [e, d₃] in the layout `linear.irreps_out`.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> from nextham_kernels.ops.tensor_product import product
        >>> times = product("1x0e", "1x0e", "1x0e", [(0, 0, 0, "uvu", False)])
        >>> double = product("1x0e", "1x0e", "1x0e", [(0, 0, 0, "uvw", True)])
        >>> x, y, weight = torch.tensor([[3.0]]), torch.tensor([[5.0]]), torch.tensor([2.0])
        >>> tensor_product_linear(x, y, None, weight, times, double)
        tensor([[30.]])
    """
    if weight is None:
        weight = x.new_zeros(0)
    check_tensors(x=x, y=y, weight=weight, linear_weight=linear_weight)
    check_shapes(
        x=(x, f"e {product.dims[0]}"),
        y=(y, f"e {product.dims[1]}"),
        weight=(weight, f"{'e ' * (weight.ndim == 2)}{product.n_weights}"),
        linear_weight=(linear_weight, str(linear.n_weights)),
    )
    if linear.dims[:2] != (product.dims[2], 1):
        raise ValueError(f"linear: expected operands of dimension {product.dims[2]} and 1, got {linear.dims[:2]}")
    return _op(x, y, weight, linear_weight, product.word, linear.word)
