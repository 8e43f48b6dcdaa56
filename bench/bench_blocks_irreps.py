"""Hamiltonian blocks with spin to irreps and back.

The backward directions ask for the gradient of the blocks and of the irreps; they include the forward pass.

`gb_per_s` counts blocks and irreps once. `gflop_per_s` counts the sparse coefficients: those of m₁m₂ → LM for 4 spin
components and 2 parts, and of LM, spin → J for 2 parts.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nextham_kernels.clebsch_gordan import wigner_3j
from nextham_kernels.ops.blocks_irreps import blocks_to_irreps, irreps_to_blocks, reference

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

# Edges and shells of both atoms: all the published layout has, and silicon's.
CASES = {"production": (1000, (0, 0, 0, 0, 1, 1, 2, 2, 3)), "silicon": (4000, (0, 0, 1, 1, 2))}
DIRECTIONS = ("to_irreps", "to_blocks", "to_irreps_backward", "to_blocks_backward")

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """Random blocks and irreps.

    Args:
        shells: of both atoms.
        blocks: [e, 4, a, a, 2], real and imaginary parts.
        irreps: [e, d].
    """

    shells: tuple[int, ...]
    blocks: torch.Tensor
    irreps: torch.Tensor

    def gflop(self, direction: str) -> float:
        """Returns two per coefficient, and twice that for the backward directions."""
        count = 0
        for l1, l2, _, _ in reference.pairs(self.shells, self.shells):
            for l in reference.coupled(l1, l2):
                count += 8 * int(wigner_3j(l, l1, l2).count_nonzero())
                count += 2 * sum(int(wigner_3j(j, l, 1).count_nonzero()) for j in reference.coupled(l, 1))
        return (2 if "backward" in direction else 1) * 2 * count * len(self.blocks) / 1e9

    def gbytes(self, direction: str) -> float | None:
        """Returns the bytes of blocks and irreps, of the forward directions."""
        return None if "backward" in direction else (self.blocks.nbytes + self.irreps.nbytes) / 1e9


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes blocks and irreps."""
    n_edges, shells = CASES[case]
    size = sum(2 * l + 1 for l in shells)
    generator = torch.Generator().manual_seed(17)
    shapes = [(n_edges, 4, size, size, 2), (n_edges, 8 * size * size)]
    return Problem(shells, *(torch.randn(*shape, generator=generator).to(device, dtype) for shape in shapes))


def kernel(problem: Problem) -> Runs:
    """The op."""
    shells = problem.shells
    return _runs(
        problem,
        lambda blocks: blocks_to_irreps(torch.view_as_complex(blocks), shells),
        lambda x: torch.view_as_real(irreps_to_blocks(x, shells, spinor=True)),
    )


def plain(problem: Problem) -> Runs:
    """Its reference, in torch."""
    shells, width = problem.shells, problem.irreps.shape[1]
    places = torch.arange(width, device=problem.irreps.device)
    return _runs(
        problem,
        lambda blocks: reference.blocks_to_irreps(blocks, places, shells, shells, width),
        lambda x: reference.irreps_to_blocks(x, places, shells, shells, "spinor"),
    )


IMPLEMENTATIONS = {"kernel": kernel, "reference": plain}


def _runs(
    p: Problem, to_irreps: Callable[[torch.Tensor], torch.Tensor], to_blocks: Callable[[torch.Tensor], torch.Tensor]
) -> Runs:
    def gradient(function: Callable, x: torch.Tensor, weight: torch.Tensor) -> Tensors:
        leaf = x.detach().requires_grad_()
        return {"grad": torch.autograd.grad(function(leaf), leaf, weight)[0]}

    return {
        "to_irreps": lambda: {"irreps": to_irreps(p.blocks)},
        "to_blocks": lambda: {"blocks": to_blocks(p.irreps)},
        "to_irreps_backward": lambda: gradient(to_irreps, p.blocks, p.irreps),
        "to_blocks_backward": lambda: gradient(to_blocks, p.irreps, p.blocks),
    }
