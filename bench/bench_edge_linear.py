"""Linear maps of rows of the edge frame: one matrix per |m|, and four of them weighted by attention heads.

The backward directions ask for all gradients and include the forward pass. `gflop_per_s` counts the multiply-adds of
the matrices: 21,056 per edge, four times as many with heads, three times as many with all gradients.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nextham_kernels.ops.edge_linear import edge_linear, head_linear, reference

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

IRREPS = "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"
N_WEIGHTS = sum(piece.c_in * piece.c_out for piece in reference.pieces(IRREPS, IRREPS))
N_HEADS = 4
# Edges: a piece of the engine, and a crystal of 200 atoms.
CASES = {"production": 2048, "crystal": 20_000}
DIRECTIONS = ("linear", "heads", "linear_backward", "heads_backward")

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """Random rows and weights.

    Args:
        x: [e, 392].
        grad: gradient of the result [e, 392].
        heads: coefficients [e, h].
        matrix: [w].
        matrices: of the heads [1, h w].
        bias: [c].
        biases: of the heads [h, c].
    """

    x: torch.Tensor
    grad: torch.Tensor
    heads: torch.Tensor
    matrix: torch.Tensor
    matrices: torch.Tensor
    bias: torch.Tensor
    biases: torch.Tensor

    def gflop(self, direction: str) -> float:
        """Returns the arithmetic of the matrices."""
        per_edge = sum(len(p.source) * p.c_in * p.c_out for p in reference.pieces(IRREPS, IRREPS))
        heads, passes = N_HEADS if "heads" in direction else 1, 3 if "backward" in direction else 1
        return 2 * per_edge * heads * passes * len(self.x) / 1e9

    def gbytes(self, direction: str) -> float | None:
        """Returns the bytes of rows of the forward directions."""
        return None if "backward" in direction else 2 * self.x.nbytes / 1e9


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes the numbers."""
    n, generator = CASES[case], torch.Generator().manual_seed(17)
    sizes = [(n, 392), (n, 392), (n, N_HEADS), (N_WEIGHTS,), (1, N_HEADS * N_WEIGHTS), (32,), (N_HEADS, 32)]
    return Problem(*(torch.randn(*size, generator=generator).to(device, dtype) for size in sizes))


def kernel(problem: Problem) -> Runs:
    """The ops."""
    return _runs(
        problem,
        lambda x, matrix, bias: edge_linear(x, matrix, IRREPS, IRREPS, bias),
        lambda x, heads, matrix, bias: head_linear(x, heads, matrix, IRREPS, IRREPS, bias),
    )


def plain(problem: Problem) -> Runs:
    """Their reference, in torch."""
    none = torch.zeros(0, dtype=torch.bool, device=problem.x.device)

    def linear(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return heads_of(x, x.new_empty(len(x), 0), matrix[None], bias[None])

    def heads_of(x: torch.Tensor, heads: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return reference.edge_linear(x, heads, matrix, bias, none, IRREPS, IRREPS)

    return _runs(problem, linear, heads_of)


IMPLEMENTATIONS = {"kernel": kernel, "reference": plain}


def _runs(p: Problem, linear: Callable[..., torch.Tensor], heads_of: Callable[..., torch.Tensor]) -> Runs:
    def gradients(function: Callable[..., torch.Tensor], **tensors: torch.Tensor) -> Tensors:
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        grads = torch.autograd.grad(function(**leaves), list(leaves.values()), p.grad)
        return {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}

    one = {"x": p.x, "matrix": p.matrix, "bias": p.bias}
    several = {"x": p.x, "heads": p.heads, "matrix": p.matrices, "bias": p.biases}
    return {
        "linear": lambda: {"y": linear(**one)},
        "heads": lambda: {"y": heads_of(**several)},
        "linear_backward": lambda: gradients(linear, **one),
        "heads_backward": lambda: gradients(heads_of, **several),
    }
