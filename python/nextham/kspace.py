"""Eigenproblems at k-points: H(k) C = S(k) C ε."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg

from nextham.blocks import Blocks

__all__ = ["bands_at", "eigenvectors_at", "has_time_reversal", "overlap_with_spin"]

_MEMORY = 2**28
"""Bytes of dense matrices that are held at a time, if one pair of them is not larger."""

_SMALLEST_RCOND = 1e-13
"""Below this reciprocal condition number of S(k) rounding (1e-16) alone moves eigenvalues by meV and more."""


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


def bands_at(
    hamiltonian: Blocks,
    overlap: Blocks,
    kpoints: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
    memory: int = _MEMORY,
) -> np.ndarray:
    """Returns the eigenvalues ε of H(k) C = S(k) C ε, ascending.

    M(k) = Σ_R exp(2πi k·R) M(R); of both matrices the Hermitian part is taken, because a predicted H is Hermitian only
    up to its own error.

    Args:
        hamiltonian: H, eV, with both directions of every edge.
        overlap: S on any graph of the same structure, with any spin; likewise.
        kpoints: [q, 3], in units of the reciprocal lattice vectors.
        progress: called with the number of k-points done and their total (n_spin 2: twice that of `kpoints`).
        memory: bytes of dense matrices to hold at a time; never less than one k-point's.

    Returns:
        eV, [q, s]; n_spin 2: [2, q, s]. For n_spin 1 each level holds two electrons, else one.

    Raises:
        ValueError: H and S are not of the same structure and basis, a number that is not finite, an edge without its
            reverse, or an S(k) that is indefinite or singular to rounding: with k and the smallest eigenvalue.
    """
    kpoints = _checked(hamiltonian, overlap, kpoints)
    channels = _channels(hamiltonian, overlap)
    total, levels = len(channels) * len(kpoints), []
    for h, s in channels:
        for h_k, s_k, k in _dense(h, s, kpoints, memory):
            _check_overlap(s_k, k)
            levels.append(scipy.linalg.eigh(h_k, s_k, eigvals_only=True, check_finite=False))
            if progress is not None:
                progress(len(levels), total)
    values = np.array(levels).reshape(len(channels), len(kpoints), channels[0][0].n_orbitals * _spins(channels[0][0]))
    return values if hamiltonian.n_spin == 2 else values[0]


def eigenvectors_at(hamiltonian: Blocks, overlap: Blocks, kpoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ε [q, s] and C [q, a, s] with C†(k) S(k) C(k) = 1; a as in `Blocks.to_dense`.

    Raises:
        ValueError: as `bands_at`; also n_spin 2 (take the channels).
    """
    kpoints = _checked(hamiltonian, overlap, kpoints)
    if hamiltonian.n_spin == 2:
        raise ValueError("hamiltonian: n_spin 2 is two matrices: take channel(0) and channel(1)")
    values, vectors = [], []
    for h_k, s_k, k in _dense(*_channels(hamiltonian, overlap)[0], kpoints, _MEMORY):
        _check_overlap(s_k, k)
        epsilon, c = scipy.linalg.eigh(h_k, s_k, check_finite=False)
        values.append(epsilon)
        vectors.append(c)
    size = hamiltonian.n_orbitals * _spins(hamiltonian)
    return np.array(values).reshape(-1, size), np.array(vectors).reshape(-1, size, size)


def _spins(blocks: Blocks) -> int:
    return 2 if blocks.n_spin == 4 else 1


def _channels(hamiltonian: Blocks, overlap: Blocks) -> list[tuple[Blocks, Blocks]]:
    """The independent eigenproblems: one, or one per spin for n_spin 2."""
    if hamiltonian.n_spin == 2:
        overlap = overlap_with_spin(overlap, 1)
        return [(hamiltonian.channel(0), overlap), (hamiltonian.channel(1), overlap)]
    return [(hamiltonian, overlap_with_spin(overlap, hamiltonian.n_spin))]


def _checked(hamiltonian: Blocks, overlap: Blocks, kpoints: np.ndarray) -> np.ndarray:
    """The k-points [q, 3], after all checks of the three arguments."""
    numbers = hamiltonian.graph.structure.numbers
    if not np.array_equal(numbers, overlap.graph.structure.numbers) or hamiltonian.basis != overlap.basis:
        raise ValueError("overlap: expected the atoms and the basis of the Hamiltonian")
    kpoints = np.asarray(kpoints, dtype=np.float64)
    if kpoints.ndim != 2 or kpoints.shape[1] != 3 or not np.isfinite(kpoints).all():
        raise ValueError(f"kpoints: expected finite numbers of shape (q, 3), got shape {kpoints.shape}")
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
    return kpoints


def _dense(hamiltonian: Blocks, overlap: Blocks, kpoints: np.ndarray, memory: int):  # noqa: ANN202
    """Hermitian parts of H(k) and S(k), and k, for each k-point."""
    bytes_per_point = 2 * 16 * (hamiltonian.n_orbitals * _spins(hamiltonian)) ** 2
    step = max(1, memory // max(1, bytes_per_point))
    for first in range(0, len(kpoints), step):
        chunk = kpoints[first : first + step]
        for h_k, s_k, k in zip(hamiltonian.to_dense(chunk), overlap.to_dense(chunk), chunk, strict=True):
            yield (h_k + h_k.conj().T) / 2, (s_k + s_k.conj().T) / 2, k


def _check_overlap(s_k: np.ndarray, k: np.ndarray) -> None:
    """Refuses an S(k) that is not safely positive definite: LAPACK would fail, or return noise."""
    factor, failed = scipy.linalg.lapack.zpotrf(s_k, lower=1)
    norm = np.abs(s_k).sum(axis=0).max(initial=0.0)
    rcond = 0.0 if failed else scipy.linalg.lapack.zpocon(factor, norm, uplo="L")[0]
    if len(s_k) and rcond < _SMALLEST_RCOND:
        smallest = scipy.linalg.eigvalsh(s_k)[0]
        raise ValueError(
            f"overlap: S(k) at k = ({', '.join(f'{x:.6g}' for x in k)}) has the eigenvalue {smallest:.3g}, "
            "too small for an eigenproblem (S must be positive definite): "
            "S does not belong to this structure, lacks lattice vectors, or the basis is overcomplete"
        )
