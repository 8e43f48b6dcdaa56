"""Gate: the nonlinearity of irreps features.

The input is read as scalars, then gates, then gated blocks, [s | g | t]; the output is [c₁ SiLU(s) | c₂ σ(g_u) t_uk],
one gate per gated channel in order. c₁ = 1.6791767 and c₂ = 1.8467055 give unit second moment for normal input.

The output irreps decide everything: their leading 0e blocks are the scalars, all the rest is gated (0o too, whose sign
an activation would break). `gate_input_irreps` gives the input: (scalars + gates)x0e, then the gated blocks.

Any derivative exists. Source: e3nn, `nn.Gate` and `math.normalize2mom`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from nextham_kernels.checks import check_irreps_dim, check_tensors
from nextham_kernels.clebsch_gordan import IrrepsLike, dim_of, irreps_of
from nextham_kernels.ops.gate import cpu, reference
from nextham_kernels.registration import define

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["gate", "gate_input_irreps", "gate_rows"]

# (x, name of irreps_out, edge, skip): `gate` for callers that have done its checks.
gate_rows = define(
    "gate",
    "Tensor x, str irreps_out, bool edge, int skip",
    reference.gate,
    cpu.forward,
    cpu.backward,
    lambda x, irreps_out, edge, skip: x.new_empty(x.shape[0], dim_of(irreps_out)),
    vmap="rows",
    gpu=("gate.kernel.forward", "gate.kernel.backward"),
)


def gate(x: torch.Tensor, irreps_out: IrrepsLike, edge: bool = False, skip: int = 0) -> torch.Tensor:
    """Applies SiLU to scalars and scales each other channel by the sigmoid of its gate.

    Args:
        x: [e, skip + d_in], the last d_in in the layout `gate_input_irreps(irreps_out)`, float32 or float64.
        irreps_out: layout of the result, 0e blocks first.
        edge: x and the result are rows of the edge frame (`edge_layout`) instead of e3nn's flat axis.
        skip: numbers at the head of each row of x that belong to something else.

    Returns:
        [e, d_out].

    Raises:
        ValueError: a wrong shape, or a 0e block behind another.
        TypeError: a wrong dtype.

    Example:
        >>> import torch
        >>> gate(torch.zeros(1, 5), "1x0e+1x1o").shape
        torch.Size([1, 4])
    """
    check_tensors(x=x)
    name, irreps_in, dim = _plan(irreps_out)
    if skip < 0:
        raise ValueError(f"skip: expected 0 or a positive number, got {skip}")
    check_irreps_dim("x", x, irreps_in, skip + dim)
    return gate_rows(x, name, edge, skip)


@functools.cache
def _plan(irreps_out: IrrepsLike) -> tuple[str, o3.Irreps, int]:
    """The name of the result's irreps, the irreps of the input and their dimension."""
    irreps_in = gate_input_irreps(irreps_out)
    return str(irreps_of(irreps_out)), irreps_in, irreps_in.dim


@functools.cache
def gate_input_irreps(irreps_out: IrrepsLike) -> o3.Irreps:
    """Returns the layout that `gate` reads to give `irreps_out`.

    Raises:
        ValueError: a 0e block behind another.
    """
    irreps_out = irreps_of(irreps_out)
    n_scalars, n_gated = reference.counts(irreps_out)
    gated = irreps_of("+".join(str(block) for block in irreps_out if not block.ir.is_scalar()))
    if irreps_out[: len(irreps_out) - len(gated)].num_irreps != n_scalars:
        raise ValueError(f"irreps_out: expected its 0e blocks first, got {irreps_out}")
    return irreps_of(f"{n_scalars + n_gated}x0e") + gated
