"""V_NL of silicon: `projector_product` with 34 projectors, 13 orbitals and the four matrices of a relativistic one.

Six pairs to a result, as in the crystal. `gflop` counts D leftᵀ by its nonzeros (a tenth) and the product with right;
`gbytes` the result alone, which is what must be moved. H(0) computes in double precision (`--dtype float64`).
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nextham_kernels.ops.projector_product import projector_product, reference

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

PROJECTORS, ORBITALS, MATRICES, PAIRS = 34, 13, 4, 6

# Results: those of one atom, and of some fifty.
CASES = {"results-147": 147, "results-7350": 7350}
DIRECTIONS = ("forward",)

Runs = dict[str, Callable[[], dict[str, torch.Tensor]]]


@dataclass(frozen=True)
class Problem:
    """Inputs of the op."""

    left: torch.Tensor
    strength: torch.Tensor
    pairs: torch.Tensor
    starts: torch.Tensor

    def gflop(self, direction: str) -> float:
        """Returns the arithmetic of one run."""
        nonzeros = int((self.strength != 0).sum())
        return 2 * len(self.pairs) * ORBITALS * (nonzeros + MATRICES * PROJECTORS * ORBITALS) / 1e9

    def gbytes(self, direction: str) -> float:
        """Returns the size of the result."""
        return (len(self.starts) - 1) * MATRICES * ORBITALS**2 * self.left.element_size() / 1e9


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes random inputs; an atom's projections serve some thirty results."""
    n, generator = CASES[case], torch.Generator().manual_seed(17)
    n_left = max(1, n * PAIRS // 30)
    left = torch.randn(n_left, PROJECTORS, ORBITALS, generator=generator)
    sparse = torch.rand(MATRICES, PROJECTORS, PROJECTORS, generator=generator) < 0.03
    strength = torch.randn(MATRICES, PROJECTORS, PROJECTORS, generator=generator) * sparse
    pairs = torch.randint(0, n_left, (n * PAIRS, 2), generator=generator)
    starts = PAIRS * torch.arange(n + 1)
    return Problem(left.to(device, dtype), strength.to(device, dtype), pairs.to(device), starts.to(device))


def kernel(problem: Problem) -> Runs:
    """The op."""
    given = (problem.left, problem.left, problem.strength, problem.pairs, problem.starts)
    return {"forward": lambda: {"y": projector_product(*given)}}


def plain(problem: Problem) -> Runs:
    """Its reference, in plain torch."""
    given = (problem.left, problem.left, problem.strength, problem.pairs, problem.starts)
    return {"forward": lambda: {"y": reference.projector_product(*given)}}


IMPLEMENTATIONS = {"kernel": kernel, "reference": plain}
