"""The parts that hold parameters: thin modules over the ops of `nextham_kernels`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils import skip_init

from nextham_kernels.ops.linear import linear, linear_fan_in, linear_sizes
from nextham_kernels.ops.norm import norm

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["Linear", "Norm", "mlp", "not_drawn", "parameter"]


_drawn: ContextVar[bool] = ContextVar("drawn", default=True)


@contextmanager
def not_drawn() -> Iterator[None]:
    """Leaves the weights of modules made inside unset: drawing them takes longer than reading them from a file."""
    token = _drawn.set(False)
    try:
        yield
    finally:
        _drawn.reset(token)


def parameter(draw: Callable[[], torch.Tensor], size: int) -> nn.Parameter:
    """Returns a parameter [size] with the numbers that `draw` returns, or, inside `not_drawn`, with any."""
    return nn.Parameter(draw() if _drawn.get() else torch.empty(size))


class Linear(nn.Module):
    """Irreps-wise linear map, weights drawn with variance 1/fan-in, bias (on 0e) zero at first."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, bias: bool = True) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        n_weights, n_bias = linear_sizes(irreps_in, irreps_out)
        self.weight = parameter(lambda: torch.randn(n_weights) / linear_fan_in(irreps_in, irreps_out).sqrt(), n_weights)
        self.bias = nn.Parameter(torch.zeros(n_bias)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns [e, d_out] of x [e, d_in]."""
        return linear(x, self.weight, self.bias, self.irreps_in, self.irreps_out)


class Norm(nn.Module):
    """Layer norm per irrep; floor 0 is the published one."""

    def __init__(self, irreps: o3.Irreps, floor: float) -> None:
        super().__init__()
        self.irreps, self.floor = irreps, floor
        self.weight = nn.Parameter(torch.ones(irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(sum(mul for mul, ir in irreps if ir.is_scalar())))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns [e, d] of x [e, d]."""
        return norm(x, self.weight, self.bias, self.irreps, eps=1e-5, floor=self.floor)


def mlp(widths: Sequence[int], norm_eps: float | None, last_bias: bool = True) -> nn.Sequential:
    """Returns Linear, then (LayerNorm, SiLU, Linear) … through the widths; no LayerNorm where its eps is None."""
    parts: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        if i:
            parts += [] if norm_eps is None else [nn.LayerNorm(n_in, eps=norm_eps)]
            parts.append(nn.SiLU())
        bias = last_bias or i < len(widths) - 2
        dense = nn.Linear(n_in, n_out, bias) if _drawn.get() else skip_init(nn.Linear, n_in, n_out, bias)
        parts.append(dense)
    return nn.Sequential(*parts)
