"""Tensor product under `torch.vmap`: the mapped axis becomes rows."""

from __future__ import annotations

import torch

__all__ = ["backward", "forward"]


def _as_rows(
    size: int, in_dims: tuple, operands: tuple[torch.Tensor, ...], weight: torch.Tensor, weight_dim: int | None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Operands [size · e, d], and weights that fit them; those shared by all of a mapped axis stay so."""
    moved = [
        t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip(operands, in_dims, strict=True)
    ]
    n = moved[0].shape[1]
    if weight_dim is None:
        weight = weight if weight.ndim == 1 else weight.expand(size, *weight.shape).flatten(0, 1)
    else:
        weight = weight.movedim(weight_dim, 0)
        weight = (weight[:, None].expand(size, n, weight.shape[1]) if weight.ndim == 2 else weight).flatten(0, 1)
    return [t.flatten(0, 1) for t in moved], weight


def forward(
    info: object, in_dims: tuple, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, word: str
) -> tuple[torch.Tensor, int]:
    """The rule of the op."""
    size = info.batch_size
    (x, y), weight = _as_rows(size, in_dims[:2], (x, y), weight, in_dims[2])
    out = torch.ops.nextham.tensor_product(x, y, weight, word)
    return out.unflatten(0, (size, len(out) // size)), 0


def backward(
    info: object,
    in_dims: tuple,
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    word: str,
    needs: list[bool],
) -> tuple[list[torch.Tensor], list[int]]:
    """The rule of its backward: every gradient has the mapped axis."""
    size, shared = info.batch_size, weight.ndim - (in_dims[3] is not None) == 1
    (grad, x, y), weight = _as_rows(size, in_dims[:3], (grad, x, y), weight, in_dims[3])
    n = len(x) // size
    if shared and weight.ndim == 1:  # its gradient needs the sum over each part of the rows
        weight = weight.expand(len(x), weight.shape[0])
    found = list(torch.ops.nextham.tensor_product_backward(grad, x, y, weight, word, needs))
    for i, need in enumerate(needs):
        found[i] = found[i].unflatten(0, (size, n)) if need else grad.new_zeros(size, 0)
    if shared and needs[2]:
        found[2] = found[2].sum(1)
    return found, [0, 0, 0]
