"""Constant sparse matrices along the first axis of a tensor, such as those that put weights into dense matrices.

Both directions are tables of what to gather: nothing is scattered, so there are no atomics, the same input gives the
same bits, and the derivative of any order is the same operation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.autograd.function import FunctionCtx

__all__ = ["SparseMap"]


class _Gather(NamedTuple):
    """y_i = Σ_k c_ki x_t(k,i) for the rows i that have numbers; the others are zero."""

    places: torch.Tensor  # t [k · i]
    coefficient: torch.Tensor | None  # c [k, i], None: all are 1
    rows: torch.Tensor | None  # i, None: all of them
    n: int  # all rows

    def on(self, device: torch.device, dtype: torch.dtype) -> _Gather:
        c = None if self.coefficient is None else self.coefficient.to(device, dtype)
        return _Gather(self.places.to(device), c, None if self.rows is None else self.rows.to(device), self.n)

    def of(self, x: torch.Tensor) -> torch.Tensor:
        if not len(self.places):
            return x.new_zeros(self.n, *x.shape[1:])
        n = self.n if self.rows is None else len(self.rows)
        y = x.index_select(0, self.places).unflatten(0, (-1, n))
        if self.coefficient is not None:
            y.mul_(self.coefficient[(..., *(None,) * (x.dim() - 1))])
        y = y[0] if len(y) == 1 else y.sum(0)
        return y if self.rows is None else y.new_zeros(self.n, *y.shape[1:]).index_copy_(0, self.rows, y)


def _gather(rows: torch.Tensor, columns: torch.Tensor, coefficients: torch.Tensor, n: int) -> _Gather:
    order = torch.argsort(rows, stable=True)
    there, row, count = torch.unique_consecutive(rows[order], return_inverse=True, return_counts=True)
    k = torch.arange(len(rows)) - (count.cumsum(0) - count)[row]  # how many of the same row come before
    size = (int(count.max()) if len(count) else 1, len(there))
    places = torch.zeros(size, dtype=torch.int64).index_put((k, row), columns[order])
    c = torch.zeros(size, dtype=torch.float64).index_put((k, row), coefficients[order])
    return _Gather(places.flatten(), None if bool((c == 1).all()) else c, None if len(there) == n else there, n)


class SparseMap:
    """y_i = Σ_j A_ij x_j with a constant sparse A.

    Args:
        rows: i of each number of A [a], int64.
        columns: j of each [a], no pair twice.
        coefficients: the numbers [a], float64.
        n_rows: rows of A.
        n_columns: columns of A.

    Example:
        >>> import torch
        >>> swap = SparseMap(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1.0, -1.0]).double(), 2, 2)
        >>> swap(torch.tensor([3.0, 4.0]))
        tensor([ 4., -3.])
    """

    def __init__(
        self, rows: torch.Tensor, columns: torch.Tensor, coefficients: torch.Tensor, n_rows: int, n_columns: int
    ) -> None:
        self._both = (
            _gather(rows, columns, coefficients, n_rows),
            _gather(columns, rows, coefficients, n_columns),
        )
        self._cached: dict[tuple[torch.device, torch.dtype], tuple[_Gather, _Gather]] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Returns A x for x [j, …]; derivatives of any order exist."""
        key = (x.device, x.dtype)
        if key not in self._cached:
            self._cached[key] = tuple(gather.on(*key) for gather in self._both)
        return _Apply.apply(x, *self._cached[key])


class _Apply(torch.autograd.Function):
    """x, what gathers the result, what gathers the gradient → A x."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, there: _Gather, back: _Gather) -> torch.Tensor:
        """Gathers."""
        ctx.gathers = back, there
        return there.of(x)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Gathers the other way round."""
        return _Apply.apply(grad, *ctx.gathers), None, None
