"""Norm and gate of the published features on rows of the edge frame, with their derivatives.

The backward directions include the forward pass. `gb_per_s` counts every array of the forward directions once.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nextham_kernels.ops.gate import gate, gate_input_irreps
from nextham_kernels.ops.gate import reference as gate_reference
from nextham_kernels.ops.norm import norm, reference

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

IRREPS = "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"
# Edges: a piece of the engine, and a crystal of 200 atoms.
CASES = {"production": 2048, "crystal": 20_000}
DIRECTIONS = ("norm", "norm_backward", "gate", "gate_backward")

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """Random rows.

    Args:
        x: [e, 392].
        weight: of the norm, one number per channel.
        bias: of the norm, one number per scalar.
        gated: what the gate reads, [e, 464].
    """

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    gated: torch.Tensor

    def gflop(self, direction: str) -> None:
        """Returns None: roots and exponentials are not counted."""

    def gbytes(self, direction: str) -> float | None:
        """Returns the bytes of inputs and outputs of the forward directions."""
        arrays = {"norm": (self.x, self.x), "gate": (self.gated, self.x)}
        return sum(a.nbytes for a in arrays[direction]) / 1e9 if direction in arrays else None


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes the rows."""
    n, generator = CASES[case], torch.Generator().manual_seed(17)
    sizes = [(n, 392), (104,), (32,), (n, gate_input_irreps(IRREPS).dim)]
    return Problem(*(torch.randn(*size, generator=generator).to(device, dtype) for size in sizes))


def kernel(problem: Problem) -> Runs:
    """The ops."""
    return _runs(
        problem,
        lambda x, weight, bias: norm(x, weight, bias, IRREPS, edge=True),
        lambda x: gate(x, IRREPS, edge=True),
    )


def plain(problem: Problem) -> Runs:
    """Their references, in torch."""
    return _runs(
        problem,
        lambda x, weight, bias: reference.norm(x, weight, bias, IRREPS, True, 1e-5, 0.0),
        lambda x: gate_reference.gate(x, IRREPS, True, 0),
    )


IMPLEMENTATIONS = {"kernel": kernel, "reference": plain}


def _runs(p: Problem, norm_of: Callable[..., torch.Tensor], gate_of: Callable[..., torch.Tensor]) -> Runs:
    def gradients(function: Callable[..., torch.Tensor], **tensors: torch.Tensor) -> Tensors:
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        grads = torch.autograd.grad(function(**leaves), list(leaves.values()), p.x)
        return {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}

    return {
        "norm": lambda: {"y": norm_of(p.x, p.weight, p.bias)},
        "norm_backward": lambda: gradients(norm_of, x=p.x, weight=p.weight, bias=p.bias),
        "gate": lambda: {"y": gate_of(p.gated)},
        "gate_backward": lambda: gradients(gate_of, x=p.gated),
    }
