"""The array layouts of the published samples: 27 padded slots per atom and spin, DeepH's component order."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from nextham.basis import PUBLISHED_SHELLS_PADDED, Basis, order_permutation, published_slots
from nextham.blocks import Blocks
from nextham.graph import Graph
from nextham.structure import Structure

__all__ = ["SLOTS", "from_square", "mask_of", "pad_vectors", "to_shell_pairs", "to_square", "unpad_vectors"]

SLOTS = sum(2 * l + 1 for l in PUBLISHED_SHELLS_PADDED)
"""Slots of an atom and spin: 27."""


def to_square(matrix: Blocks) -> np.ndarray:
    """[e, 54, 54] in the published order."""
    wide = matrix.padded(order="deeph").reshape(matrix.n_edges, 2, 2, SLOTS, SLOTS)
    return np.ascontiguousarray(wide.transpose(0, 1, 3, 2, 4)).reshape(matrix.n_edges, 2 * SLOTS, 2 * SLOTS)


def from_square(square: np.ndarray, graph: Graph, basis: Basis) -> Blocks:
    """The inverse of `to_square`; other slots are not looked at."""
    wide = square.reshape(-1, 2, SLOTS, 2, SLOTS).transpose(0, 1, 3, 2, 4)
    return Blocks.from_padded(graph, basis, wide.reshape(-1, 4, SLOTS, SLOTS), order="deeph")


def to_shell_pairs(square: np.ndarray) -> np.ndarray:
    """[e, 54, 54] → [e, 4, 729], shell block after shell block."""
    starts = np.concatenate([[0], np.cumsum([2 * l + 1 for l in PUBLISHED_SHELLS_PADDED])])
    shells = [np.arange(a, b) for a, b in pairwise(starts)]
    rows = np.concatenate([np.repeat(i, len(j)) for i in shells for j in shells])
    columns = np.concatenate([np.tile(j, len(i)) for i in shells for j in shells])
    wide = square.reshape(-1, 2, SLOTS, 2, SLOTS)
    return wide[:, :, rows, :, columns].transpose(1, 2, 3, 0).reshape(-1, 4, SLOTS**2).copy()


def mask_of(graph: Graph, basis: Basis) -> np.ndarray:
    """[e, 54, 54] float32: 1 where both orbitals exist."""
    ones = Blocks.zeros(graph, basis, 4, np.float32)
    ones.data[:] = 1
    return np.abs(to_square(ones))


def pad_vectors(vectors: np.ndarray, structure: Structure, basis: Basis) -> np.ndarray:
    """Eigenvectors [q, s, N] in the components of `Blocks.to_dense` → [q·N, 54·n]."""
    vectors = vectors.reshape(-1, vectors.shape[2] // 2, 2)
    wide = np.zeros((len(vectors), structure.n_atoms, 2, SLOTS), dtype=np.complex64)
    for atom, components, slots, sign in _orbital_slots(structure, basis):
        wide[:, atom, :, slots] = (vectors[:, components] * sign[:, None]).transpose(1, 0, 2)
    return wide.reshape(len(wide), -1)


def unpad_vectors(wide: np.ndarray, structure: Structure, basis: Basis) -> np.ndarray:
    """The inverse of `pad_vectors`; other slots are not looked at."""
    size = 2 * int(basis.offsets(structure.numbers)[-1])
    wide = wide.reshape(-1, structure.n_atoms, 2, SLOTS)
    vectors = np.empty((len(wide), size // 2, 2), dtype=np.complex64)
    for atom, components, slots, sign in _orbital_slots(structure, basis):
        vectors[:, components] = wide[:, atom][:, :, slots].transpose(0, 2, 1) * sign[:, None]
    return vectors.reshape(-1, size, size)


def _orbital_slots(structure: Structure, basis: Basis) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Per atom: its orbitals in e3nn's order, their slots in the DeepH order, and signs between the two."""
    result = []
    for atom, (z, start) in enumerate(zip(structure.numbers, basis.offsets(structure.numbers), strict=False)):
        index, sign = order_permutation(basis[z], "deeph")
        result.append((atom, start + index, published_slots(basis[z]), sign.astype(np.float32)))
    return result
