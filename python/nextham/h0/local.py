"""The local part of H of step zero on a grid: neutral-atom potentials, exchange and correlation.

    V_ab(R) = Σ_p φ_a(r_p) [Σ_A V_NA(r_p − τ_A) + v_xc(r_p) + (4π/3Ω) Σ_A ∫ r² ρ_A d³r] φ_b(r_p − R) dV

Work goes through the grid brick by brick: of some bricks at a time the superposed density and potential
(`nextham_kernels.ops.superposition`), exchange and correlation (`nextham.h0.xc`), and the matrix elements
(`nextham_kernels.ops.grid_integrals`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.interpolate import CubicHermiteSpline, CubicSpline
from scipy.spatial import cKDTree

from nextham.block_layouts import element_pairs
from nextham.blocks import Blocks
from nextham.h0.density import AtomicFields
from nextham.h0.grid import BRICK, AtomsOfBricks, Grid, Images, atoms_of_bricks, images_within
from nextham.h0.local_settings import LocalSettings
from nextham.h0.xc import xc_at
from nextham.io.orb import OrbFile
from nextham.io.upf import Pseudopotential
from nextham.structure import Structure
from nextham.units import RYDBERG
from nextham_kernels.ops.grid_integrals import grid_integrals
from nextham_kernels.ops.superposition import superposition

__all__ = ["add_local_potential", "local_potential"]

SPACING = 0.01
"""Length of an interval of the orbitals' cubics, Bohr: that of the published files."""

BUDGET = {"cpu": 1 << 28, "cuda": 1 << 32}
"""Bytes for what bricks need while they are worked on: on a GPU enough of them to keep it busy."""

BRICK_ON_GPU = 8
"""Points of a brick along each axis on a GPU, whose kernels have matrix elements of all orbitals of a brick at once."""

_AT_ONCE = 1 << 12
"""Blocks that are transposed at a time."""

_PER_POINT = 400
"""Bytes that a grid point needs while its potential is made."""


def local_potential(
    overlap: Blocks,
    orbitals: Mapping[int, OrbFile],
    pseudopotentials: Mapping[int, Pseudopotential],
    *,
    energy_cutoff: float | None = None,
    functional: str | None = None,
    memory_budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float64,
) -> Blocks:
    """Returns the matrix elements of the local potential of the superposed atomic densities.

    Time and memory are linear in the number of atoms.

    Args:
        overlap: S of the structure (`overlap_and_kinetic`), for its edges.
        orbitals: atomic number → orbitals.
        pseudopotentials: atomic number → pseudopotential.
        energy_cutoff: of the grid, Ry; None takes what the elements need (`resolution`): four times that of the
            orbitals, as ABACUS's grid for their density has, or half or some times of that.
        functional: of `nextham.h0.xc`, such as `pbe`; None takes that of the pseudopotentials.
        memory_budget: bytes for what the grid needs beside the result; by default 256 MB, on a GPU 4 GB.
        progress: called with (bricks of the grid done, all bricks).
        device: where it is computed, the CPU by default. Which atoms reach which bricks is found on the CPU.
        dtype: of the arithmetic on the grid: float64, or float32, which changes elements by 0.1 meV at most and 2e-4
            meV on average (`python -m bench.h0_accuracy --single`; positions are relative to bricks, so that the size
            of the cell does not matter).

    Returns:
        V in eV on the edges of S, n_spin 1.

    Raises:
        ValueError: an element without pseudopotential, pseudopotentials of different functionals, an unknown
            functional, or an energy or a budget that is not positive.
    """
    result = Blocks.zeros(overlap.graph, overlap.basis, 1)
    settings = {"energy_cutoff": energy_cutoff, "functional": functional, "memory_budget": memory_budget}
    settings |= {"device": device, "dtype": dtype}
    add_local_potential(result, orbitals, pseudopotentials, **settings, progress=progress)
    return result


def add_local_potential(
    result: Blocks,
    orbitals: Mapping[int, OrbFile],
    pseudopotentials: Mapping[int, Pseudopotential],
    *,
    energy_cutoff: float | None = None,
    functional: str | None = None,
    memory_budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float64,
    settings: LocalSettings | None = None,
) -> None:
    """Adds the local potential to a Hermitian matrix on the edges of S, n_spin 1, eV, in place.

    Where the matrix has only one of an edge and its reverse, the grid is visited where the edges' first atoms reach.
    Arguments and errors are those of `local_potential`; `settings` says what is taken of the whole system that the
    structure is a part of, in place of `energy_cutoff` and `functional`.
    """
    structure = result.graph.structure
    species = structure.species()
    if settings is None:
        settings = LocalSettings.of(structure, orbitals, pseudopotentials, energy_cutoff, functional)
    functional, zero = settings.functional, settings.zero
    fields = {z: settings.fields[z] for z in species}
    device = torch.device("cpu") if device is None else device
    budget = BUDGET[device.type] if memory_budget is None else memory_budget
    if not budget > 0:
        raise ValueError(f"memory_budget: expected a positive number of bytes, got {memory_budget}")
    reach = {z: orbitals[z].dr * (orbitals[z].radial.shape[1] - 1) for z in species}
    brick = BRICK if device.type == "cpu" else BRICK_ON_GPU
    grid = Grid.of(structure, settings.energy_cutoff, max(reach.values()), brick)
    send = _sender(device, dtype)
    fields_near = _Near(structure, grid, {z: f.reach for z, f in fields.items()})
    first, every = np.unique(result.graph.src), np.union1d(result.graph.src, result.graph.dst)
    orbitals_near = first_near = _Near(structure, grid, reach, every)
    if len(first) < len(every):
        first_near = _Near(structure, grid, reach, first)
    field_table, orbital_table = _field_table(fields, send), _orbital_table(orbitals, species, send)
    pairs, sizes = _Pairs(result, orbitals_near.images, device), send(result.sizes)
    offsets, step = send(result.offsets), send(grid.step)
    data = torch.from_numpy(result.data).to(device)  # on the CPU the same memory
    done, at_once = 0, max(1, budget // (_PER_POINT * grid.brick**3))
    layers = grid.occupied(first_near.images)
    n_bricks = math.prod(map(len, layers))
    for bricks in grid.bricks(layers, at_once):
        done += len(bricks)
        near = orbitals_near.of(bricks)
        first_here = near if first_near is orbitals_near else first_near.of(bricks)
        alive = np.flatnonzero(np.diff(first_here.starts))  # vacuum costs nothing more
        for some in _pieces(alive, near, grid.brick**3, int(result.shape_of.max()), budget, device):
            here, near_here = bricks[some], near.select(some)
            boxes = send(np.concatenate([np.zeros((len(some), 3), dtype=np.int64), here[:, 3:]], axis=1))
            v = superposition(*fields_near.arrays(fields_near.of(here), here, send), boxes, step, *field_table)
            potential = v[:, 0] + xc_at(v[:, 1:].contiguous(), functional) + zero
            atoms = orbitals_near.arrays(near_here, here, send)
            table, starts, edges = pairs.of(near_here)
            size = sizes[edges]
            ends = size.cumsum(0)
            total = int(ends[-1])
            table[:, 2] = (ends - size)[table[:, 2]]
            blocks = grid_integrals(
                potential * grid.volume_element, *atoms, table, starts, boxes, step, *orbital_table, total
            )
            shift = torch.repeat_interleave(offsets[edges] - (ends - size), size, output_size=total)
            data[shift + torch.arange(total, device=device)] += blocks.to(torch.float64) * RYDBERG
        if progress:
            progress(done, n_bricks)
    if device.type != "cpu":
        result.data[:] = data.cpu().numpy()
    _transpose(result, pairs.half)


def _sender(device: torch.device, dtype: torch.dtype) -> Callable[[np.ndarray], torch.Tensor]:
    """What brings arrays to a device, floating ones in a dtype."""

    def send(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x).to(device, dtype if x.dtype.kind == "f" else torch.int64)

    return send


def _pieces(
    alive: np.ndarray, near: AtomsOfBricks, points: int, orbitals: int, budget: int, device: torch.device
) -> list[np.ndarray]:
    """Bricks that are worked on at a time: on a GPU so many that their orbitals and products fit the budget."""
    if not len(alive):
        return []
    if device.type == "cpu":
        return [alive]
    most = orbitals * int(np.diff(near.starts).max())
    # Orbitals at points, products of all of them, and of each pair some ten numbers; in double precision.
    needed = 8 * (most * (points + most) + 5 * (most // orbitals) ** 2) + _PER_POINT * points
    return np.array_split(alive, min(len(alive), -(-needed * len(alive) // budget)))


class _Near:
    """Which atoms reach which bricks.

    Args:
        structure: a wrapped structure.
        grid: its grid.
        reach: atomic number → where the functions end, Bohr.
        atoms: only these, ascending.
    """

    def __init__(
        self, structure: Structure, grid: Grid, reach: Mapping[int, float], atoms: np.ndarray | None = None
    ) -> None:
        self.grid, self.images = grid, images_within(structure, grid, reach, atoms)
        self._tree = cKDTree(self.images.position)
        self._species = np.searchsorted(np.unique(structure.numbers), structure.numbers)

    def of(self, bricks: np.ndarray) -> AtomsOfBricks:
        """Returns the images that reach bricks [c, 6]."""
        return atoms_of_bricks(self.grid, bricks, self.images, self._tree)

    def arrays(
        self, near: AtomsOfBricks, bricks: np.ndarray, send: Callable[[np.ndarray], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns positions, species and starts as the ops take them.

        Positions are relative to the first point of their brick, or single precision would be a matter of the cell's
        size: of 0.2 mBohr at 2,000 Bohr.
        """
        origin = np.repeat(bricks[:, :3] @ self.grid.step, np.diff(near.starts), axis=0)
        species = self._species[self.images.atom[near.image]]
        return send(self.images.position[near.image] - origin), send(species), send(near.starts)


class _Pairs:
    """Pairs of images that share a brick, and their edges.

    Of an edge and its reverse one is made: the one whose first image comes first.

    Args:
        overlap: a matrix on the edges.
        images: the images, ordered by atom, then by R.
        device: where pairs are found.
    """

    def __init__(self, overlap: Blocks, images: Images, device: torch.device) -> None:
        graph = overlap.graph
        R = graph.R
        forward = (R[:, 0] > 0) | ((R[:, 0] == 0) & ((R[:, 1] > 0) | ((R[:, 1] == 0) & (R[:, 2] >= 0))))
        self.half = np.flatnonzero((graph.src < graph.dst) | ((graph.src == graph.dst) & forward))
        """One of each edge and its reverse."""
        src, dst, R, half = (torch.from_numpy(x).to(device) for x in (graph.src, graph.dst, R, self.half))
        self._atom, self._R = (torch.from_numpy(x).to(device) for x in (images.atom, images.R))
        self._low, self._high, self._n = R.amin(0), R.amax(0), graph.structure.n_atoms
        self._sorted, order = self._keys(src[half], dst[half], R[half]).sort()
        self._edges, self._device = half[order], device

    def _keys(self, src: torch.Tensor, dst: torch.Tensor, R: torch.Tensor) -> torch.Tensor:
        span = self._high - self._low + 1
        r = R - self._low
        return (((src * self._n + dst) * span[0] + r[:, 0]) * span[1] + r[:, 1]) * span[2] + r[:, 2]

    def of(self, near: AtomsOfBricks) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the pairs [q, 3] – two images of a brick, and which of the edges –, their starts, and the edges."""
        counts = np.diff(near.starts)
        n_here, n_pairs = int(counts.sum()), int((counts * (counts + 1) // 2).sum())
        image, starts, counts = (torch.from_numpy(x).to(self._device) for x in (near.image, near.starts, counts))
        arange = lambda n: torch.arange(n, device=self._device)  # noqa: E731
        brick = torch.repeat_interleave(arange(len(counts)), counts, output_size=n_here)
        place = arange(n_here) - starts[brick]
        partners = counts[brick] - place  # this image and those behind it
        here = torch.repeat_interleave(arange(n_here), partners, output_size=n_pairs)
        other = here + arange(n_pairs) - (partners.cumsum(0) - partners)[here]
        a, b = image[here], image[other]
        R = self._R[b] - self._R[a]
        known = ((R >= self._low) & (R <= self._high)).all(dim=1)
        keys = self._keys(self._atom[a], self._atom[b], R)
        at = torch.searchsorted(self._sorted, keys).clamp(max=len(self._sorted) - 1)
        kept = (known & (self._sorted[at] == keys)).nonzero()[:, 0]
        here, other = here[kept], other[kept]
        edges, which = torch.unique(self._edges[at[kept]], return_inverse=True)
        of_bricks = torch.bincount(brick[here], minlength=len(counts)).cumsum(0)
        return torch.stack([place[here], place[other], which], dim=1), torch.nn.functional.pad(of_bricks, (1, 0)), edges


def _transpose(matrix: Blocks, edges: np.ndarray) -> None:
    """Writes the transposes of the blocks of some edges to the reverse edges that there are, some at a time."""
    reverse = matrix.graph.reverse()
    chosen = np.zeros(matrix.n_edges, dtype=bool)
    chosen[edges] = True
    for _, _, group in element_pairs(matrix.graph):
        here = group[chosen[group] & (reverse[group] >= 0)]
        for first in range(0, len(here), _AT_ONCE):
            some = here[first : first + _AT_ONCE]
            matrix.put(reverse[some], matrix.data[matrix.index(some)].swapaxes(2, 3))


def _field_table(
    fields: Mapping[int, AtomicFields], send: Callable[[np.ndarray], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Cubics of V_NA, n, n′/r and n″ as `superposition` takes them: table, rows, spacing."""
    tables = []
    for z in sorted(fields):
        f = fields[z]
        r = f.dr * np.arange(f.values.shape[1])
        tables.append(_cubics(CubicSpline(r, f.values.T, bc_type=((1, np.zeros(4)), "not-a-knot"))))
        spacing = f.dr
    return send(np.concatenate(tables)), send(_rows(tables)), spacing


def _orbital_table(
    orbitals: Mapping[int, OrbFile], species: list[int], send: Callable[[np.ndarray], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Cubics of R/r^l as `grid_integrals` takes them: table, rows, degrees, spacing."""
    most = max(len(orbitals[z].shells) for z in species)
    tables, degrees = [], np.full((len(species), most), -1)
    for i, z in enumerate(sorted(species)):
        orb = orbitals[z]
        l, n = np.array(orb.shells), len(orb.shells)
        r = orb.r
        f = orb.radial[:, 1:] / r[1:] ** l[:, None]
        at_zero = 1.5 * f[:, 0] - 0.6 * f[:, 1] + 0.1 * f[:, 2]  # a parabola in r²
        spline = CubicSpline(r, np.column_stack([at_zero, f]).T, bc_type=((1, np.zeros(n)), "not-a-knot"))
        if abs(orb.dr - SPACING) > 1e-9 * SPACING:
            x = SPACING * np.arange(math.ceil(r[-1] / SPACING - 1e-6) + 1)
            spline = CubicHermiteSpline(x, spline(x), spline(x, 1))
        degrees[i, :n] = l
        tables.append(np.pad(_cubics(spline), ((0, 0), (0, 0), (0, most - n))))
    return send(np.concatenate(tables)), send(_rows(tables)), torch.from_numpy(degrees), SPACING


def _cubics(spline: CubicSpline | CubicHermiteSpline) -> np.ndarray:
    """Coefficients of 1, t, t², t³ on each interval, t from 0 to 1 [interval, 4, f]."""
    width = np.diff(spline.x)[0]
    return np.ascontiguousarray(spline.c[::-1].swapaxes(0, 1)) * (width ** np.arange(4))[:, None]


def _rows(tables: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(t) for t in tables])])
