"""Softmax of the attention logits over the edges into each node, and the radial basis of the edges.

The backward directions include the forward pass. `gb_per_s` counts every array once, indices too.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nextham_kernels.ops.attention import reference, segment_softmax
from nextham_kernels.ops.radial_basis import radial_basis
from nextham_kernels.ops.radial_basis import reference as radial_reference

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

# Edges and nodes: a piece of the engine, and a crystal of 200 atoms.
CASES = {"production": (2048, 20), "crystal": (20_000, 200)}
DIRECTIONS = ("softmax", "softmax_backward", "radial", "radial_backward")
N_HEADS, N_RADIAL, STOP = 4, 64, 10.0

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """Random logits and distances.

    Args:
        logits: [e, h].
        dst: [e], ascending.
        n_nodes: number of nodes.
        distance: [e], Å.
        weight: [e, c], gradient of the radial basis.
    """

    logits: torch.Tensor
    dst: torch.Tensor
    n_nodes: int
    distance: torch.Tensor
    weight: torch.Tensor

    def gflop(self, direction: str) -> None:
        """Returns None: exponentials are not counted."""

    def gbytes(self, direction: str) -> float | None:
        """Returns the bytes of inputs and outputs of the forward directions."""
        arrays = {"softmax": (self.logits, self.logits, self.dst), "radial": (self.distance, self.weight)}
        return sum(a.nbytes for a in arrays[direction]) / 1e9 if direction in arrays else None


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes the numbers."""
    n_edges, n_nodes = CASES[case]
    generator = torch.Generator().manual_seed(17)
    logits = torch.randn(n_edges, N_HEADS, generator=generator).to(device, dtype)
    dst = torch.randint(n_nodes, (n_edges,), generator=generator).sort().values.to(device)
    distance = (8 * torch.rand(n_edges, generator=generator)).to(device, dtype)
    weight = torch.randn(n_edges, N_RADIAL, generator=generator).to(device, dtype)
    return Problem(logits, dst, n_nodes, distance, weight)


def kernel(problem: Problem) -> Runs:
    """The ops."""
    return _runs(problem, segment_softmax, radial_basis)


def plain(problem: Problem) -> Runs:
    """Their references, in torch."""
    return _runs(problem, reference.segment_softmax, radial_reference.radial_basis)


IMPLEMENTATIONS = {"kernel": kernel, "reference": plain}


def _runs(p: Problem, softmax: Callable[..., torch.Tensor], radial: Callable[..., torch.Tensor]) -> Runs:
    def gradient(function: Callable, x: torch.Tensor, weight: torch.Tensor, *settings: object) -> Tensors:
        leaf = x.detach().requires_grad_()
        return {"grad": torch.autograd.grad(function(leaf, *settings), leaf, weight)[0]}

    return {
        "softmax": lambda: {"weight": softmax(p.logits, p.dst, p.n_nodes)},
        "softmax_backward": lambda: gradient(softmax, p.logits, p.logits, p.dst, p.n_nodes),
        "radial": lambda: {"basis": radial(p.distance, N_RADIAL, STOP)},
        "radial_backward": lambda: gradient(radial, p.distance, p.weight, N_RADIAL, STOP),
    }
