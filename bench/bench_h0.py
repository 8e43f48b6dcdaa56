"""From a structure to H of step zero and to the prediction, stage by stage: silicon, displaced by 0.05 Å.

Directions are the stages: `overlap` (S and T), `nonlocal` (V_NL), `local` (the grid), `h0` (all of it, tables and files
in memory), `file` (all of it into an .h5 file in the folder for temporary files, within 1 GB), `file-single` (the same
within 4 GB, in single precision on the grid and in the file, 0.25 MB per silicon atom), `network` (four networks of the
published sizes with random weights, from H(0) to ΔH, in pieces), `network-file` (the same from the file of H(0), made
before, to a file of H, H(0) and S, within 1 GB), `total` (`h0` and `network`) and `bands` (levels of H(0) at a mesh
of k-points about as dense for each size: 216 for 2 atoms, 8 for 64, one for more; all levels, or from 512 atoms on, as
`nextham bands --kpath G --levels 60`, the Fermi level of Γ and the 60 levels nearest to it). Cases `slab64-…` are 64
atoms with so many Å of vacuum in their cell. `reference` runs every op's plain reference.
The files are those of `--basis DIR` (the case is then called `…/files`), or Gaussian functions with the shells,
projectors and radii of published silicon. H(0) is computed in double precision; `--dtype` is that of the networks.
Bytes and flops are not counted.
"""

import argparse
import dataclasses
from collections.abc import Callable
from functools import cached_property
from math import gamma
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from nextham.blocks import Blocks
from nextham.h0 import AtomicFiles, build_h0, local_potential, nonlocal_potential, overlap_and_kinetic, stream_h0
from nextham.io.orb import OrbFile
from nextham.io.upf import Pseudopotential
from nextham.kspace import bands_at
from nextham.levels import levels_around_fermi
from nextham.model import Ensemble, NextHAMConfig, predict_delta, predict_file
from nextham.structure import Structure
from nextham_kernels.loading import use_reference

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "add_arguments", "label", "problem"]

ATOMS = (1, 2, 64, 216, 512, 1000, 1728, 4096, 8000, 97336)
VACUUM = (0, 10, 40, 160, 640)
CASES = {f"si{n}": (n, 0) for n in ATOMS} | {f"slab64-{height}": (64, height) for height in VACUUM}
DIRECTIONS = ("overlap", "nonlocal", "local", "h0", "file", "file-single", "network", "network-file", "total", "bands")
MANY, LEVELS = 512, 60
MESH = {2: 6, 64: 2}
"""Atoms → k-points along each lattice vector; one for all others."""
LATTICE_CONSTANT = 5.43
NETWORK_BUDGET = 1 << 30
FILE_BUDGET, SINGLE_BUDGET = 10**9, 4 * 10**9

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A structure and the files of its elements."""

    structure: Structure
    files: AtomicFiles
    dtype: torch.dtype

    @cached_property
    def overlap(self) -> Blocks:
        """S, which the grid asks for its edges."""
        return overlap_and_kinetic(self.structure, self.files.orbitals)[0]

    @cached_property
    def h0(self) -> Blocks:
        """What the networks read."""
        return self.matrices[0]

    @cached_property
    def matrices(self) -> tuple[Blocks, Blocks]:
        """H(0) and S."""
        return build_h0(self.structure, self.files)

    @cached_property
    def folder(self) -> TemporaryDirectory:
        """For files; gone with the problem."""
        return TemporaryDirectory()

    @cached_property
    def file(self) -> Path:
        """H(0) and S, which the networks read piece by piece."""
        path = Path(self.folder.name) / "h0.h5"
        stream_h0(self.structure, self.files, path, memory_budget=SINGLE_BUDGET)
        return path

    def bands(self) -> Tensors:
        """Levels at the mesh."""
        if self.structure.n_atoms >= MANY:
            electrons = float(sum(self.files.pseudopotentials[int(z)].valence for z in self.structure.numbers))
            found, _ = levels_around_fermi(*self.matrices, np.zeros(3), electrons, LEVELS)
            return {"levels": torch.from_numpy(found.values)}
        n = MESH.get(self.structure.n_atoms, 1)
        return {"levels": torch.from_numpy(bands_at(*self.matrices, np.array(list(np.ndindex(n, n, n))) / n))}

    @cached_property
    def ensemble(self) -> Ensemble:
        """Four networks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(17)
            return Ensemble(NextHAMConfig()).to(self.dtype)

    def gflop(self, direction: str) -> None:
        """Returns None: arithmetic is not counted."""

    def gbytes(self, direction: str) -> None:
        """Returns None: bytes are not counted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("--basis", metavar="DIR", help="folder of .orb and .upf files")


def label(case: str, arguments: argparse.Namespace) -> str:
    """Returns what a line calls the case: whose orbitals they are belongs to it."""
    return case if arguments.basis is None else f"{case}/files"


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes the structure and reads or makes the files.

    Raises:
        ValueError: another device than the CPU.
    """
    if device.type != "cpu":
        raise ValueError("device: H(0) is computed on the CPU")
    structure = silicon(*CASES[case])
    files = gaussian() if arguments.basis is None else AtomicFiles.read(arguments.basis, structure.numbers)
    found = Problem(structure, files, dtype)
    if arguments.direction == "network-file":
        _ = found.file, found.ensemble  # neither is measured
    return found


def kernels(problem: Problem) -> Runs:
    """Our kernels."""
    structure, files = problem.structure, problem.files
    orbitals, pseudopotentials = files.orbitals, files.pseudopotentials

    def total() -> Tensors:
        h0, _ = build_h0(structure, files)
        return _tensors(delta=predict_delta(problem.ensemble, h0, NETWORK_BUDGET))

    def into_file(memory_budget: int, **options: Any) -> Tensors:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "h0.h5"
            stream_h0(structure, files, path, memory_budget=memory_budget, **options)
            return {"bytes": torch.tensor([float(path.stat().st_size)])}

    def network_file() -> Tensors:
        path = problem.file.with_name("h.h5")
        predict_file(problem.ensemble, problem.file, path, FILE_BUDGET)
        return {"bytes": torch.tensor([float(path.stat().st_size)])}

    return {
        "overlap": lambda: _tensors(**dict(zip("st", overlap_and_kinetic(structure, orbitals), strict=True))),
        "nonlocal": lambda: _tensors(v=nonlocal_potential(structure, orbitals, pseudopotentials)),
        "local": lambda: _tensors(v=local_potential(problem.overlap, orbitals, pseudopotentials)),
        "h0": lambda: _tensors(**dict(zip("hs", build_h0(structure, files), strict=True))),
        "file": lambda: into_file(FILE_BUDGET),
        "file-single": lambda: into_file(SINGLE_BUDGET, dtype=torch.float32, precision="single"),
        "network": lambda: _tensors(delta=predict_delta(problem.ensemble, problem.h0, NETWORK_BUDGET)),
        "network-file": network_file,
        "total": total,
        "bands": problem.bands,
    }


def references(problem: Problem) -> Runs:
    """The references of all ops."""

    def slowly(run: Callable[[], Tensors]) -> Callable[[], Tensors]:
        def wrapped() -> Tensors:
            with use_reference():
                return run()

        return wrapped

    return {direction: slowly(run) for direction, run in kernels(problem).items()}


IMPLEMENTATIONS = {"kernels": kernels, "reference": references}


def _tensors(**matrices: Blocks) -> Tensors:
    """Their numbers, real and imaginary parts side by side."""
    data = {name: torch.from_numpy(matrix.data) for name, matrix in matrices.items()}
    return {name: torch.view_as_real(numbers) if numbers.is_complex() else numbers for name, numbers in data.items()}


def silicon(n_atoms: int, vacuum: float) -> Structure:
    """The primitive cell, or repetitions of the cubic one, every atom displaced; one atom alone in a small cell."""
    a, rng = LATTICE_CONSTANT, np.random.default_rng(0)
    if n_atoms <= 2:
        structure = Structure(a / 2 * (1 - np.eye(3)), np.array([[0, 0, 0], [a / 4] * 3])[:n_atoms], [14] * n_atoms)
    else:
        face = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
        cubic = Structure(a * np.eye(3), a * np.concatenate([face, face + 0.25]), [14] * 8)
        n = round((n_atoms / 8) ** (1 / 3))
        structure = cubic.supercell(n, n, n)
    moved = structure.positions + 0.05 * rng.standard_normal(structure.positions.shape)
    cell = structure.cell + np.diag([0.0, 0.0, vacuum])
    return Structure(cell, moved, structure.numbers)


def gaussian() -> AtomicFiles:
    """Gaussian functions in the place of published silicon: 2s2p1d to 7 Bohr, ten projectors to 1.95 Bohr."""
    r, r_beta = 0.01 * np.arange(701), 0.01 * np.arange(1001)
    shells = ((0, 0.3), (0, 0.8), (1, 0.25), (1, 0.7), (2, 0.4))
    radial = np.stack([_normalised(l, a, r) for l, a in shells]) * np.cos(np.pi / 14 * r) ** 2
    orbitals = OrbFile(14, 100.0, 7.0, tuple(l for l, _ in shells), 0.01, radial)
    l, j = (0, 0, 1, 1, 1, 1, 2, 2, 2, 2), (0.5, 0.5, 0.5, 1.5, 0.5, 1.5, 1.5, 2.5, 1.5, 2.5)
    inside = np.where(r_beta < 1.95, np.cos(np.pi / 3.9 * r_beta) ** 2, 0.0)
    r_f = np.stack([r_beta * _normalised(l, 2.0 + 0.1 * n, r_beta) for n, l in enumerate(l)]) * inside
    rho = 4 * 4 * np.pi**-0.5 * r_beta**2 * np.exp(-(r_beta**2))
    # The charge of the nucleus smeared as the electrons are: no potential reaches far.
    local = -8 * np.where(r_beta > 0, np.vectorize(_erf)(r_beta) / np.maximum(r_beta, 1e-9), 2 * np.pi**-0.5)
    pseudo = Pseudopotential(14, 4.0, "PBE", 0.01, local, l, j, r_f, np.diag(np.linspace(-3, 3, 10)), rho, None)
    return AtomicFiles({14: orbitals}, {14: pseudo})


def _erf(x: float) -> float:
    return float(torch.erf(torch.tensor(x, dtype=torch.float64)))


def _normalised(l: int, exponent: float, r: np.ndarray) -> np.ndarray:
    return (2 * (2 * exponent) ** (l + 1.5) / gamma(l + 1.5)) ** 0.5 * r**l * np.exp(-exponent * r**2)
