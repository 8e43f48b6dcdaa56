"""One step's loss and its gradient, from the networks' output: published weights, one k-point, eigenvectors given.

`compact` is what training does: one Bloch sum of Ĥ − H between orbitals that exist. `published` is the published
formulation (`bench/published/loss.py`). Both get the real ↑↑ blocks of ΔH and the trace head and return the total loss
and its gradients with respect to the two, padded slots included, as published training wants them. They are compared in
double precision: the published form subtracts matrices of some 100 eV to find errors of 0.01 eV, which in single
precision leaves three digits.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bench.published.loss import PublishedLoss
from nextham.basis import PUBLISHED_SHELLS_PADDED, Basis
from nextham.blocks import Blocks
from nextham.compact_target import CompactTarget
from nextham.data import sample
from nextham.io.csr import read_blocks
from nextham.io.stru import read_stru
from nextham.kspace import eigenvectors_at
from nextham.loss_target import Target
from nextham.losses import LossSettings, total_loss

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

# Supercell of silicon: 2, 12 and 32 atoms.
CASES = {"si2": (1, 1, 1), "si12": (3, 2, 1), "si32": (4, 4, 1)}
DIRECTIONS = ("train",)

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """A structure with its label, and what networks might have predicted.

    Args:
        matrices: `H0`, `H` on the edges below 8 Å and `S`.
        kpoint: [1, 3].
        vectors: eigenvectors at it [1, N, s].
        n_low: low bands.
        delta: predicted Re ↑↑ of ΔH [e, 27·27], eV.
        trace: the trace head [e, 81].
        settings: the published loss.
    """

    matrices: dict[str, Blocks]
    kpoint: np.ndarray
    vectors: np.ndarray
    n_low: int
    delta: torch.Tensor
    trace: torch.Tensor
    settings: LossSettings

    def gflop(self, direction: str) -> None:
        """Returns None: not counted."""

    def gbytes(self, direction: str) -> None:
        """Returns None: not counted."""


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Reads the sample, repeats it, and solves its eigenproblem at one k-point."""
    folder = sample("Si-1")
    structure = read_stru(folder / "STRU").structure
    files = {"H0": "hrs0", "H": "hrs1", "S": "srs1"}
    matrices = {
        name: read_blocks(folder / f"{file}_nao.csr.xz", structure, Basis.published(structure.numbers))
        for name, file in files.items()
    }
    matrices = {name: m.supercell(*CASES[case]) for name, m in matrices.items()}
    kpoint = np.array([[0.11, 0.23, -0.37]])
    vectors = eigenvectors_at(matrices["H"], matrices["S"], kpoint)[1]
    matrices["H0"] = matrices["H0"].within(0.0, 8.0)
    graph = matrices["H0"].graph
    matrices["H"] = matrices["H"].on(graph)
    generator = torch.Generator().manual_seed(3)
    delta = 0.01 * torch.randn(graph.n_edges, 27 * 27, generator=generator, dtype=torch.float64)
    trace = torch.randn(graph.n_edges, 81, generator=generator, dtype=torch.float64)
    n_low = 19 * graph.structure.n_atoms // 2
    settings = LossSettings(padded_slots=True)
    return Problem(matrices, kpoint, vectors, n_low, delta.to(device, dtype), trace.to(device, dtype), settings)


def _runs(problem: Problem, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Runs:
    inputs = [x.clone().requires_grad_() for x in (problem.delta, problem.trace)]

    def train() -> Tensors:
        total = loss(*inputs)
        grad_delta, grad_trace = torch.autograd.grad(total, inputs)
        return {"total": total.detach(), "grad_delta": grad_delta, "grad_trace": grad_trace}

    return {"train": train}


def compact(problem: Problem) -> Runs:
    """The loss as training computes it."""
    m, delta = problem.matrices, problem.delta
    target = CompactTarget.from_blocks(m["H"].spinor() - m["H0"].spinor(), m["S"]).to(delta.device, delta.dtype)
    low = np.arange(problem.vectors.shape[2]) < problem.n_low
    target = target.with_bands(problem.kpoint, problem.vectors, low[None])
    return _runs(problem, lambda delta, trace: total_loss(delta, trace, target, problem.settings).total)


def published(problem: Problem) -> Runs:
    """The published formulation of the same loss."""
    m, graph, n_atoms = problem.matrices, problem.matrices["H0"].graph, problem.matrices["H0"].graph.structure.n_atoms
    real = problem.delta.dtype
    wide = torch.complex64 if real == torch.float32 else torch.complex128
    low = np.arange(problem.vectors.shape[2]) < problem.n_low
    # Used for its padded layout alone.
    target = Target.from_blocks(m["H"] - m["H0"], m["S"], problem.kpoint, problem.vectors, low[None])

    def spinor(blocks: torch.Tensor) -> torch.Tensor:
        """[e, 4, a, b] → [e, (a, s), (b, s')]."""
        return blocks.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2).flatten(3).flatten(1, 2).contiguous()

    h0 = spinor(torch.from_numpy(m["H0"].padded())).to(wide)
    label = spinor(torch.from_numpy(m["H"].padded())).to(wide)
    mask = spinor(target.mask().expand(-1, 4, -1, -1).to(real))
    vectors, which = torch.unique(target.R, dim=0, return_inverse=True)
    angle = 2 * torch.pi * vectors.double() @ torch.from_numpy(problem.kpoint[0])
    bands = target.vectors[0].transpose(2, 3).flatten(1).T.to(wide)  # rows: atom, slot, spin
    sizes = torch.tensor([2 * l + 1 for l in PUBLISHED_SHELLS_PADDED])
    shell = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    loss = PublishedLoss(
        h0,
        label,
        spinor(target.overlap).to(wide),
        mask,
        shell[:, None] * len(sizes) + shell,
        torch.from_numpy(graph.src * n_atoms + graph.dst) + which * n_atoms**2,
        n_atoms,
        torch.polar(torch.ones_like(angle), angle).to(wide),
        bands[:, torch.from_numpy(low)].contiguous(),
        bands[:, torch.from_numpy(~low)].contiguous(),
        problem.settings,
    )
    return _runs(problem, lambda delta, trace: loss(delta.reshape(-1, 27, 27), trace))


IMPLEMENTATIONS = {"compact": compact, "published": published}
