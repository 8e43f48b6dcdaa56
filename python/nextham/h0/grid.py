"""The grid in real space: its points in bricks, and which atoms reach each brick."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from nextham.structure import Structure
from nextham.units import BOHR

__all__ = ["AtomsOfBricks", "Grid", "Images", "atoms_of_bricks", "heights", "images_of_box", "images_within"]

BRICK = 16
"""Points of a brick along each axis, unless the grid says otherwise."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A uniform grid along the lattice vectors.

    In a periodic direction it covers the cell once. In another one it covers what orbitals reach, so that its indices
    may lie outside the cell.

    Args:
        cell: lattice vectors as rows [3, 3], Bohr.
        shape: points along each lattice vector.
        low: first index along each.
        high: index behind the last along each.
        brick: points of a brick along each axis.
    """

    cell: np.ndarray
    shape: tuple[int, int, int]
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    brick: int = BRICK

    @classmethod
    def of(cls, structure: Structure, energy_cutoff: float, reach: float, brick: int = BRICK) -> Grid:
        """Returns the grid that holds plane waves up to an energy, as ABACUS chooses it.

        2⌊√E |a|/2π⌋ + 1 points along a lattice vector a, then the next number that has no prime factor above 5.

        Args:
            structure: a wrapped structure.
            energy_cutoff: E, Ry: of the density, four times that of wave functions.
            reach: how far orbitals reach, Bohr.
            brick: points of a brick along each axis.

        Raises:
            ValueError: the energy is not positive.
        """
        if not energy_cutoff > 0:
            raise ValueError(f"energy_cutoff: expected a positive energy in Ry, got {energy_cutoff}")
        cell = structure.cell / BOHR
        lengths = np.linalg.norm(cell, axis=1)
        shape = [_smooth(2 * int(math.sqrt(energy_cutoff) * a / (2 * math.pi)) + 1) for a in lengths]
        fractional = structure.fractional()
        beyond = reach / heights(cell)
        low, high = [], []
        for k in range(3):
            if structure.pbc[k]:
                low.append(0)
                high.append(shape[k])
            else:
                low.append(math.floor((fractional[:, k].min() - beyond[k]) * shape[k]))
                high.append(math.ceil((fractional[:, k].max() + beyond[k]) * shape[k]) + 1)
        return cls(cell, tuple(shape), tuple(low), tuple(high), brick)

    @property
    def step(self) -> np.ndarray:
        """Vectors from a point to its neighbours, as rows [3, 3], Bohr."""
        return self.cell / np.array(self.shape)[:, None]

    @property
    def volume_element(self) -> float:
        """Volume of a point, Bohr³."""
        return abs(float(np.linalg.det(self.step)))

    def occupied(self, images: Images) -> list[np.ndarray]:
        """Returns, for each axis, where layers of bricks start that an image reaches: vacuum has none."""
        place = images.position @ np.linalg.inv(self.cell) * self.shape - np.array(self.low)
        beyond = images.reach[:, None] / heights(self.cell) * self.shape
        starts = []
        for k in range(3):
            all_starts = np.arange(self.low[k], self.high[k], self.brick)
            ends = (np.floor(place[:, k] - beyond[:, k]), np.ceil(place[:, k] + beyond[:, k]))
            first, last = (np.clip(x // self.brick, -1, len(all_starts)).astype(np.int64) for x in ends)
            counts = np.zeros(len(all_starts) + 2, dtype=np.int64)
            np.add.at(counts, np.maximum(first, 0), 1)
            np.add.at(counts, last + 1, -1)
            starts.append(all_starts[np.cumsum(counts)[: len(all_starts)] > 0])
        return starts

    def bricks(self, starts: Sequence[np.ndarray], most: int) -> Iterator[np.ndarray]:
        """Yields bricks, at most `most` at a time: first index and number of points along each axis [c, 6].

        Args:
            starts: where layers of bricks start along each axis (`occupied`).
            most: how many at a time.
        """
        counts = [len(s) for s in starts]
        for begin in range(0, math.prod(counts), most):
            flat = np.arange(begin, min(begin + most, math.prod(counts)))
            first = np.stack([s[i] for s, i in zip(starts, np.unravel_index(flat, counts), strict=True)], axis=1)
            yield np.concatenate([first, np.minimum(self.brick, np.array(self.high) - first)], axis=1)


def heights(cell: np.ndarray) -> np.ndarray:
    """Returns the distances between opposite faces of a cell [3]."""
    return 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)


def _smooth(n: int) -> int:
    """The next number from n on without a prime factor above 5."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


@dataclass(frozen=True, eq=False)
class Images:
    """Atoms and their periodic images.

    Args:
        atom: atom of the cell [i].
        R: lattice vector [i, 3].
        position: [i, 3], Bohr.
        reach: how far its functions reach [i], Bohr.
    """

    atom: np.ndarray
    R: np.ndarray
    position: np.ndarray
    reach: np.ndarray


def images_within(
    structure: Structure, grid: Grid, reach: Mapping[int, float], atoms: np.ndarray | None = None
) -> Images:
    """Returns every image of an atom whose functions reach the grid.

    Args:
        structure: a wrapped structure.
        grid: its grid.
        reach: atomic number → where the functions end, Bohr.
        atoms: images of these atoms alone, ascending; by default of all.
    """
    of_atom = np.empty(structure.n_atoms)
    for z in structure.species():
        of_atom[structure.numbers == z] = reach[z]
    low, high = (np.array(x) / grid.shape for x in (grid.low, grid.high))
    return images_of_box(structure, low, high, of_atom, atoms)


def images_of_box(
    structure: Structure, low: np.ndarray, high: np.ndarray, of_atom: np.ndarray, atoms: np.ndarray | None = None
) -> Images:
    """Returns every image of an atom whose functions reach a box along the lattice vectors.

    Args:
        structure: a wrapped structure.
        low: where the box begins [3], in units of the lattice vectors.
        high: where it ends [3].
        of_atom: how far the functions of each atom reach [n], Bohr.
        atoms: images of these atoms alone, ascending; by default of all.
    """
    cell, fractional = structure.cell / BOHR, structure.fractional()
    beyond = of_atom[:, None] / heights(cell)
    first = np.ceil(low - fractional - beyond).astype(np.int64)
    last = np.floor(high - fractional + beyond).astype(np.int64)
    open_ends = ~np.array(structure.pbc)
    first[:, open_ends], last[:, open_ends] = 0, 0
    atom = np.arange(len(of_atom)) if atoms is None else atoms
    vectors = np.zeros((len(atom), 0), dtype=np.int64)
    for k in range(3):
        counts = last[atom, k] - first[atom, k] + 1
        here = np.repeat(np.arange(len(atom)), counts)
        within = np.arange(len(here)) - np.repeat(np.cumsum(counts) - counts, counts)
        vectors = np.concatenate([vectors[here], (first[atom[here], k] + within)[:, None]], axis=1)
        atom = atom[here]
    position = structure.positions[atom] / BOHR + vectors @ cell
    return Images(atom, vectors, position, of_atom[atom])


@dataclass(frozen=True, eq=False)
class AtomsOfBricks:
    """The images that reach each of some bricks.

    Args:
        starts: where the images of each brick begin [c + 1].
        image: which image [j], ascending in each brick.
    """

    starts: np.ndarray
    image: np.ndarray

    def select(self, bricks: np.ndarray) -> AtomsOfBricks:
        """Returns those of some bricks, ascending, with none but empty ones between them."""
        begin, ends = self.starts[bricks[0]], self.starts[1:][bricks]
        return AtomsOfBricks(np.concatenate([[0], ends - begin]), self.image[begin : ends[-1]])


def atoms_of_bricks(grid: Grid, bricks: np.ndarray, images: Images, tree: cKDTree) -> AtomsOfBricks:
    """Returns which images reach the bricks.

    Args:
        grid: the grid.
        bricks: [c, 6].
        images: the images.
        tree: of their positions.
    """
    step = grid.step
    centre = (bricks[:, :3] + (bricks[:, 3:] - 1) / 2) @ step
    corners = np.array([[1, a, b] for a in (-1, 1) for b in (-1, 1)]) / 2
    size = np.linalg.norm(((bricks[:, None, 3:] - 1) * corners) @ step, axis=2).max(axis=1)
    largest = float(images.reach.max(initial=0.0)) + float(size.max(initial=0.0))
    found = cKDTree(centre).sparse_distance_matrix(tree, largest, output_type="ndarray")
    near = found["v"] < images.reach[found["j"]] + size[found["i"]]
    brick, image = found["i"][near], found["j"][near]
    order = np.lexsort((image, brick))
    counts = np.bincount(brick, minlength=len(bricks))
    return AtomsOfBricks(np.concatenate([[0], np.cumsum(counts)]), image[order])
