"""TraceGrad's update of the edge features in the published sizes, on rows of the edge frame.

- `inference` makes x′ alone, `forward` x′ and the invariants z, both with parameters that were folded before.
- `train` folds, makes x′ and z, and goes back to x and every parameter. Folding and its derivative take 257 million
  multiply-adds each way, whatever the number of edges: `piece` is dominated by them, `layer` is not.

The closed form works on pieces of 512 edges, as the engine does. `gflop_per_s` counts the matrix products per edge that
the folded form needs: 0.76 million multiply-adds, 0.83 million with z, 2.49 million in `train`, where C is made again
in the backward pass (0.25 million) without being counted.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.gram import n_pairs
from nextham_kernels.ops.tracegrad import FoldedTraceGrad, fold_tracegrad, reference, tracegrad_update

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

IRREPS = "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"
N_FORMS, WIDTH, PIECE, RESIDUAL = 1024, 256, 512, 0.2
CASES = {"piece": PIECE, "layer": 10 * PIECE}
DIRECTIONS = ("inference", "forward", "train")

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """Random features and weights.

    Args:
        x: rows [e, d].
        forms: the quadratic forms.
        mlp: the MLP's parameters.
        grad_y: what `train` multiplies x′ by [e, d].
        grad_z: what it multiplies z by [e, c].
    """

    x: torch.Tensor
    forms: torch.Tensor
    mlp: list[torch.Tensor]
    grad_y: torch.Tensor
    grad_z: torch.Tensor

    def gflop(self, direction: str) -> float:
        """Returns the matrix products of one run."""
        folded, square = {"inference": (2, 4), "forward": (2, 5), "train": (6, 15)}[direction]
        return 2e-9 * len(self.x) * (folded * n_pairs(IRREPS) * WIDTH + square * WIDTH**2)

    def gbytes(self, direction: str) -> None:
        """Returns None: bytes are not counted."""


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes features and weights."""
    generator = torch.Generator().manual_seed(17)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    n_edges, irreps = CASES[case], irreps_of(IRREPS)
    mlp = [random(WIDTH, N_FORMS) / N_FORMS**0.5, 0.1 * random(WIDTH)]
    for _ in range(3):
        mlp += [1 + 0.1 * random(WIDTH), 0.1 * random(WIDTH), random(WIDTH, WIDTH) / WIDTH**0.5, 0.1 * random(WIDTH)]
    forms = random(sum(mul * mul for mul, _ in irreps) * N_FORMS)
    x = random(n_edges, irreps.dim)
    return Problem(x, forms, mlp, random(n_edges, irreps.dim), random(n_edges, WIDTH))


def closed_form(problem: Problem) -> Runs:
    """`fold_tracegrad` and `tracegrad_update`."""
    folded = fold_tracegrad(problem.forms, problem.mlp, IRREPS)

    def update(x: torch.Tensor, folded: FoldedTraceGrad, invariants: bool) -> tuple[torch.Tensor, ...]:
        pieces = [tracegrad_update(piece, folded, RESIDUAL, True, invariants) for piece in x.split(PIECE)]
        return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True) if parts[0] is not None)

    def no_graph(invariants: bool) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return update(problem.x, folded, invariants)

    return {
        "inference": lambda: {"x": no_graph(False)[0]},
        "forward": lambda: dict(zip("xz", no_graph(True), strict=True)),
        "train": lambda: _gradients(
            problem, lambda x, forms, *mlp: update(x, fold_tracegrad(forms, mlp, IRREPS), True)
        ),
    }


def plain(problem: Problem) -> Runs:
    """The definition, whose gradient comes from automatic differentiation."""

    def update(x: torch.Tensor, forms: torch.Tensor, *mlp: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.tracegrad_update(x, forms, mlp, irreps_of(IRREPS), RESIDUAL, True)

    def no_graph() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return update(problem.x, problem.forms, *problem.mlp)

    return {
        "inference": lambda: {"x": no_graph()[0]},
        "forward": lambda: dict(zip("xz", no_graph(), strict=True)),
        "train": lambda: _gradients(problem, update),
    }


IMPLEMENTATIONS = {"closed_form": closed_form, "reference": plain}


def _gradients(problem: Problem, update: Callable[..., tuple[torch.Tensor, ...]]) -> Tensors:
    leaves = [t.detach().requires_grad_() for t in (problem.x, problem.forms, *problem.mlp)]
    found = torch.autograd.grad(update(*leaves), leaves, (problem.grad_y, problem.grad_z))
    return {f"grad {i}": grad for i, grad in enumerate(found)}
