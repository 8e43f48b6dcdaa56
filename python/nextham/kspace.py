"""Matrices at k-points and their eigenproblems: H(k) C = S(k) C ε."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from nextham.blocks import Blocks
from nextham_kernels.ops.bloch_sum import bloch_derivative, bloch_sum
from nextham_kernels.ops.eigh import Eigh, NotPositiveDefinite, eigh

__all__ = [
    "BlochMatrix",
    "bands_at",
    "bloch_pairs",
    "eigenvectors_at",
    "free_memory",
    "has_time_reversal",
    "overlap_with_spin",
    "solve",
]

Progress = Callable[[int, int], None]

_MEMORY = 2**28
"""Bytes of dense matrices that are held at a time, if one k-point's are not larger."""

_DENSE = 5
"""Dense matrices at one k-point: H, S, its factor L, L⁻¹HL⁻† and LAPACK's copy of it."""


def overlap_with_spin(overlap: Blocks, n_spin: int) -> Blocks:
    """Returns S with n_spin components, from any other number of them.

    Raises:
        ValueError: fewer components are asked for and S depends on spin.
    """
    return (overlap.spinless() if overlap.n_spin > n_spin else overlap).with_spin(n_spin)


def has_time_reversal(hamiltonian: Blocks, tolerance: float = 1e-5) -> bool:
    """Returns whether H commutes with time reversal, so that ε(−k) = ε(k).

    n_spin 1 and 2: H(R) is real (n_spin 2: within each spin). n_spin 4: ↓↓ = ↑↑* and ↓↑ = −↑↓*.

    Args:
        hamiltonian: H, eV.
        tolerance: largest deviation of an element, eV; ABACUS prints about 1e-7.
    """
    if hamiltonian.n_spin < 4:
        return not np.iscomplexobj(hamiltonian.data) or bool(np.abs(hamiltonian.data.imag).max(initial=0) <= tolerance)
    for _, _, _, blocks in hamiltonian.groups():
        uu, ud, du, dd = blocks.swapaxes(0, 1)
        if max(np.abs(dd - uu.conj()).max(), np.abs(du + ud.conj()).max()) > tolerance:
            return False
    return True


class BlochMatrix:
    """The Hermitian part of M(k) = Σ_R exp(2πi k·R) M(R), dense, in double precision; no gradients.

    The Hermitian part is taken because a predicted H is Hermitian only up to its own error.

    Args:
        blocks: M with n_spin 1 or 4.
        spins: 1 or 2; a matrix without spin is then the same for both.
        interatomic: phases exp(2πi k·(R + x_b − x_a)) of the vectors between atoms: the same bands, and derivatives
            with respect to k that know where the atoms are.

    Raises:
        ValueError: n_spin 2 (take the channels), or fewer spins than the matrix has.
    """

    def __init__(self, blocks: Blocks, spins: int = 1, interatomic: bool = False) -> None:
        own = {1: 1, 4: 2}.get(blocks.n_spin, 3)
        if own > spins:
            raise ValueError(f"blocks: expected n_spin 1{' or 4' if spins == 2 else ''}, got {blocks.n_spin}")
        self.layout = blocks.bloch_layout(interatomic)
        kind = np.complex128 if np.iscomplexobj(blocks.data) else np.float64
        self.data = torch.from_numpy(blocks.data.astype(kind, copy=False))
        self.cell = torch.from_numpy(np.array(blocks.graph.structure.cell, dtype=np.float64))
        self.doubled = spins > own
        self.size = self.layout.size * (2 if self.doubled else 1)
        """Rows of M(k): orbitals in the order of `Blocks.to_dense`, the spin index fastest."""

    def at(self, kpoints: np.ndarray) -> torch.Tensor:
        """Returns M(k) [q, a, b], complex128, for k-points [q, 3] in units of the reciprocal lattice vectors."""
        return self._dressed(bloch_sum(self.data, self.layout, torch.as_tensor(kpoints)))

    def derivative(self, kpoints: np.ndarray) -> torch.Tensor:
        """Returns ∂M/∂k for Cartesian k [q, 3, a, b], in units of M times Å."""
        return self._dressed(bloch_derivative(self.data, self.layout, torch.as_tensor(kpoints), self.cell))

    def _dressed(self, matrix: torch.Tensor) -> torch.Tensor:
        n, rows = matrix.shape[-1], 512
        for first in range(0, n, rows):  # in place: a copy may be what does not fit
            here = slice(first, first + rows)
            right, below = matrix[..., here, first:], matrix[..., first:, here]
            mean = (right + below.mH) / 2
            right.copy_(mean)
            below.copy_(mean.mH)
        if not self.doubled:
            return matrix
        wide = matrix.new_zeros(*matrix.shape[:-2], n, 2, n, 2)
        wide[..., 0, :, 0] = wide[..., 1, :, 1] = matrix
        return wide.flatten(-4, -3).flatten(-2)


def bloch_pairs(
    hamiltonian: Blocks, overlap: Blocks, interatomic: bool = False
) -> list[tuple[BlochMatrix, BlochMatrix]]:
    """Returns (H, S) of the independent eigenproblems: one, or one per spin for n_spin 2; checked.

    Args:
        hamiltonian: H, eV, with both directions of every edge.
        overlap: S on any graph of the same structure, with any spin; likewise.
        interatomic: see `BlochMatrix`.

    Raises:
        ValueError: H and S are not of the same structure and basis, a number that is not finite, or an edge without its
            reverse.
    """
    _check(hamiltonian, overlap)
    spins = 2 if hamiltonian.n_spin == 4 else 1
    if (overlap.n_spin != 1 and overlap.n_spin != hamiltonian.n_spin) or overlap.n_spin == 2:
        overlap = overlap.spinless()
    s = BlochMatrix(overlap, spins, interatomic)
    channels = [hamiltonian.channel(0), hamiltonian.channel(1)] if hamiltonian.n_spin == 2 else [hamiltonian]
    return [(BlochMatrix(h, spins, interatomic), s) for h in channels]


def free_memory() -> int | None:
    """Returns the bytes that the system could hand out now; None where it does not tell (elsewhere than on Linux)."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def solve(
    h: BlochMatrix,
    s: BlochMatrix,
    kpoints: np.ndarray,
    *,
    vectors: bool,
    energies: tuple[float, float] | None = None,
    threshold: float | None = None,
    memory: int = _MEMORY,
    matrices: int = 2,
) -> Iterator[tuple[np.ndarray, Eigh]]:
    """Yields groups of k-points and the solution of H(k) C = S(k) C ε at them (`nextham_kernels.ops.eigh`).

    Args:
        h: H.
        s: S.
        kpoints: [q, 3], in units of the reciprocal lattice vectors.
        vectors: whether C is wanted.
        energies: a window of energies, eV.
        threshold: eigenvalues of S(k) up to it are dropped (canonical orthogonalisation); None: they are an error.
        memory: bytes of dense matrices to hold at a time; never less than one k-point's.
        matrices: how many of them there are for each k-point, what the caller makes included.

    Raises:
        ValueError: kpoints that are not finite numbers [q, 3]; an S(k) that is indefinite or singular to rounding;
            matrices that do not fit into the memory that is free.
    """
    kpoints = np.asarray(kpoints, dtype=np.float64)
    if kpoints.ndim != 2 or kpoints.shape[1] != 3 or not np.isfinite(kpoints).all():
        raise ValueError(f"kpoints: expected finite numbers of shape (q, 3), got shape {kpoints.shape}")
    needed, free = 16 * _DENSE * h.size**2, free_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"hamiltonian: all {h.size:,} levels at a k-point need some {needed / 1e9:.1f} GB of memory and "
            f"{free / 1e9:.1f} GB are free; nextham bands --levels N and nextham.levels.levels_near give those near an "
            "energy in less than half of it"
        )
    # Groups that fit into the memory, but not so large that a progress bar stands still.
    fits = memory // max(1, 16 * matrices * h.size**2)
    step = max(1, min(fits, max(8 * torch.get_num_threads(), len(kpoints) // 20)))
    for first in range(0, len(kpoints), step):
        group = kpoints[first : first + step]
        try:
            yield group, eigh(h.at(group), s.at(group), vectors=vectors, energies=energies, threshold=threshold)
        except NotPositiveDefinite as error:
            raise ValueError(
                f"overlap: S(k) at k = ({', '.join(f'{x:.6g}' for x in group[error.k])}) has the eigenvalue "
                f"{error.smallest:.3g}, too small for an eigenproblem (S must be positive definite): "
                "S does not belong to this structure, lacks lattice vectors, or the basis is overcomplete "
                "(then give a threshold)"
            ) from None


def bands_at(
    hamiltonian: Blocks,
    overlap: Blocks,
    kpoints: np.ndarray,
    progress: Progress | None = None,
    memory: int = _MEMORY,
    threshold: float | None = None,
) -> np.ndarray:
    """Returns the eigenvalues ε of H(k) C = S(k) C ε, ascending; of both matrices the Hermitian part is taken.

    Args:
        hamiltonian: H, eV, with both directions of every edge.
        overlap: S on any graph of the same structure, with any spin; likewise.
        kpoints: [q, 3], in units of the reciprocal lattice vectors.
        progress: called with the number of k-points done and their total (n_spin 2: twice that of `kpoints`).
        memory: bytes of dense matrices to hold at a time; never less than one k-point's.
        threshold: eigenvalues of S(k) up to it are dropped by canonical orthogonalisation, and with them the highest
            levels: those that any k-point lacks are not returned. None: S(k) must be positive definite.

    Returns:
        eV, [q, s]; n_spin 2: [2, q, s]. For n_spin 1 each level holds two electrons, else one.

    Raises:
        ValueError: H and S are not of the same structure and basis, a number that is not finite, an edge without its
            reverse, an S(k) that is indefinite or singular to rounding: with k and the smallest eigenvalue; or no level
            left by the threshold.
    """
    pairs = bloch_pairs(hamiltonian, overlap)
    total, done, levels = len(pairs) * len(kpoints), 0, []
    for h, s in pairs:
        for group, found in solve(h, s, kpoints, vectors=False, threshold=threshold, memory=memory):
            levels.append(found.values.numpy())
            done += len(group)
            if progress is not None:
                progress(done, total)
    values = np.concatenate(levels) if levels else np.empty((0, pairs[0][0].size))
    values = values.reshape(len(pairs), len(kpoints), pairs[0][0].size)
    values = values[:, :, np.isfinite(values).all((0, 1))]
    if levels and not values.shape[2]:
        raise ValueError(f"threshold: at some k-point no eigenvalue of S(k) is above {threshold:g}: no level is left")
    return values if hamiltonian.n_spin == 2 else values[0]


def eigenvectors_at(hamiltonian: Blocks, overlap: Blocks, kpoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ε [q, s] and C [q, a, s] with C†(k) S(k) C(k) = 1; a as in `Blocks.to_dense`.

    Raises:
        ValueError: as `bands_at`; also n_spin 2 (take the channels).
    """
    if hamiltonian.n_spin == 2:
        raise ValueError("hamiltonian: n_spin 2 is two matrices: take channel(0) and channel(1)")
    ((h, s),) = bloch_pairs(hamiltonian, overlap)
    found = [solution for _, solution in solve(h, s, kpoints, vectors=True)]
    if not found:
        return np.empty((0, h.size)), np.empty((0, h.size, h.size), dtype=np.complex128)
    return np.concatenate([f.values.numpy() for f in found]), np.concatenate([f.vectors.numpy() for f in found])


def _check(hamiltonian: Blocks, overlap: Blocks) -> None:
    numbers = hamiltonian.graph.structure.numbers
    if not np.array_equal(numbers, overlap.graph.structure.numbers) or hamiltonian.basis != overlap.basis:
        raise ValueError("overlap: expected the atoms and the basis of the Hamiltonian")
    for name, matrix in (("hamiltonian", hamiltonian), ("overlap", overlap)):
        if not np.isfinite(matrix.data).all():
            raise ValueError(f"{name}: contains numbers that are not finite")
        lonely = np.flatnonzero(matrix.graph.reverse() < 0)
        if not len(lonely):
            continue
        # A file's own threshold (1e-10 Ry) may keep an element and drop its mirror image; that harms nothing.
        largest = np.abs(matrix.select(lonely).data).max()
        if largest > 1e-6 * np.abs(matrix.data).max():
            raise ValueError(
                f"{name}: {len(lonely)} edges lack their reverse, with elements up to {largest:.3g}: "
                "bands need M(R) and M(-R)"
            )
