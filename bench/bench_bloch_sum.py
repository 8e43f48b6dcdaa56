"""Bloch sums of a real spinor Hamiltonian, dense at many k-points, and their adjoint.

`kernel` is the op; `reference` its plain form; `published` the formulation of the published code: blocks padded to
54 × 54, added into a dense array for each lattice vector, then contracted with the phases (its padded input is made
untimed; for large cells it needs more memory than there is). `gb_per_s` counts the blocks and the dense matrices once,
`gflop_per_s` the multiplications of real numbers with phases: 2 · 4 per complex element and k-point.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from nextham.basis import Basis, published_slots
from nextham.blocks import Blocks
from nextham.data import sample
from nextham.io.csr import read_blocks
from nextham.io.stru import read_stru
from nextham_kernels.ops.bloch_sum import BlochLayout, bloch_sum, reference

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

# Supercell of silicon and k-points: training draws one to some, a mesh has many.
CASES = {
    "si2-k1": ((1, 1, 1), 1),
    "si2-k64": ((1, 1, 1), 64),
    "si12-k1": ((3, 2, 1), 1),
    "si12-k16": ((3, 2, 1), 16),
    "si50-k1": ((5, 5, 1), 1),
    "si50-k4": ((5, 5, 1), 4),
}
DIRECTIONS = ("forward", "backward")

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """A Hamiltonian and k-points.

    Args:
        matrix: its blocks.
        blocks: their numbers [d], complex.
        layout: where they go.
        kpoints: [q, 3].
        grad: of the dense matrices [q, N, N].
    """

    matrix: Blocks
    blocks: torch.Tensor
    layout: BlochLayout
    kpoints: torch.Tensor
    grad: torch.Tensor

    def gflop(self, direction: str) -> float:
        """Returns the arithmetic of one run."""
        return 8 * len(self.blocks) * len(self.kpoints) / 1e9

    def gbytes(self, direction: str) -> float:
        """Returns the size of blocks and dense matrices."""
        return (len(self.blocks) + self.grad.numel()) * self.blocks.element_size() / 1e9


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Reads the sample and draws k-points."""
    repeats, n_points = CASES[case]
    folder = sample("Si-1")
    structure = read_stru(folder / "STRU").structure
    matrix = read_blocks(folder / "hrs1_nao.csr.xz", structure, Basis.published(structure.numbers)).supercell(*repeats)
    kind = torch.complex64 if dtype == torch.float32 else torch.complex128
    generator = torch.Generator().manual_seed(3)
    kpoints = torch.rand(n_points, 3, generator=generator, dtype=torch.float64)
    layout = matrix.bloch_layout()
    grad = torch.randn(n_points, layout.size, layout.size, generator=generator, dtype=torch.float64).to(kind)
    blocks = torch.from_numpy(matrix.data).to(kind)
    return Problem(matrix, blocks.to(device), layout.to(device), kpoints.to(device), grad.to(device))


def kernel(problem: Problem) -> Runs:
    """The op."""
    return _runs(problem, problem.blocks, lambda blocks: bloch_sum(blocks, problem.layout, problem.kpoints))


def plain(problem: Problem) -> Runs:
    """Its reference."""
    layout = problem.layout

    def run(blocks: torch.Tensor) -> torch.Tensor:
        phases = torch.view_as_real(_phases(layout.vectors, problem.kpoints).to(blocks.dtype))
        tables = (layout.edges, layout.pairs, layout.size, layout.spins)
        return torch.view_as_complex(reference.bloch_sum(torch.view_as_real(blocks), phases, *tables))

    return _runs(problem, problem.blocks, run)


def published(problem: Problem) -> Runs:
    """Padded blocks, one dense array for each lattice vector, contracted with the phases."""
    matrix, graph = problem.matrix, problem.matrix.graph
    device, n_atoms = problem.blocks.device, graph.structure.n_atoms
    wide = torch.from_numpy(matrix.padded()).to(problem.blocks)  # [e, s s', a, b]
    n = wide.shape[-1]
    wide = wide.unflatten(1, (2, 2)).permute(0, 1, 3, 2, 4).reshape(len(wide), 2 * n, 2 * n)
    vectors, which = torch.unique(torch.from_numpy(graph.R), dim=0, return_inverse=True)
    cell = torch.from_numpy(graph.src * n_atoms + graph.dst) + which * n_atoms**2
    cell, vectors = cell.to(device), vectors.to(device, torch.float64)
    # Slots of the orbitals that exist, in the op's order: atom, orbital, spin.
    slots = [
        atom * 2 * n + spin * n + int(slot)
        for atom, z in enumerate(graph.structure.numbers)
        for slot in published_slots(matrix.basis[int(z)])
        for spin in range(2)
    ]
    there = torch.tensor(slots, device=device)

    def run(wide: torch.Tensor) -> torch.Tensor:
        per_vector = wide.new_zeros(len(vectors) * n_atoms**2, 2 * n, 2 * n).index_add(0, cell, wide)
        per_vector = per_vector.reshape(len(vectors), n_atoms, n_atoms, 2 * n, 2 * n)
        phases = _phases(vectors, problem.kpoints).to(wide.dtype)
        dense = torch.einsum("rq,rijab->qiajb", phases, per_vector).reshape(-1, n_atoms * 2 * n, n_atoms * 2 * n)
        return dense[:, there[:, None], there]

    # Where each number of the compact blocks lies in the padded ones.
    numbered = matrix.like(np.arange(1.0, len(matrix.data) + 1)).padded()
    numbered = torch.from_numpy(numbered).unflatten(1, (2, 2)).permute(0, 1, 3, 2, 4).flatten()
    place = torch.argsort(numbered)[-len(matrix.data) :].to(device)

    def narrow(grad: torch.Tensor) -> torch.Tensor:
        return grad.flatten()[place]

    return _runs(problem, wide, run, narrow)


IMPLEMENTATIONS = {"kernel": kernel, "reference": plain, "published": published}


def _phases(vectors: torch.Tensor, kpoints: torch.Tensor) -> torch.Tensor:
    angle = 2 * torch.pi * vectors @ kpoints.T
    return torch.polar(torch.ones_like(angle), angle)


def _runs(
    problem: Problem,
    blocks: torch.Tensor,
    function: Callable[[torch.Tensor], torch.Tensor],
    narrow: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Runs:
    leaf = blocks.clone().requires_grad_()
    dense: list[torch.Tensor] = []

    def forward() -> Tensors:
        with torch.no_grad():
            return {"dense": function(blocks)}

    def backward() -> Tensors:
        if not dense:
            dense.append(function(leaf))
        (grad,) = torch.autograd.grad(dense[0], leaf, problem.grad, retain_graph=True)
        return {"grad_blocks": narrow(grad) if narrow else grad}

    return {"forward": forward, "backward": backward}
