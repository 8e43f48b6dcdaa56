"""The published training samples: one structure per `.pth` file, a list of 22 entries written by `torch.save`.

     0 path                     1 lattice [3, 3] Å              2 positions [n, 3] Å
     3 N = 2 × orbitals         4 band_cut                      5 number of k-points q
     6 k-points [q, 3]          7 eigenvectors [q·N, 54·n], row = band, per atom 27 ↑ and 27 ↓ slots
     8 irreps of H0 [e, 5832]   9 H0 [e, 4, 729]: ↑↑, ↑↓, ↓↑, ↓↓; the 81 shell blocks in order, each row by row
    10 S and 11 mask likewise  12 edge vectors [e, 3] Å        13 src [e]   14 dst [e]   15 pairs of symbols
    16 name                    17 ΔH like 9                    18 H0, 19 S, 20 mask, 21 ΔH [e, 54, 54]: row = 27 ↑, 27 ↓

Orbitals are in the padded slots of 4s2p2d1f (`basis.published_slots`), components in the DeepH order, H in eV. Entries
1, 2, 8, 11, 12, 20 are float32, 6 is float64, matrices are complex64. 9 to 11 and 17 repeat 18 to 21, and 8 is a linear
map of 18: reading takes 18 to 21. The integer R is not in the file: R = round(cell⁻¹(r − τ_dst + τ_src)).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from nextham.basis import PUBLISHED_SHELLS_PADDED, Basis
from nextham.blocks import Blocks
from nextham.graph import Graph, neighbour_graph
from nextham.io.compression import open_for_writing
from nextham.io.errors import FileError
from nextham.io.published_layout import (
    SLOTS,
    from_square,
    mask_of,
    pad_vectors,
    to_shell_pairs,
    to_square,
    unpad_vectors,
)
from nextham.io.torch_file import load_restricted
from nextham.structure import Structure
from nextham.units import SYMBOLS, atomic_number

__all__ = ["CUTOFF", "PublishedSample", "kpoint_mesh", "read_published", "write_published"]

CUTOFF = 8.0
"""Å; the published edges are shorter."""

_BAND_WINDOW = 10.0  # eV above the Fermi level
_TOLERANCE = 1e-3  # Å; the file has float32


@dataclass(frozen=True, eq=False)
class PublishedSample:
    """What a published sample says, without padding and repetition.

    Args:
        name: name of the structure.
        H0: H of step zero, n_spin 4, complex64, eV; on the edges of the sample, as the next two.
        S: overlap, n_spin 1, float32.
        delta: converged H − H0, n_spin 4, complex64, eV.
        band_cut: number of bands of the space P of the loss: index of the first band at Γ that is 10 eV or more above
            the Fermi level, − 1.
        kpoints: [q, 3], in units of the reciprocal lattice vectors.
        eigenvectors: complex64 [q, s, N] of converged H(k) and S(k), band s in the components of `Blocks.to_dense`.
        path: where its maker kept it.

    Raises:
        ValueError: matrices on different edges, or shapes that do not fit.
    """

    name: str
    H0: Blocks
    S: Blocks
    delta: Blocks
    band_cut: int
    kpoints: np.ndarray
    eigenvectors: np.ndarray
    path: str = ""

    def __post_init__(self) -> None:
        for name, n_spin in (("H0", 4), ("S", 1), ("delta", 4)):
            matrix = getattr(self, name)
            if matrix.n_spin != n_spin or matrix.graph is not self.graph or matrix.basis != self.basis:
                raise ValueError(f"{name}: expected n_spin {n_spin} on the graph and basis of H0")
        size = 2 * self.H0.n_orbitals
        shapes = (self.kpoints.shape, self.eigenvectors.shape)
        q = len(self.kpoints)
        if shapes != ((q, 3), (q, size, size)):
            raise ValueError(f"kpoints, eigenvectors: expected (q, 3) and (q, {size}, {size}), got {shapes}")

    @property
    def graph(self) -> Graph:
        """The edges."""
        return self.H0.graph

    @property
    def structure(self) -> Structure:
        """The atoms, inside the cell."""
        return self.graph.structure

    @property
    def basis(self) -> Basis:
        """Shells of the elements."""
        return self.H0.basis

    @classmethod
    def from_matrices(
        cls,
        H0: Blocks,
        H: Blocks,
        S: Blocks,
        kpoints: np.ndarray,
        *,
        fermi: float | None = None,
        band_cut: int | None = None,
        name: str = "",
        path: str = "",
    ) -> PublishedSample:
        """Returns the sample of a calculation, on the published edges: pairs closer than 8 Å whose R both H have.

        Args:
            H0: H of step zero, eV, on all its edges.
            H: converged H, likewise.
            S: overlap, likewise.
            kpoints: where to solve H(k) C = S(k) C E, [q, 3]; the published ones are 4×4×4 (`kpoint_mesh`).
            fermi: Fermi energy, eV, which gives `band_cut`.
            band_cut: the number itself; one of the two is needed.
            name: name of the structure.
            path: goes into entry 0.

        Raises:
            ValueError: different structures, an overlap that depends on spin, S(k) that is not positive definite, no
                band 10 eV above the Fermi level, or neither or both of `fermi` and `band_cut`.
        """
        if (fermi is None) == (band_cut is None):
            raise ValueError("fermi, band_cut: expected one of the two")
        H0, H, S = H0.spinor(), H.spinor(), S.spinless()
        if band_cut is None:
            energies = _solve(H, S, np.zeros(3))[0]
            above = np.flatnonzero(energies >= fermi + _BAND_WINDOW)
            if not len(above):
                raise ValueError(f"fermi: no band is {_BAND_WINDOW} eV above it at Γ, the last is at {energies[-1]} eV")
            band_cut = int(above[0]) - 1
        kpoints = np.array(kpoints, dtype=np.float64).reshape(-1, 3)
        solved = [_solve(H, S, k)[1].T for k in kpoints]
        vectors = np.array(solved, dtype=np.complex64).reshape(len(kpoints), 2 * H.n_orbitals, -1)

        graph = neighbour_graph(H0.graph.structure, CUTOFF)
        lattice = [{tuple(R) for R in np.unique(m.graph.R, axis=0).tolist()} for m in (H0, H)]
        common = set.intersection(*lattice)
        graph = graph.select(np.array([tuple(R) in common for R in graph.R.tolist()], dtype=bool))
        H0 = H0.on(graph)
        delta = (H.on(graph) - H0).astype(np.complex64)
        return cls(
            name, H0.astype(np.complex64), S.on(graph).astype(np.float32), delta, band_cut, kpoints, vectors, path
        )


def kpoint_mesh(shift: Sequence[float] = (0.0, 0.0, 0.0), n: int = 4) -> np.ndarray:
    """Returns the mesh (i, j, k)/n + shift/n with k counting fastest, [n³, 3]; the published shift is random."""
    steps = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    return (steps + np.asarray(shift)) / n


def _solve(H: Blocks, S: Blocks, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies [s] and vectors [N, s] at one k-point."""
    overlap = np.kron(S.to_dense(k), np.eye(2))
    try:
        return scipy.linalg.eigh(H.to_dense(k), overlap)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"S: S(k) is not positive definite at k = {tuple(np.round(k, 6).tolist())}") from error


# --- writing


def write_published(path: str | os.PathLike[str], sample: PublishedSample) -> None:
    """Writes the 22 entries; the file takes its name only once it is complete.

    Raises:
        ValueError: an element whose shells do not fit into 4s2p2d1f.
        FileError: the file cannot be written.
    """
    from nextham_kernels.ops.blocks_irreps import blocks_to_irreps

    structure, graph = sample.structure, sample.graph
    padded = torch.from_numpy(sample.H0.padded())
    matrices = [to_square(matrix.spinor()) for matrix in (sample.H0, sample.S, sample.delta)]
    mask = mask_of(graph, sample.basis)
    h0, overlap, delta = (torch.from_numpy(matrix) for matrix in matrices)
    pair_of = [SYMBOLS[z] for z in structure.numbers]
    size = 2 * sample.H0.n_orbitals
    entries = [
        sample.path,
        torch.tensor(structure.cell, dtype=torch.float32),
        torch.tensor(structure.positions, dtype=torch.float32),
        size,
        torch.tensor(sample.band_cut),
        torch.tensor(len(sample.kpoints)),
        torch.from_numpy(sample.kpoints),
        torch.from_numpy(pad_vectors(sample.eigenvectors, structure, sample.basis)),
        blocks_to_irreps(padded, PUBLISHED_SHELLS_PADDED),
        *(torch.from_numpy(to_shell_pairs(matrix)) for matrix in (matrices[0], matrices[1], mask)),
        torch.tensor(graph.vector(), dtype=torch.float32),
        torch.from_numpy(graph.src),
        torch.from_numpy(graph.dst),
        [(pair_of[i], pair_of[j]) for i, j in zip(graph.src, graph.dst, strict=True)],
        sample.name,
        torch.from_numpy(to_shell_pairs(matrices[2])),
        h0,
        overlap,
        torch.from_numpy(mask),
        delta,
    ]
    with open_for_writing(path) as file:
        torch.save(entries, file)


# --- reading


def read_published(path: str | os.PathLike[str]) -> PublishedSample:
    """Reads a published sample with a restricted unpickler: tensors, numbers and words only, never code.

    Raises:
        FileError: no such file, damaged, not a list of 22 entries of the right kind and shape, edges that are not
            lattice vectors apart, a mask that is not that of the elements' published orbitals, or S with spin.
    """
    entries = _entries(path)
    cell, positions = _array(path, entries, 1, (3, 3)), _array(path, entries, 2, (None, 3))
    src, dst = _array(path, entries, 13, (None,)), _array(path, entries, 14, (len(entries[13]),))
    vectors = _array(path, entries, 12, (len(src), 3)).astype(np.float64)
    try:
        numbers = _numbers(len(positions), src, dst, entries[15])
        graph = _graph(Structure(cell, positions, numbers), src, dst, vectors)
        basis = Basis.published(graph.structure.species())
    except (ValueError, IndexError, TypeError) as error:
        raise FileError(path, str(error)) from error

    shape = (len(src), 2 * SLOTS, 2 * SLOTS)
    h0, overlap, mask, delta = (_array(path, entries, index, shape) for index in (18, 19, 20, 21))
    wrong = (mask.real != mask_of(graph, basis)).any(axis=(1, 2))
    if wrong.any():
        e = int(np.argmax(wrong))
        pair = f"{SYMBOLS[numbers[src[e]]]}-{SYMBOLS[numbers[dst[e]]]}"
        raise FileError(path, f"the mask of edge {e} ({pair}) is not that of the published orbitals of its elements")
    kpoints = _array(path, entries, 6, (None, 3)).astype(np.float64)
    size = 2 * int(basis.offsets(numbers)[-1])
    eigenvectors = _array(path, entries, 7, (len(kpoints) * size, 2 * SLOTS * len(numbers)))
    try:
        return PublishedSample(
            name=str(entries[16]),
            H0=from_square(h0, graph, basis),
            S=from_square(overlap, graph, basis).spinless(1e-6),
            delta=from_square(delta, graph, basis),
            band_cut=int(entries[4]),
            kpoints=kpoints,
            eigenvectors=unpad_vectors(eigenvectors, graph.structure, basis),
            path=str(entries[0]),
        )
    except (ValueError, TypeError) as error:
        raise FileError(path, str(error)) from error


def _entries(path: str | os.PathLike[str]) -> list:
    entries = load_restricted(path)
    if not isinstance(entries, list | tuple) or len(entries) != 22:
        what = f"{len(entries)} entries" if isinstance(entries, list | tuple) else type(entries).__name__
        raise FileError(path, f"expected the 22 entries of a published sample, got {what}")
    return list(entries)


def _array(path: str | os.PathLike[str], entries: list, index: int, shape: tuple[int | None, ...]) -> np.ndarray:
    """A tensor of the list as an array, once its shape is right."""
    tensor = entries[index]
    expected = ", ".join("n" if n is None else str(n) for n in shape)
    if not isinstance(tensor, torch.Tensor):
        raise FileError(path, f"entry {index}: expected a tensor [{expected}], got {type(tensor).__name__}")
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(n not in (None, m) for n, m in zip(shape, found, strict=True)):
        raise FileError(path, f"entry {index}: expected a tensor [{expected}], got {list(found)}")
    array = tensor.detach().resolve_conj().numpy()
    if not np.isfinite(array).all():
        raise FileError(path, f"entry {index}: a number is not finite")
    return array


def _numbers(n_atoms: int, src: np.ndarray, dst: np.ndarray, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Atomic numbers from the symbols of the pairs."""
    if len(pairs) != len(src) or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"entry 15: expected {len(src)} pairs of symbols")
    known: dict[int, str] = {}
    for i, j, pair in zip(src.tolist(), dst.tolist(), pairs, strict=True):
        for atom, symbol in zip((i, j), pair, strict=True):
            if known.setdefault(atom, symbol) != symbol:
                raise ValueError(f"entry 15: atom {atom} is {known[atom]} in one pair and {symbol} in another")
    if sorted(known) != list(range(n_atoms)):
        raise ValueError(f"entries 13, 14: expected edges of the atoms 0...{n_atoms - 1} and no others")
    return np.array([atomic_number(str(known[atom])) for atom in range(n_atoms)])


def _graph(structure: Structure, src: np.ndarray, dst: np.ndarray, vectors: np.ndarray) -> Graph:
    """The edges of the atoms inside the cell, with integer R."""
    between = structure.positions[dst] - structure.positions[src]
    R = np.rint(np.linalg.solve(structure.cell.T, (vectors - between).T).T).astype(np.int64)
    off = np.abs(between + R @ structure.cell - vectors).max(axis=1, initial=0.0)
    if len(off) and off.max() > _TOLERANCE:
        e = int(np.argmax(off))
        raise ValueError(f"entry 12: edge {e} is {off[e]:.3g} Å away from a difference of two lattice sites")
    inside, shifts = structure.wrapped()
    return Graph(inside, src, dst, R + shifts[dst] - shifts[src])
