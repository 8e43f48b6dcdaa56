"""Where commands find matrices: a run folder, our `.h5`, or a single matrix file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nextham.io.errors import FileError
from nextham.io.scf_log import ScfLog, find_scf_log, read_scf_log

if TYPE_CHECKING:
    from nextham.basis import Basis
    from nextham.blocks import Blocks
    from nextham.structure import Structure

__all__ = [
    "MATRIX_HELP",
    "Source",
    "add_source_arguments",
    "open_hamiltonian",
    "open_matrix",
    "open_overlap",
    "open_source",
    "spin_files",
]

MATRIX_HELP = (
    "a run folder (STRU beside hrs1_nao.csr and srs1_nao.csr), the output folder of `nextham predict`, an .h5 file, a "
    "published .pth sample, a packed sample (.npz.xz), a DeepH folder, or one matrix file; `:NAME` behind it chooses a "
    "matrix, such as Si-1:H0 "
    "(default H)"
)

H5_NAME = "hamiltonian.h5"
"""The file that `nextham predict` writes into its output folder."""

# Names that ABACUS gives its files, in the order in which they are looked for; two of a kind are spin up and down.
_FILES = {
    "H0": (("hrs0_nao",),),
    "H": (
        ("hrs1_nao", "hrs2_nao"),
        ("data-HR-sparse_SPIN0", "data-HR-sparse_SPIN1"),
        ("hrs1_nao",),
        ("data-HR-sparse_SPIN0",),
    ),
    "S": (("srs1_nao",), ("data-SR-sparse_SPIN0",)),
}
_ENDINGS = (".csr", ".csr.gz", ".csr.xz", ".npz")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is needed to read matrices that come without their structure."""
    parser.add_argument(
        "--structure", metavar="FILE", help="STRU (or CIF, POSCAR, …) of matrices without one beside them"
    )
    parser.add_argument("--orbitals", metavar="DIR", help="folder of the .orb files that the STRU names")


@dataclass(frozen=True, eq=False)
class Source:
    """Matrices of one structure.

    Args:
        path: folder or file.
        structure: the atoms in the user's own order and positions.
        basis: shells of their elements.
        matrices: name → what reads it.
        stru: the STRU file, where there is one.
        efermi: Fermi level of H, eV, where the files say it.
        converged: whether they say that the calculation converged; None where they say nothing.
    """

    path: Path
    structure: Structure
    basis: Basis
    matrices: dict[str, Callable[[], Blocks]]
    stru: Path | None = None
    efermi: float | None = None
    converged: bool | None = None

    def names(self) -> list[str]:
        """Returns the matrices it has."""
        return list(self.matrices)

    def read(self, name: str) -> Blocks:
        """Reads a matrix: H in eV; S without spin where it has none.

        Raises:
            FileError: there is no such matrix, or its file cannot be used.
        """
        if name not in self.matrices:
            raise FileError(self.path, f"there is no matrix {name}, only {', '.join(self.matrices) or 'none'}")
        return self.matrices[name]()


def open_source(
    path: str | Path, structure: str | None = None, orbitals: str | None = None, default: str = "H"
) -> Source:
    """Finds out what a folder or file offers; matrices are read when they are asked for.

    Args:
        path: folder or file (see `MATRIX_HELP`).
        structure: structure file, for matrices without a STRU beside or above them.
        orbitals: folder of `.orb` files.
        default: what a single matrix is, where neither its name nor its content says so.

    Raises:
        FileError: nothing there, no structure, or a file that cannot be used.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(path, "cannot be read: no such file or folder")
    if path.is_dir() and (path / "overlap.h5").is_file():
        return _open_deeph(path)
    h5 = path / H5_NAME if path.is_dir() else path
    if h5.is_file() and (h5.suffix == ".h5" or h5.name.endswith(".h5.part")):
        return _open_h5(path, h5)
    if path.suffix == ".pth":
        return _open_published_sample(path)
    if path.name.endswith(".npz.xz"):
        return _open_packed_sample(path)
    folder = path if path.is_dir() else path.parent
    files = _matrix_files(folder) if path.is_dir() else _matrix_of_file(path, default)
    if not files:
        raise FileError(path, "holds no matrix: expected hrs1_nao.csr, srs1_nao.csr, … or hamiltonian.h5")
    # ABACUS writes into OUT.suffix/ below the folder of its STRU.
    beside = next((f for f in (folder / "STRU", folder.parent / "STRU") if f.is_file()), None)
    if structure is None and beside is None:
        raise FileError(folder, "has no STRU: say with --structure which structure the matrices belong to")
    atoms, basis, stru = read_atoms(structure or beside, orbitals)
    readers = {name: partial(_read_abacus, name, paths, atoms, basis) for name, paths in files.items()}
    return Source(path, atoms, basis, readers, stru, *_end_of_run(folder))


def open_matrix(spec: str, args: argparse.Namespace, default: str = "H") -> tuple[Source, str]:
    """Splits `PATH[:NAME]` and opens the path; a single matrix file needs no name."""
    path, colon, name = spec.rpartition(":")
    if not colon or Path(spec).exists():
        path, name = spec, ""
    source = open_source(path, args.structure, args.orbitals, default)
    if not name:
        names = source.names()
        name = names[0] if len(names) == 1 else default
        if name == "H" and "H" not in names and "H0" in names:
            name = "H0"  # what `nextham h0` writes
    return source, name


def open_hamiltonian(spec: str, args: argparse.Namespace) -> tuple[Source, str]:
    """As `open_matrix`.

    Raises:
        FileError: it is the overlap.
    """
    source, name = open_matrix(spec, args)
    if name == "S":
        raise FileError(source.path, "holds the overlap S here, but a Hamiltonian is expected")
    return source, name


def open_overlap(spec: str, args: argparse.Namespace) -> Blocks:
    """Opens and reads what --overlap names.

    Raises:
        FileError: it is a Hamiltonian; and as `open_source` and `Source.read`.
    """
    source, name = open_matrix(spec, args, default="S")
    if name != "S":
        raise FileError(source.path, f"holds {name}, but the overlap S is expected here")
    return source.read(name)


def spin_files(path: Path) -> list[Path]:
    """The two files of collinear spin: ABACUS's names where the first is called like ABACUS's, else 1-… and 2-…."""
    if path.name.startswith("hrs1"):
        return [path, path.with_name("hrs2" + path.name[4:])]
    return [path.with_name(f"{i}-{path.name}") for i in (1, 2)]


def read_atoms(path: str | Path, orbitals: str | None = None) -> tuple[Structure, Basis, Path | None]:
    """Reads a structure file and finds the basis: of the `.orb` files or names in a STRU, else the published one."""
    from nextham.basis import Basis
    from nextham.io.orb import basis_from_directory, basis_from_stru
    from nextham.io.structure_file import is_stru, read_structure

    path = Path(path)
    structure = read_structure(path)
    if is_stru(path):
        return structure, basis_from_stru(path, orbitals), path
    basis = basis_from_directory(orbitals, structure.numbers) if orbitals else Basis.published(structure.numbers)
    return structure, basis, None


def _read_abacus(name: str, files: tuple[Path, ...], structure: Structure, basis: Basis) -> Blocks:
    from nextham.io.csr import read_blocks

    unit = "1" if name == "S" else "Ry"
    blocks = read_blocks(files[0] if len(files) == 1 else files, structure, basis, unit=unit)
    if name != "S":
        return blocks
    try:
        return blocks.spinless()
    except ValueError as error:
        raise FileError(files[0], f"is no overlap: {error}") from error


def _open_h5(path: Path, h5: Path) -> Source:
    from nextham.io.hdf5 import read_blocks_h5, read_contents_h5

    contents = read_contents_h5(h5)
    efermi = contents.metadata.get("efermi_eV")
    stru = path / "STRU" if path.is_dir() and (path / "STRU").is_file() else None
    readers = {name: partial(lambda n: read_blocks_h5(h5, [n])[n], name) for name in contents.n_edges}
    return Source(path, contents.structure, contents.basis, readers, stru, None if efermi is None else float(efermi))


def _open_deeph(path: Path) -> Source:
    from nextham.io.deeph import read_deeph

    found = read_deeph(path)
    matrices = {name: m for name, m in (("H", found.hamiltonian), ("S", found.overlap)) if m is not None}
    first = next(iter(matrices.values()))
    readers = {name: partial(lambda m: m, matrix) for name, matrix in matrices.items()}
    return Source(path, first.graph.structure, first.basis, readers, None, found.fermi)


def _open_published_sample(path: Path) -> Source:
    from nextham.io.published_sample import read_published

    sample = read_published(path)
    readers = {"H0": lambda: sample.H0, "H": lambda: sample.H0 + sample.delta, "S": lambda: sample.S}
    return Source(path, sample.structure, sample.basis, readers)


def _open_packed_sample(path: Path) -> Source:
    from nextham.io.packed_sample import read_packed

    sample = read_packed(path)
    readers = {name: partial(sample.matrices.__getitem__, name) for name in sample.matrices}
    efermi, converged = sample.info.get("efermi_eV"), sample.info.get("converged")
    return Source(path, sample.structure, sample.basis, readers, None, efermi, converged)


def _matrix_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    found = {}
    for name, candidates in _FILES.items():
        for stems in candidates:
            files = [
                next((folder / f"{s}{end}" for end in _ENDINGS if (folder / f"{s}{end}").is_file()), None)
                for s in stems
            ]
            if all(files):
                found[name] = tuple(files)
                break
    return found


def _matrix_of_file(path: Path, default: str) -> dict[str, tuple[Path, ...]]:
    """The matrix that a file holds; spin up with spin down beside it, or the reverse, is both."""
    for name, candidates in _FILES.items():
        for stems in candidates:
            stem = next((stem for stem in stems if path.name.startswith(stem)), None)
            files = tuple(path.with_name(path.name.replace(stem, s, 1)) for s in stems) if stem else ()
            if files and all(file.is_file() for file in files):
                return {name: files}
    from nextham.io.csr import open_csr

    return {open_csr(path)[0].letter or default: (path,)}


def _end_of_run(folder: Path) -> tuple[float | None, bool | None]:
    """Fermi level (eV) and convergence: of info.json, else of the log."""
    found: dict[str, object] = {}
    info, log = folder / "info.json", find_scf_log(folder)
    if info.is_file():
        try:
            found = {
                key: value for key, value in json.loads(info.read_text(encoding="utf-8")).items() if value is not None
            }
        except (ValueError, AttributeError):
            raise FileError(info, "is no JSON object") from None
    for key, kind in (("efermi_eV", int | float), ("converged", bool)):
        if not isinstance(found.get(key), kind | None):
            what = "a number" if key == "efermi_eV" else "true or false"
            raise FileError(info, f"expected {what} for {key}, got {found[key]!r}")
    said = read_scf_log(log) if log and not {"efermi_eV", "converged"} <= set(found) else ScfLog(None, None)
    efermi = found.get("efermi_eV", said.efermi)
    return None if efermi is None else float(efermi), found.get("converged", said.converged)
