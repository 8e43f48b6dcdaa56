"""How `nextham.io.hdf5` makes a matrix small without losing a bit: real planes, and differences of bit patterns.

A matrix is cut into real planes, one for each spin component and each of real and imaginary part, and a plane that is
zero everywhere takes no room. Where physics says that one number follows from another (M(−R) = M(R)†; without
magnetism ↓↓ = conj(↑↑) and ↓↑ = −conj(↑↓)), the exclusive or of the two bit patterns is kept instead of the number. It
is zero where the rule holds to the last bit, has only its last bits set where the rule holds but for rounding, and
always gives the number back. −0 counts as 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.graph import Graph

__all__ = ["PAIRED", "Planes", "from_planes", "pair_spins", "plane_names", "to_planes", "unpair_spins"]

Planes = dict[str, np.ndarray]
"""Name → bit patterns, uint32 or uint64; the numbers of all blocks one after the other. An absent plane is zero."""

_SPINS = {1: ("",), 2: ("up_", "down_"), 4: ("uu_", "ud_", "du_", "dd_")}

# Without magnetism this plane is that one, or its negative.
PAIRED = {"dd_re": ("uu_re", 1), "dd_im": ("uu_im", -1), "du_re": ("ud_re", -1), "du_im": ("ud_im", 1)}


def plane_names(n_spin: int, dtype: np.dtype) -> list[str]:
    """Returns the names of the planes of a matrix, such as `uu_re`; with n_spin 1 `re` and `im`."""
    parts = ("re", "im") if np.issubdtype(dtype, np.complexfloating) else ("re",)
    return [spin + part for spin in _SPINS[n_spin] for part in parts]


def bits_of(values: np.ndarray) -> np.ndarray:
    """Returns the bit patterns of real numbers as unsigned integers of their size."""
    return (values + 0.0).view(f"u{values.itemsize}")  # adding 0 turns −0 into 0


def to_planes(matrix: Blocks) -> Planes:
    """Returns all planes of a matrix, one number per orbital pair of each edge."""
    per_spin = matrix.sizes // matrix.n_spin
    spin_of = np.repeat(
        np.tile(np.arange(matrix.n_spin, dtype=np.int8), matrix.n_edges), np.repeat(per_spin, matrix.n_spin)
    )
    planes = {}
    for s, spin in enumerate(_SPINS[matrix.n_spin]):
        values = matrix.data[spin_of == s]
        planes[spin + "re"] = bits_of(values.real)
        if np.iscomplexobj(values):
            planes[spin + "im"] = bits_of(values.imag)
    return planes


def from_planes(planes: Mapping[str, np.ndarray], graph: Graph, basis: Basis, n_spin: int, dtype: np.dtype) -> Blocks:
    """Returns the matrix on a graph, the inverse of `to_planes`."""
    matrix = Blocks.zeros(graph, basis, n_spin, dtype)
    per_spin = matrix.sizes // n_spin
    spin_of = np.repeat(np.tile(np.arange(n_spin, dtype=np.int8), graph.n_edges), np.repeat(per_spin, n_spin))
    real = matrix.data.real.dtype
    for s, spin in enumerate(_SPINS[n_spin]):
        if spin + "re" in planes:
            matrix.data.real[spin_of == s] = planes[spin + "re"].view(real)
        if spin + "im" in planes:
            matrix.data.imag[spin_of == s] = planes[spin + "im"].view(real)
    return matrix


def pair_spins(planes: Planes) -> Planes:
    """Returns the planes with ↓↓ and ↓↑ replaced by their difference from what ↑↑ and ↑↓ say."""
    return planes | {name: bits ^ _expected(planes, name) for name, bits in planes.items() if name in PAIRED}


def unpair_spins(planes: Planes, n_spin: int, dtype: np.dtype) -> Planes:
    """Returns the planes themselves, the inverse of `pair_spins`; planes absent there may be present here."""
    result = dict(planes)
    for name in plane_names(n_spin, dtype):
        if name in PAIRED and (name in planes or PAIRED[name][0] in planes):
            expected = _expected(planes, name) if PAIRED[name][0] in planes else 0
            result[name] = planes[name] ^ expected if name in planes else expected
    return result


def _expected(planes: Planes, name: str) -> np.ndarray:
    other, sign = PAIRED[name]
    if sign > 0:
        return planes[other]
    return bits_of(-planes[other].view(f"f{planes[other].itemsize}"))
