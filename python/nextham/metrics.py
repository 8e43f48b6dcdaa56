"""How far one Hamiltonian is from another: gauge MAE in all its parts, band errors, conditioning of S."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.graph import Graph
from nextham.kspace import BlochMatrix, bands_at, overlap_with_spin
from nextham.units import SYMBOLS
from nextham_kernels.ops.eigh import eigh

__all__ = [
    "DISTANCE_EDGES",
    "BandError",
    "GaugeReport",
    "OverlapCondition",
    "Part",
    "band_error",
    "gauge_mae",
    "gauge_mu",
    "overlap_condition",
]

DISTANCE_EDGES = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0)
"""Borders of the distance ranges, Å; up to 6 Å those of the published networks."""

_SAME = 0.01
"""What files of one structure may differ by in rounding and in the length of a Bohr, Å."""

_SPINS = {1: ("",), 2: ("up ", "down "), 4: ("uu ", "ud ", "du ", "dd ")}


class Part(NamedTuple):
    """Mean over some of the elements."""

    mae_meV: float
    n_elements: int


@dataclass(frozen=True)
class GaugeReport:
    """Gauge MAE of a Hamiltonian against a reference, whole and in parts.

    Args:
        mu_eV: the gauge shift that was taken off.
        mae_meV: mean |E − μS| over all elements.
        max_meV: the largest.
        n_elements: real and imaginary part counted as one.
        by_spin: mean |Re| and mean |Im| of each spin block, such as `uu real`.
        by_distance: mean |E − μS| per range of |r|, such as `2-4 Å`.
        by_elements: per pair, such as `Ga-As` (row atom first).
        by_shells: per pair of shells, such as `2s-1p`, over all elements.
    """

    mu_eV: float
    mae_meV: float
    max_meV: float
    n_elements: int
    by_spin: dict[str, Part]
    by_distance: dict[str, Part]
    by_elements: dict[str, Part]
    by_shells: dict[str, Part]

    def to_dict(self) -> dict[str, object]:
        """Returns everything for JSON; each part is {mae_meV, n_elements}."""
        return {
            name: {key: part._asdict() for key, part in value.items()} if isinstance(value, dict) else value
            for name, value in vars(self).items()
        }

    def rows(self) -> list[tuple[str, str, float, int]]:
        """Returns (group, name, MAE in meV, elements) for a table; the whole comes first."""
        rows = [("all", "", self.mae_meV, self.n_elements)]
        for group in ("spin", "distance", "elements", "shells"):
            rows += [(group, name, *part) for name, part in getattr(self, f"by_{group}").items()]
        return rows


@dataclass(frozen=True)
class OverlapCondition:
    """Extreme eigenvalues of S(k): an error ε of H can become ε/λ_min in the bands.

    Args:
        smallest: λ_min over all k-points.
        largest: λ_max over all k-points.
        condition: the largest λ_max(k)/λ_min(k); infinite where S(k) is not positive definite.
        at: the k-point of the smallest eigenvalue, fractional.
    """

    smallest: float
    largest: float
    condition: float
    at: tuple[float, float, float]

    def to_dict(self) -> dict[str, object]:
        """Returns the fields for JSON, which has no infinity: there `condition` is None."""
        return {**asdict(self), "condition": self.condition if np.isfinite(self.condition) else None}


@dataclass(frozen=True)
class BandError:
    """Difference of the bands of two Hamiltonians after the gauge shift.

    Args:
        mu_eV: the gauge shift μ; compared are ε − μ and ε_reference.
        mean_meV: mean |ε − μ − ε_reference| over the reference's levels in the window.
        max_meV: the largest.
        n_levels: levels in the window, over all k-points.
        window_eV: the window around the reference's Fermi level.
        efermi_eV: that Fermi level.
    """

    mu_eV: float
    mean_meV: float
    max_meV: float
    n_levels: int
    window_eV: tuple[float, float]
    efermi_eV: float

    def to_dict(self) -> dict[str, object]:
        """Returns the fields for JSON."""
        return asdict(self)


def gauge_mu(error: Blocks, overlap: Blocks) -> float:
    """Returns the shift μ = Re⟨S, E⟩ / ⟨S, S⟩ that minimises |E − μS|², eV; ⟨A, B⟩ = Σ conj(A) B over E's edges.

    Raises:
        ValueError: S is zero on all edges of E, or depends on spin where E does not.
    """
    s = overlap_with_spin(overlap.on(error.graph), error.n_spin).data
    norm = float(np.vdot(s, s).real)
    if not norm > 0:
        raise ValueError("overlap: S is zero on all edges of the error")
    return float(np.vdot(s, error.data).real) / norm


def gauge_mae(
    hamiltonian: Blocks,
    reference: Blocks,
    overlap: Blocks,
    cutoff: float | None = 8.0,
    distance_edges: Sequence[float] = DISTANCE_EDGES,
) -> GaugeReport:
    """Returns the gauge MAE, mean |E − μS| with E = H − H_reference, over all orbital pairs of all edges.

    Edges are those of either matrix with |r| < cutoff; where only one has an edge the other counts as zero. All
    pairs of orbitals that the elements have are counted, zero or not: the published figures' non-zero elements.

    Args:
        hamiltonian: H, eV.
        reference: what it should be, eV.
        overlap: S.
        cutoff: Å; None takes all edges.
        distance_edges: ascending borders of the distance ranges, Å; edges beyond the last make one more range,
            edges nearer than the first are left out of this part.

    Raises:
        ValueError: different structures or bases, no edge, borders not ascending; and as `gauge_mu`.
    """
    borders = [float(x) for x in distance_edges]
    if len(borders) < 2 or any(b <= a for a, b in pairwise(borders)):
        raise ValueError(f"distance_edges: expected two or more ascending distances, got {tuple(distance_edges)}")
    error, mu = _gauge_error(hamiltonian, reference, overlap, cutoff)
    return _report(error, mu, [*borders, np.inf])


def _gauge_error(hamiltonian: Blocks, reference: Blocks, overlap: Blocks, cutoff: float | None) -> tuple[Blocks, float]:
    """E − μS on the edges of both, and μ."""
    ours, theirs = hamiltonian.graph.structure, reference.graph.structure
    if not np.array_equal(ours.numbers, theirs.numbers) or hamiltonian.basis != reference.basis:
        raise ValueError("reference: expected the atoms and the basis of the Hamiltonian")
    for name in ("cell", "positions"):
        largest = np.abs(getattr(ours, name) - getattr(theirs, name)).max(initial=0.0)
        if largest > _SAME:
            raise ValueError(f"reference: expected the {name} of the Hamiltonian, got others, by up to {largest:.3g} Å")
    graph = _union(hamiltonian.graph, reference.graph)
    if cutoff is not None:
        graph = graph.select(graph.distance() < cutoff)
    if not graph.n_edges:
        raise ValueError("hamiltonian, reference: no edges to compare")
    n_spin = max(hamiltonian.n_spin, reference.n_spin)
    error = hamiltonian.on(graph).with_spin(n_spin) - reference.on(graph).with_spin(n_spin)
    mu = gauge_mu(error, overlap)
    return error.shift_gauge(overlap_with_spin(overlap, n_spin), -mu), mu


def _union(a: Graph, b: Graph) -> Graph:
    """All edges of a, then those of b that a lacks."""
    more = b.select(a.find(b) < 0)
    pairs = [np.concatenate([getattr(a, name), getattr(more, name)]) for name in ("src", "dst", "R")]
    return Graph(a.structure, *pairs) if more.n_edges else a


class _Sums(dict):
    """name → [sum, count]."""

    def add(self, name: str, values: np.ndarray) -> None:
        if values.size:
            total = self.setdefault(name, [0.0, 0])
            total[0] += float(values.sum())
            total[1] += values.size

    def parts(self) -> dict[str, Part]:
        return {name: Part(1e3 * total / count, count) for name, (total, count) in self.items()}


def _report(error: Blocks, mu: float, borders: list[float]) -> GaugeReport:
    """All means of a gauge-shifted error."""
    spin, elements, shells = _Sums(), _Sums(), _Sums()
    of_edge = np.empty(error.n_edges)
    for z_a, z_b, edges, blocks in error.groups():
        size = np.abs(blocks)
        of_edge[edges] = size.sum(axis=(1, 2, 3))
        elements.add(f"{SYMBOLS[z_a]}-{SYMBOLS[z_b]}", size)
        for s, name in enumerate(_SPINS[error.n_spin]):
            spin.add(f"{name}real", np.abs(blocks[:, s].real))
            if np.iscomplexobj(blocks):
                spin.add(f"{name}imaginary", np.abs(blocks[:, s].imag))
        for name_a, rows in _shell_slices(error.basis, z_a):
            for name_b, columns in _shell_slices(error.basis, z_b):
                shells.add(f"{name_a}-{name_b}", size[:, :, rows, columns])
    length, distance = error.graph.distance(), {}
    for low, high in pairwise(borders):
        inside = (length >= low) & (length < high)
        count = int(error.sizes[inside].sum())
        if count:
            name = f"{low:g}-{high:g} Å" if np.isfinite(high) else f"from {low:g} Å"
            distance[name] = Part(1e3 * float(of_edge[inside].sum()) / count, count)
    everything = np.abs(error.data)
    return GaugeReport(
        mu_eV=mu,
        mae_meV=1e3 * float(everything.mean()),
        max_meV=1e3 * float(everything.max()),
        n_elements=everything.size,
        by_spin=spin.parts(),
        by_distance=distance,
        by_elements=elements.parts(),
        by_shells=shells.parts(),
    )


def _shell_slices(basis: Basis, z: int) -> Iterator[tuple[str, slice]]:
    """(`2p`, its orbitals) for the second p shell and so on: shells of one l are counted from 1."""
    start, seen = 0, {}
    for l in basis[z]:
        seen[l] = seen.get(l, 0) + 1
        yield f"{seen[l]}{'spdfghi'[l]}", slice(start, start + 2 * l + 1)
        start += 2 * l + 1


def overlap_condition(overlap: Blocks, kpoints: np.ndarray) -> OverlapCondition:
    """Returns the extreme eigenvalues of S(k), Hermitian part, over the k-points [q, 3] (fractional).

    Raises:
        ValueError: no k-point, or a spin-dependent S.
    """
    overlap, kpoints = overlap_with_spin(overlap, 1), np.asarray(kpoints, dtype=np.float64)
    if kpoints.ndim != 2 or kpoints.shape[1] != 3 or not len(kpoints):
        raise ValueError(f"kpoints: expected shape (q, 3) with q > 0, got {kpoints.shape}")
    matrix, extremes = BlochMatrix(overlap), []
    for k in kpoints:
        values = eigh(matrix.at(k[None]), vectors=False).values[0]
        extremes.append((float(values[0]), float(values[-1])))
    low, high = np.array(extremes).T
    with np.errstate(divide="ignore"):
        condition = np.where(low > 0, high / low, np.inf)
    worst = int(low.argmin())
    at = tuple(float(x) for x in kpoints[worst])
    return OverlapCondition(float(low[worst]), float(high.max()), float(condition.max()), at)


def band_error(
    hamiltonian: Blocks,
    reference: Blocks,
    overlap: Blocks,
    kpoints: np.ndarray,
    efermi: float,
    window: tuple[float, float] = (-5.0, 5.0),
    progress: Callable[[int, int], None] | None = None,
) -> BandError:
    """Returns the error of the bands near the Fermi level after the gauge shift.

    Bands are paired by their number at each k-point, so one ghost state below the window shows as a large error.

    Args:
        hamiltonian: H, eV.
        reference: what it should be, eV.
        overlap: S.
        kpoints: [q, 3], fractional.
        efermi: Fermi level of the reference, eV.
        window: levels of the reference with lo ≤ ε − E_F ≤ hi are compared, eV.
        progress: called with the k-points done and their total, twice from zero.

    Raises:
        ValueError: no level in the window; and as `bands_at` and `gauge_mu`.
    """
    n_spin = max(hamiltonian.n_spin, reference.n_spin)
    hamiltonian, reference = hamiltonian.with_spin(n_spin), reference.with_spin(n_spin)
    _, mu = _gauge_error(hamiltonian, reference, overlap, cutoff=8.0)
    expected = bands_at(reference, overlap, kpoints, progress)
    inside = (expected - efermi >= window[0]) & (expected - efermi <= window[1])
    if not inside.any():
        raise ValueError(f"window: no level of the reference between {window[0]:g} and {window[1]:g} eV around E_F")
    difference = np.abs(bands_at(hamiltonian, overlap, kpoints, progress) - mu - expected)[inside]
    mean, largest = 1e3 * float(difference.mean()), 1e3 * float(difference.max())
    return BandError(mu, mean, largest, int(inside.sum()), (float(window[0]), float(window[1])), float(efermi))
