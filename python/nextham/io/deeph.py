"""DeepH's folder of one structure, in the layout of DeepH-pack since 2025 (DeepH-dock).

    POSCAR          structure; atoms are counted in its order
    info.json       atoms_quantity, orbits_quantity (without spin), orthogonal_basis, spinful, fermi_energy_eV (null
                    where not known), elements_orbital_map: symbol → l of each shell
    overlap.h5      S, real and without spin
    hamiltonian.h5  H in eV; spinful: complex, blocks [2a, 2b] = ((↑↑, ↑↓), (↓↑, ↓↓)), each quarter [a, b]

Each HDF5 file has `atom_pairs` [e, 5] (R₁, R₂, R₃, i, j, atoms from 0; the same in all files of a folder),
`chunk_shapes` [e, 2], `chunk_boundaries` [e + 1] and `entries`, all blocks one after the other, row by row. Components
run m = −l … l with the usual signs, which is e3nn's order: unlike the older DeepH-E3 files (`hamiltonians.h5`), whose
OpenMX order DeepH-dock converts when it makes new folders of them.
Source: DeepH-dock's page "Key concepts", and its converters from ABACUS and from older folders.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.graph import Graph
from nextham.io.errors import FileError
from nextham.io.structure_file import read_structure
from nextham.io.text_file import read_text
from nextham.structure import Structure
from nextham.units import SYMBOLS, atomic_number

__all__ = ["DeephFolder", "read_deeph", "write_deeph"]

_HAMILTONIAN, _OVERLAP = "hamiltonian.h5", "overlap.h5"


@dataclass(frozen=True, eq=False)
class DeephFolder:
    """What a folder says.

    Args:
        overlap: S, n_spin 1, or None where the folder has none.
        hamiltonian: H in eV, n_spin 1 or 4, or None where the folder has none.
        fermi: Fermi energy, eV, or None where it is not known.
    """

    overlap: Blocks | None
    hamiltonian: Blocks | None
    fermi: float | None


def write_deeph(
    folder: str | os.PathLike[str], overlap: Blocks, hamiltonian: Blocks | None = None, fermi: float | None = None
) -> None:
    """Writes a folder; both matrices on all edges that one of them has.

    Args:
        folder: made if it is not there.
        overlap: S; what it depends on spin by must be below 1e-8.
        hamiltonian: H, eV; n_spin 2 is written as spinful, with ↑↓ = ↓↑ = 0.
        fermi: Fermi energy, eV.

    Raises:
        ValueError: S complex or with spin, H without spin but complex, or matrices of different structures.
        FileError: a file cannot be written.
    """
    folder = Path(folder)
    overlap = overlap.spinless()
    matrices = {_OVERLAP: overlap}
    if hamiltonian is not None:
        if overlap.basis != hamiltonian.basis or not _same_sites(overlap, hamiltonian):
            raise ValueError("hamiltonian: expected the structure and basis of the overlap")
        matrices[_HAMILTONIAN] = hamiltonian if hamiltonian.n_spin == 1 else hamiltonian.spinor()
    for name, matrix in matrices.items():
        if matrix.n_spin == 1 and np.iscomplexobj(matrix.data):
            raise ValueError(f"{name[:-3]}: expected real numbers without spin")
    graph = _union([matrix.graph for matrix in matrices.values()])
    structure, basis = graph.structure, overlap.basis
    info = {
        "atoms_quantity": structure.n_atoms,
        "orbits_quantity": overlap.n_orbitals,
        "orthogonal_basis": False,
        "spinful": _HAMILTONIAN in matrices and matrices[_HAMILTONIAN].n_spin == 4,
        "fermi_energy_eV": fermi,
        "elements_orbital_map": {SYMBOLS[z]: list(basis[z]) for z in structure.species()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "POSCAR").write_text(_poscar(structure), encoding="utf-8")
        (folder / "info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        for name, matrix in matrices.items():
            _write_matrix(folder / name, matrix.on(graph))
    except OSError as error:
        raise FileError(folder, f"cannot be written ({error})") from error


def read_deeph(folder: str | os.PathLike[str]) -> DeephFolder:
    """Reads a folder, with any order of atoms and also with atoms outside the cell.

    S may have spin (blocks [2a, 2b]) where that says nothing more, as some folders have it.

    Raises:
        FileError: a file is absent, damaged or does not fit the others, neither matrix is there, or H is split
            (`split_hkb`: its spin-orbit part is in a file of its own).
    """
    folder = Path(folder)
    info = _read_info(folder / "info.json")
    try:
        basis = Basis({atomic_number(s): tuple(ls) for s, ls in info["elements_orbital_map"].items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise FileError(folder / "info.json", f"elements_orbital_map: {error}") from error
    structure = read_structure(folder / "POSCAR", "vasp")
    absent = [SYMBOLS[z] for z in structure.species() if z not in basis.shells]
    if absent:
        raise FileError(folder / "info.json", f"elements_orbital_map has no {', '.join(absent)}, but POSCAR has")
    n_orbitals = int(basis.offsets(structure.numbers)[-1])
    for name, expected in (("atoms_quantity", structure.n_atoms), ("orbits_quantity", n_orbitals)):
        if info[name] != expected:
            raise FileError(folder / "info.json", f"{name} is {info[name]}, but the structure has {expected}")
    found = {}
    for name, spins in ((_OVERLAP, (1, 4)), (_HAMILTONIAN, (4 if info["spinful"] else 1,))):
        if (folder / name).is_file():
            found[name] = _read_matrix(folder / name, structure, basis, spins)
    if not found:
        raise FileError(folder, f"there is neither {_OVERLAP} nor {_HAMILTONIAN}")
    if _OVERLAP in found:
        try:
            found[_OVERLAP] = found[_OVERLAP].spinless()
        except ValueError as error:
            raise FileError(folder / _OVERLAP, str(error)) from error
    return DeephFolder(found.get(_OVERLAP), found.get(_HAMILTONIAN), info["fermi_energy_eV"])


def _same_sites(a: Blocks, b: Blocks) -> bool:
    one, other = a.graph.structure, b.graph.structure
    return all(np.array_equal(getattr(one, x), getattr(other, x)) for x in ("cell", "positions", "numbers"))


def _union(graphs: list[Graph]) -> Graph:
    """The edges of the first, then those that only others have."""
    first = graphs[0]
    for other in graphs[1:]:
        extra = other.select(first.find(other) < 0)
        parts = zip(*((g.src, g.dst, g.R) for g in (first, extra)), strict=True)
        first = Graph(first.structure, *(np.concatenate(part) for part in parts))
    return first.sorted_by_R()[0]


# --- matrices


def _write_matrix(path: Path, matrix: Blocks) -> None:
    import h5py

    graph, spins = matrix.graph, 2 if matrix.n_spin == 4 else 1
    entries = np.empty_like(matrix.data)
    for _, _, edges, blocks in matrix.groups():
        g, _, a, b = blocks.shape
        chunk = blocks.reshape(g, spins, spins, a, b).transpose(0, 1, 3, 2, 4)
        entries[matrix.index(edges)] = chunk.reshape(g, spins * spins, a, b)
    part = path.with_name(path.name + ".part")
    try:
        with h5py.File(part, "w") as file:
            file["atom_pairs"] = np.concatenate([graph.R, graph.src[:, None], graph.dst[:, None]], axis=1)
            file["chunk_shapes"] = spins * matrix.shape_of
            file["chunk_boundaries"] = matrix.offsets
            file["entries"] = entries
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read_matrix(path: Path, structure: Structure, basis: Basis, n_spins: tuple[int, ...]) -> Blocks:
    import h5py

    names = ("atom_pairs", "chunk_shapes", "chunk_boundaries", "entries")
    try:
        with h5py.File(path) as file:
            pairs, shapes, boundaries, entries = (file[name][()] for name in names)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise FileError(path, f"no HDF5 file with {', '.join(names)}, or damaged ({error})") from error
    if pairs.ndim != 2 or pairs.shape[1] != 5 or pairs.dtype.kind not in "iu":
        raise FileError(path, f"atom_pairs: expected integers [e, 5], got {pairs.dtype} {list(pairs.shape)}")
    if entries.dtype.str[1:] not in ("f4", "f8", "c8", "c16") or not np.isfinite(entries).all():
        raise FileError(path, "entries: expected finite real or complex numbers")
    inside, shifts = structure.wrapped()
    try:
        src, dst = pairs[:, 3], pairs[:, 4]
        graph = Graph(inside, src, dst, pairs[:, :3])
        graph = Graph(inside, src, dst, graph.R + shifts[dst] - shifts[src])
        graph.find(graph.select(slice(0, 1)))  # no pair twice
        widths = basis.n_orbitals_of(inside.numbers)
        sizes = np.stack([widths[src], widths[dst]], axis=1)
        n_spin = next((n for n in n_spins if np.array_equal(shapes, (2 if n == 4 else 1) * sizes)), None)
        if n_spin is None:
            raise ValueError("chunk_shapes: not those of the elements of the pairs")
        matrix = Blocks(graph, basis, np.asarray(entries, dtype=_dtype(entries, n_spin)), n_spin)
        if not np.array_equal(boundaries, matrix.offsets):
            raise ValueError("chunk_boundaries: not those of blocks one after the other")
    except (ValueError, IndexError, OverflowError) as error:
        raise FileError(path, str(error)) from error
    if n_spin == 1:
        return matrix
    result = matrix.like(np.empty_like(matrix.data))
    for _, _, edges, chunk in matrix.groups():
        g, _, a, b = chunk.shape
        result.put(edges, chunk.reshape(g, 2, a, 2, b).transpose(0, 1, 3, 2, 4).reshape(g, 4, a, b))
    return result


def _dtype(entries: np.ndarray, n_spin: int) -> np.dtype:
    """Complex with spin, as blocks with spin are everywhere here; else as it is."""
    return np.result_type(entries.dtype, np.complex64) if n_spin == 4 else entries.dtype.newbyteorder("=")


# --- small files


def _poscar(structure: Structure) -> str:
    """Cartesian, every digit; atoms keep their order, so an element may come more than once."""
    runs = [(z, len(list(group))) for z, group in itertools.groupby(structure.numbers.tolist())]
    rows = [" ".join(map(repr, row)) for row in (*structure.cell.tolist(), *structure.positions.tolist())]
    symbols, counts = " ".join(SYMBOLS[z] for z, _ in runs), " ".join(str(n) for _, n in runs)
    return "\n".join([structure.formula(), "1.0", *rows[:3], symbols, counts, "Cartesian", *rows[3:]]) + "\n"


def _read_info(path: Path) -> dict:
    try:
        info = json.loads(read_text(path))
    except ValueError as error:
        raise FileError(path, f"is not JSON ({error})") from error
    names = ("atoms_quantity", "orbits_quantity", "spinful", "elements_orbital_map")
    absent = [name for name in names if not isinstance(info, dict) or name not in info]
    if absent:
        raise FileError(path, f"there is no {', '.join(absent)}")
    if info.get("split_hkb") or info.get("hamiltonian_storage", "full") != "full":
        raise FileError(path, "H is split (split_hkb): hamiltonian.h5 alone is not the Hamiltonian")
    fermi = info.get("fermi_energy_eV")
    if fermi is not None and not isinstance(fermi, int | float):
        raise FileError(path, f"fermi_energy_eV: expected a number or null, got {fermi!r}")
    return info | {"fermi_energy_eV": fermi, "spinful": bool(info["spinful"])}
