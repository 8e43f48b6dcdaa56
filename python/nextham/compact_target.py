"""The label of one structure without padding: what the trainer compares predictions with.

Numbers lie as in `Blocks.data` [d]: edge after edge, s spin blocks (1 or 4) of each, between orbitals that exist.
Against the padded form this is four times less memory for silicon (13 of 27 slots).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from nextham.basis import PUBLISHED_SHELLS_PADDED, published_slots
from nextham.blocks import Blocks
from nextham.kspace import overlap_with_spin
from nextham.loss_target import ShellPairSums
from nextham_kernels.ops.bloch_sum import BlochLayout, bloch_project

__all__ = ["CompactTarget"]


@dataclass(frozen=True, eq=False)
class CompactTarget:
    """A label in the compact form (`from_blocks` makes it).

    Args:
        layout: where the numbers go in a Bloch sum.
        sizes: numbers of each edge [e], int64.
        slot: where each predicted number of one spin block lies in a prediction [g, a·b], flat; int64 [m].
        predicted: where it lies in the label, for each spin block [s, m], int64: on edges below the network's cutoff.
        predicted_edges: those edges [g], int64.
        empty: which slots [g · a·b] have no orbital, bool.
        delta: ΔH [d], real or complex, eV.
        overlap: S likewise, real, no unit.
        shell_pair_sums: what the trace label is made of, on the predicted edges [g, pairs of shells].
        n_slots: a.
        kpoints: [q, 3], float64, in units of the reciprocal lattice vectors.
        vectors: eigenvectors [q, N · spin, band], spin fastest, complex, C†SC = 1.
        low: which bands count as low [q, band], bool.
    """

    layout: BlochLayout
    sizes: torch.Tensor
    slot: torch.Tensor
    predicted: torch.Tensor
    predicted_edges: torch.Tensor
    empty: torch.Tensor
    delta: torch.Tensor
    overlap: torch.Tensor
    shell_pair_sums: ShellPairSums
    n_slots: int
    kpoints: torch.Tensor
    vectors: torch.Tensor
    low: torch.Tensor

    @property
    def n_elements(self) -> int:
        """N_R: elements on all edges, spin blocks counted, complex ones as one."""
        return self.delta.numel()

    @property
    def trace_shape(self) -> tuple[int, int]:
        """Shape of the trace head [g, p]."""
        return tuple(self.shell_pair_sums.count.shape)

    def mask(self) -> None:
        """Returns None: every element lies between real orbitals."""

    def error(self, delta: torch.Tensor) -> torch.Tensor:
        """Returns E = ΔĤ − ΔH [d] of a prediction on the predicted edges; elsewhere ΔĤ = 0.

        Args:
            delta: [g, a·b] real, the same for ↑↑ and ↓↓ with no other spin block, or [g, s, a·b].

        Raises:
            ValueError: another shape.
        """
        n, n_spin = len(self.predicted_edges), len(self.predicted)
        shapes = ((n, self.n_slots**2), (n, n_spin, self.n_slots**2))
        if tuple(delta.shape) not in shapes:
            raise ValueError(f"delta: expected shape {shapes[0]} or {shapes[1]}, got {tuple(delta.shape)}")
        if delta.ndim == 2:
            to = self.predicted[:: max(1, n_spin - 1)]  # ↑↑ and ↓↓
            picked = delta.flatten()[self.slot].expand(len(to), -1)
        else:
            to, picked = self.predicted, delta.transpose(0, 1).flatten(1)[:, self.slot]
        return (-self.delta).index_add(0, to.flatten(), picked.to(self.delta.dtype).flatten())

    def outside(self, delta: torch.Tensor, squares: bool) -> torch.Tensor:
        """Returns Σ|Re ΔĤ|, or Σ(Re ΔĤ)², over slots of a prediction (as `error` takes it) without an orbital."""
        if delta.ndim == 2:
            outside, times = delta.flatten() * self.empty, 2 if len(self.predicted) == 4 else 1
        else:
            outside, times = delta.real.transpose(0, 1).flatten(1) * self.empty, 1
        return times * (outside.square() if squares else outside.abs()).sum()

    def between(self, error: torch.Tensor) -> torch.Tensor:
        """Returns U†E(k)U [q, band, band] of all k-points."""
        kind = self.vectors.dtype if error.is_complex() else self.vectors.real.dtype
        return bloch_project(error.to(kind), self.layout, self.kpoints, self.vectors)

    def with_bands(self, kpoints: np.ndarray, vectors: np.ndarray, low: np.ndarray) -> CompactTarget:
        """Returns the label with other k-points.

        Args:
            kpoints: [q, 3], fractional.
            vectors: [q, a, s] in the order of `Blocks.to_dense` (`kspace.eigenvectors_at`).
            low: which bands count as low [q, s], bool.
        """
        device, wide = self.delta.device, torch.complex64 if self.overlap.dtype == torch.float32 else torch.complex128
        return replace(
            self,
            kpoints=torch.as_tensor(np.asarray(kpoints, dtype=np.float64)).to(device),
            vectors=torch.as_tensor(np.asarray(vectors)).to(device, wide),
            low=torch.as_tensor(np.asarray(low, dtype=bool)).to(device),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> CompactTarget:
        """Returns the label on a device, its numbers in a real dtype and the complex one that goes with it.

        k-points stay in double precision.
        """
        wide = torch.complex64 if dtype == torch.float32 else torch.complex128

        def moved(x: object) -> object:
            if isinstance(x, ShellPairSums):
                return ShellPairSums(*map(moved, x))
            if isinstance(x, BlochLayout) or x is self.kpoints:
                return x.to(device)
            if isinstance(x, torch.Tensor):
                return x.to(device, wide if x.is_complex() else dtype if x.is_floating_point() else x.dtype)
            return x

        return replace(self, **{field.name: moved(getattr(self, field.name)) for field in fields(self)})

    def nbytes(self) -> int:
        """Returns the memory of all its tensors."""
        values = [getattr(self, field.name) for field in fields(self)] + list(self.shell_pair_sums)
        values += [self.layout.edges, self.layout.pairs, self.layout.vectors]
        return sum(x.nbytes for x in values if isinstance(x, torch.Tensor))

    @classmethod
    def from_blocks(
        cls,
        delta: Blocks,
        overlap: Blocks,
        predicted: np.ndarray | None = None,
        shells: tuple[int, ...] = PUBLISHED_SHELLS_PADDED,
    ) -> CompactTarget:
        """Returns the label of matrices in e3nn's order, without k-points.

        Args:
            delta: ΔH on all edges that count, n_spin 1 or 4.
            overlap: S, any graph and spin.
            predicted: the edges [g] on which a prediction will be given; all by default.
            shells: the padded layout of the prediction.

        Raises:
            ValueError: n_spin 2, or an overlap that depends on spin.
        """
        graph = delta.graph
        if delta.n_spin == 2:
            raise ValueError("delta: collinear spin is two structures: take channel(0) and channel(1)")
        s = overlap_with_spin(overlap.on(graph), 1)
        predicted = np.arange(graph.n_edges) if predicted is None else np.asarray(predicted)
        edge_of = np.repeat(np.arange(graph.n_edges), s.sizes)  # of each number without spin
        slot, pair, n_slots = _slots(s, shells)
        number = np.full(graph.n_edges, -1)
        number[predicted] = np.arange(len(predicted))
        chosen = np.flatnonzero(number[edge_of] >= 0)
        places = _places(delta)
        by_spin, wide_overlap = delta.data[places], np.zeros(places.shape, dtype=s.data.real.dtype)
        wide_overlap[0] = wide_overlap[-1] = s.data.real
        flat_overlap = np.empty(places.size, dtype=s.data.real.dtype)
        flat_overlap[places] = wide_overlap
        sums = (
            (np.abs(by_spin) ** 2).sum(0),
            (by_spin.conj() * wide_overlap).real.sum(0),
            (wide_overlap**2).sum(0),
            np.full(len(s.data), float(delta.n_spin)),
        )
        slot = number[edge_of[chosen]] * n_slots**2 + slot[chosen]
        empty = np.ones(len(predicted) * n_slots**2, dtype=bool)
        empty[slot] = False
        target = number[edge_of[chosen]] * len(shells) ** 2 + pair[chosen]
        size = len(predicted) * len(shells) ** 2
        pair_sums = [np.bincount(target, x[chosen], size).reshape(len(predicted), -1) for x in sums]
        return cls(
            layout=delta.bloch_layout(),
            sizes=torch.from_numpy(np.asarray(delta.sizes, dtype=np.int64)),
            slot=torch.from_numpy(slot),
            predicted=torch.from_numpy(np.ascontiguousarray(places[:, chosen])),
            predicted_edges=torch.from_numpy(predicted.astype(np.int64)),
            empty=torch.from_numpy(empty),
            delta=torch.from_numpy(delta.data),
            overlap=torch.from_numpy(flat_overlap),
            shell_pair_sums=ShellPairSums(*map(torch.from_numpy, pair_sums)),
            n_slots=n_slots,
            kpoints=torch.zeros(0, 3, dtype=torch.float64),
            vectors=torch.zeros(0, 0, 0, dtype=torch.complex128),
            low=torch.zeros(0, 0, dtype=torch.bool),
        )


def _places(blocks: Blocks) -> np.ndarray:
    """Where the numbers of each spin block lie in `data` [s, d/s]: spin blocks follow each other edge by edge."""
    per_spin = blocks.sizes // blocks.n_spin
    spin_of = np.repeat(np.tile(np.arange(blocks.n_spin), blocks.n_edges), np.repeat(per_spin, blocks.n_spin))
    return np.stack([np.flatnonzero(spin_of == s) for s in range(blocks.n_spin)])


def _slots(spinless: Blocks, shells: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, int]:
    """Of each element: its slot a · n + b, its pair of shells; and n."""
    sizes = [2 * l + 1 for l in shells]
    n_slots, shell_of = sum(sizes), np.repeat(np.arange(len(shells)), sizes)
    slot, pair = np.empty((2, len(spinless.data)), dtype=np.int64)
    for z_a, z_b, edges, _ in spinless.groups():
        a, b = (published_slots(spinless.basis[z], shells) for z in (z_a, z_b))
        index = spinless.index(edges)
        slot[index] = a[:, None] * n_slots + b
        pair[index] = shell_of[a][:, None] * len(shells) + shell_of[b]
    return slot, pair, n_slots
