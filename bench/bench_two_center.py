"""Two-center integrals of silicon, S and T: `two_center` on pairs of atoms in all directions up to 14 Bohr.

`gbytes` counts what is read per pair and the result; `gflop` the interpolation of every column and the sums. The table
is random: what it holds changes nothing. H(0) computes in double precision (`--dtype float64`).
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nextham_kernels.ops.spherical_harmonics import spherical_harmonics
from nextham_kernels.ops.two_center import reference, two_center, two_center_columns

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

SHELLS = (0, 0, 1, 1, 2)
PARTS, SPACING, CUTOFF = 2, 0.02, 14.0

# Pairs: those of two atoms, and of some five hundred.
CASES = {"pairs-174": 174, "pairs-44544": 44544}
DIRECTIONS = ("forward",)

Runs = dict[str, Callable[[], dict[str, torch.Tensor]]]


@dataclass(frozen=True)
class Problem:
    """Inputs of the op."""

    distance: torch.Tensor
    harmonics: torch.Tensor
    table: torch.Tensor

    def gflop(self, direction: str) -> float:
        """Returns the arithmetic of one run: six points a column, and some two multiply-adds a number."""
        size = reference.components(SHELLS)
        return (12 * self.table.shape[1] + 4 * PARTS * size**2) * len(self.distance) / 1e9

    def gbytes(self, direction: str) -> float:
        """Returns the size of what one run reads and writes; the table is in the cache."""
        numbers = 1 + self.harmonics.shape[1] + PARTS * reference.components(SHELLS) ** 2
        return numbers * len(self.distance) * self.distance.element_size() / 1e9


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes random inputs."""
    generator = torch.Generator().manual_seed(17)
    vector = 4 * torch.randn(CASES[case], 3, generator=generator, dtype=torch.float64)
    columns = len(two_center_columns(SHELLS, SHELLS, PARTS))
    table = torch.randn(int(CUTOFF / SPACING) + 6, columns, generator=generator)
    tensors = (vector.norm(dim=1), spherical_harmonics(vector, 2 * max(SHELLS)), table)
    return Problem(*(t.to(device, dtype) for t in tensors))


def kernel(problem: Problem) -> Runs:
    """The op."""
    given = (problem.distance, problem.harmonics, problem.table)
    return {"forward": lambda: {"y": two_center(*given, SHELLS, SHELLS, SPACING, CUTOFF, PARTS)}}


def plain(problem: Problem) -> Runs:
    """Its reference."""
    given = (problem.distance, problem.harmonics, problem.table)
    word = ",".join(map(str, SHELLS))
    return {"forward": lambda: {"y": reference.two_center(*given, word, word, PARTS, SPACING, CUTOFF)}}


IMPLEMENTATIONS = {"kernel": kernel, "reference": plain}
