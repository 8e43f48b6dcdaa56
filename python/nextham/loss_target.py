"""What the loss compares a prediction with: label, overlap and eigenvectors of one structure, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from nextham.basis import PUBLISHED_SHELLS_PADDED, published_slots
from nextham.blocks import Blocks
from nextham.kspace import overlap_with_spin

__all__ = ["ShellPairSums", "Target", "low_bands"]


def low_bands(gamma_levels: np.ndarray, efermi: float, above: float = 10.0) -> int:
    """Returns how many bands count as low: the number of the first at Γ with ε ≥ E_F + above, counted from 0, less one.

    Args:
        gamma_levels: eigenvalues at Γ, ascending [s], eV.
        efermi: eV.
        above: eV.

    Raises:
        ValueError: no band reaches so high, or not even two lie below.
    """
    first = int(np.searchsorted(gamma_levels, efermi + above, side="left"))
    if not 2 <= first < len(gamma_levels):
        raise ValueError(f"gamma_levels: expected levels on both sides of E_F + {above:g} eV = {efermi + above:g} eV")
    return first - 1


class ShellPairSums(NamedTuple):
    """Sums over the spin blocks and components of each pair of shells [e, p], which the trace label is made of."""

    delta: torch.Tensor  # Σ |ΔH|²
    mixed: torch.Tensor  # Σ Re(ΔH* S)
    overlap: torch.Tensor  # Σ |S|²
    count: torch.Tensor  # Σ 1 over real orbitals


@dataclass(frozen=True, eq=False)
class Target:
    """The label of one structure; padded slots of all atoms are in one common order.

    Args:
        src: atom of the rows [e], int64.
        dst: atom of the columns [e], int64.
        R: lattice vectors [e, 3], int64.
        exists: which slots of each atom are orbitals [n, a], bool.
        delta: ΔH = H⁽ᵀ⁾ − H⁽⁰⁾ [e, s, a, b], real or complex, eV; zero in padded slots.
        overlap: S likewise, no unit.
        kpoints: [q, 3], in units of the reciprocal lattice vectors; none leaves the real-space terms alone.
        vectors: eigenvectors [q, band, n, spin, a], complex, C†SC = 1; spin 1 or 2.
        low: which bands count as low [q, band], bool; any set, such as a window around E_F.
        shells: l of each shell of the padded layout.

    Raises:
        ValueError: shapes that do not match.
    """

    src: torch.Tensor
    dst: torch.Tensor
    R: torch.Tensor
    exists: torch.Tensor
    delta: torch.Tensor
    overlap: torch.Tensor
    kpoints: torch.Tensor
    vectors: torch.Tensor
    low: torch.Tensor
    shells: tuple[int, ...] = PUBLISHED_SHELLS_PADDED

    def __post_init__(self) -> None:
        n_edges, slots = len(self.src), sum(2 * l + 1 for l in self.shells)
        n_spin = self.delta.shape[1] if self.delta.ndim == 4 else 0
        spins = 2 if n_spin == 4 else 1
        n_atoms, n_points = len(self.exists), len(self.kpoints)
        n_bands = self.vectors.shape[1] if self.vectors.ndim == 5 else 0
        if n_spin not in (1, 4):
            raise ValueError(
                f"delta: expected shape (e, s, a, b) with s = 1 or 4 (collinear spin is two structures), "
                f"got {tuple(self.delta.shape)}"
            )
        for name, shape in (
            ("dst", (n_edges,)),
            ("R", (n_edges, 3)),
            ("exists", (n_atoms, slots)),
            ("delta", (n_edges, n_spin, slots, slots)),
            ("overlap", (n_edges, n_spin, slots, slots)),
            ("kpoints", (n_points, 3)),
            ("vectors", (n_points, n_bands, n_atoms, spins, slots)),
            ("low", (n_points, n_bands)),
        ):
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {tuple(getattr(self, name).shape)}")

    @property
    def n_elements(self) -> int:
        """N_R: elements between real orbitals on all edges, spin blocks counted, complex ones as one."""
        orbitals = self.exists.sum(1)
        return self.delta.shape[1] * int((orbitals[self.src] * orbitals[self.dst]).sum())

    def mask(self) -> torch.Tensor:
        """Returns which elements lie between real orbitals, bool [e, 1, a, b]."""
        return (self.exists[self.src][:, :, None] & self.exists[self.dst][:, None, :])[:, None]

    @property
    def trace_shape(self) -> tuple[int, int]:
        """Shape of the trace head [e, p]."""
        return len(self.src), len(self.shells) ** 2

    def error(self, delta: torch.Tensor) -> torch.Tensor:
        """Returns E = ΔĤ − ΔH of a prediction [e, s, a, b].

        Raises:
            ValueError: another shape.
        """
        if delta.shape != self.delta.shape:
            raise ValueError(f"delta: expected shape {tuple(self.delta.shape)}, got {tuple(delta.shape)}")
        return delta - self.delta

    def outside(self, delta: torch.Tensor, squares: bool) -> torch.Tensor:
        """Returns Σ|Re ΔĤ|, or Σ(Re ΔĤ)², over slots without an orbital."""
        outside = delta.real * ~self.mask()
        return (outside.square() if squares else outside.abs()).sum()

    def bloch_sum(self, error: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Returns Σ_e exp(2πi k·R_e) E_e [N, N], N = n · spin · a as the eigenvectors have it."""
        n_atoms, slots = self.exists.shape
        spins = 2 if error.shape[1] == 4 else 1
        angle = 2 * torch.pi * (self.R.to(k.dtype) @ k)
        phased = torch.polar(torch.ones_like(angle), angle)[:, None, None, None] * error
        pairs = phased.new_zeros(n_atoms**2, *error.shape[1:])
        pairs = pairs.index_add(0, self.src * n_atoms + self.dst, phased)
        pairs = pairs.reshape(n_atoms, n_atoms, spins, spins, slots, slots)
        return pairs.permute(0, 2, 4, 1, 3, 5).reshape(n_atoms * spins * slots, -1)

    def between(self, error: torch.Tensor) -> torch.Tensor:
        """Returns U†E(k)U [q, band, band] of all k-points."""
        matrices = []
        for k, vectors in zip(self.kpoints, self.vectors.flatten(2), strict=True):
            dense = self.bloch_sum(error, k)
            common = torch.promote_types(dense.dtype, vectors.dtype)
            matrices.append(vectors.to(common).conj() @ dense.to(common) @ vectors.to(common).T)
        n = self.vectors.shape[1]
        return torch.stack(matrices) if matrices else self.vectors.new_zeros(0, n, n)

    @cached_property
    def shell_pair_sums(self) -> ShellPairSums:
        """What the trace label is made of."""
        delta, overlap = self.delta, self.overlap
        count = self.mask()[:, 0].to(delta.real.dtype) * delta.shape[1]
        sums = ((delta * delta.conj()).real, (delta.conj() * overlap).real, (overlap * overlap.conj()).real)
        return ShellPairSums(
            *(_per_shell_pair(x.sum(1), self.shells) for x in sums), _per_shell_pair(count, self.shells)
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Target:
        """Returns the target on a device, its numbers in a real dtype and the complex one that goes with it."""
        wide = torch.complex64 if dtype == torch.float32 else torch.complex128
        moved = {}
        for field in fields(self):
            x = getattr(self, field.name)
            if isinstance(x, torch.Tensor):
                x = x.to(device, wide if x.is_complex() else dtype if x.is_floating_point() else x.dtype)
            moved[field.name] = x
        return replace(self, **moved)

    @classmethod
    def from_blocks(
        cls,
        delta: Blocks,
        overlap: Blocks,
        kpoints: np.ndarray,
        vectors: np.ndarray,
        low: np.ndarray,
        shells: tuple[int, ...] = PUBLISHED_SHELLS_PADDED,
    ) -> Target:
        """Returns the target of matrices in e3nn's order.

        Args:
            delta: ΔH on the graph of the network, n_spin 1 or 4.
            overlap: S, any graph and spin.
            kpoints: [q, 3], fractional.
            vectors: eigenvectors [q, a, s] of the converged H and S in the order of `Blocks.to_dense`
                (`kspace.eigenvectors_at`).
            low: which bands count as low [q, s], bool.
            shells: the padded layout.

        Raises:
            ValueError: shapes that do not match, or n_spin 2.
        """
        graph = delta.graph
        overlap = overlap_with_spin(overlap.on(graph), delta.n_spin)
        numbers, n_slots, spins = graph.structure.numbers, sum(2 * l + 1 for l in shells), 2 if delta.n_spin == 4 else 1
        slots = [n * n_slots + published_slots(delta.basis[int(z)], shells) for n, z in enumerate(numbers)]
        slots = np.concatenate(slots)  # of every orbital of the cell
        exists = np.zeros(len(numbers) * n_slots, dtype=bool)
        exists[slots] = True
        vectors = np.asarray(vectors)
        if vectors.ndim != 3 or vectors.shape[1] != spins * len(slots):
            raise ValueError(f"vectors: expected shape (q, {spins * len(slots)}, s), got {vectors.shape}")
        wide = np.zeros((*vectors.shape[::2], spins, len(exists)), dtype=np.complex128)
        by_orbital = vectors.reshape(len(vectors), len(slots), spins, vectors.shape[2])  # [q, orbital, spin, band]
        wide[..., slots] = by_orbital.transpose(0, 3, 2, 1)
        wide = wide.reshape(*wide.shape[:3], len(numbers), n_slots).swapaxes(2, 3)
        return cls(
            src=torch.from_numpy(graph.src),
            dst=torch.from_numpy(graph.dst),
            R=torch.from_numpy(graph.R),
            exists=torch.from_numpy(exists.reshape(len(numbers), n_slots)),
            delta=torch.from_numpy(delta.padded(shells)),
            overlap=torch.from_numpy(overlap.padded(shells)),
            kpoints=torch.from_numpy(np.asarray(kpoints, dtype=np.float64)),
            vectors=torch.from_numpy(np.ascontiguousarray(wide)),
            low=torch.from_numpy(np.asarray(low, dtype=bool)),
            shells=tuple(shells),
        )


def _per_shell_pair(blocks: torch.Tensor, shells: tuple[int, ...]) -> torch.Tensor:
    """Sums [e, a, b] over the components of each pair of shells, [e, p]."""
    sizes = torch.tensor([2 * l + 1 for l in shells], device=blocks.device)
    shell_of = torch.repeat_interleave(torch.arange(len(shells), device=blocks.device), sizes)
    rows = blocks.new_zeros(len(blocks), len(shells), blocks.shape[2]).index_add(1, shell_of, blocks)
    return rows.new_zeros(len(blocks), len(shells), len(shells)).index_add(2, shell_of, rows).flatten(1)
