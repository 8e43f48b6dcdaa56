"""What the commands about one Hamiltonian in k-space share: H, S and the Fermi level."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nextham.cli.argument_types import finite, natural
from nextham.cli.progress import bar
from nextham.cli.sources import MATRIX_HELP, add_source_arguments, open_hamiltonian, open_overlap
from nextham.io.errors import FileError

if TYPE_CHECKING:
    from nextham.blocks import Blocks
    from nextham.cli.sources import Source
    from nextham.fermi import FermiLevel

__all__ = [
    "add_electron_arguments",
    "add_kspace_arguments",
    "count_electrons",
    "describe_fermi",
    "fermi_energy",
    "label_of",
    "read_pair",
]


def add_kspace_arguments(parser: argparse.ArgumentParser, mesh_spacing: float) -> None:
    """Adds the matrices, the Fermi level and the mesh."""
    parser.add_argument("matrix", metavar="MATRIX", help=MATRIX_HELP)
    parser.add_argument("--overlap", metavar="MATRIX", help="S, where it is not beside the matrix")
    parser.add_argument(
        "--mesh",
        type=natural,
        nargs=3,
        metavar=("N1", "N2", "N3"),
        help=f"k-points (default: at most {mesh_spacing}/Å apart, 2π included)",
    )
    add_electron_arguments(parser, "Fermi level, eV, instead of computing it")
    parser.add_argument(
        "--threshold",
        type=finite,
        metavar="X",
        help="drop eigenvalues of S(k) up to X, such as 1e-5 (canonical orthogonalisation; default: none)",
    )
    add_source_arguments(parser)


def add_electron_arguments(parser: argparse.ArgumentParser, fermi_help: str) -> None:
    """Adds the Fermi level, and what says how many electrons there are."""
    parser.add_argument("--fermi", type=finite, metavar="EV", help=fermi_help)
    parser.add_argument(
        "--electrons",
        type=finite,
        metavar="N",
        help="valence electrons per cell (default: those of the pseudopotentials)",
    )
    parser.add_argument(
        "--pseudo",
        metavar="DIR",
        help="folder of .upf files that say the valence electrons (default: those of the published pseudopotentials)",
    )


def read_pair(args: argparse.Namespace) -> tuple[Source, str, Blocks, Blocks]:
    """Returns the source, its label, H and S.

    Raises:
        ValueError: there is no S.
    """
    source, name = open_hamiltonian(args.matrix, args)
    if args.overlap:
        overlap = open_overlap(args.overlap, args)
    elif "S" in source.names():
        overlap = source.read("S")
    else:
        raise ValueError(f"overlap: {source.path} has no S beside it: give --overlap")
    return source, label_of(source, name), source.read(name), overlap


def fermi_energy(source: Source, label: str, h: Blocks, s: Blocks, args: argparse.Namespace) -> float:
    """Returns the Fermi level, eV: as given, or computed and printed."""
    from nextham.fermi import fermi_level_of

    if args.fermi is not None:
        return args.fermi
    electrons = count_electrons(source, args.electrons, args.pseudo)
    with bar(f"Fermi level of {label}") as progress:
        level = fermi_level_of(h, s, electrons, progress=progress, threshold=args.threshold)
    print(describe_fermi(label, level, "on the mesh"))
    return level.energy


def describe_fermi(label: str, level: FermiLevel, where: str) -> str:
    """Returns the sentence about a Fermi level."""
    gap = "metal" if level.is_metal else f"gap {level.gap:.3f} eV {where}"
    return f"{label}: E_F = {level.energy:.4f} eV ({level.n_electrons:g} electrons, {gap})"


def count_electrons(source: Source, electrons: float | None, pseudo: str | None) -> float:
    """Returns the valence electrons: as given, of the .upf files of a folder, or of the published pseudopotentials.

    Raises:
        FileError: the folder is none.
    """
    from nextham.io.upf import PUBLISHED_VALENCE, electron_count, read_valence

    if electrons is not None:
        return electrons
    if pseudo is None:
        return electron_count(source.structure, PUBLISHED_VALENCE)
    if not Path(pseudo).is_dir():
        raise FileError(pseudo, "cannot be read: no such folder")
    files = sorted(p for p in Path(pseudo).iterdir() if ".upf" in p.name.lower())
    return electron_count(source.structure, dict(read_valence(file) for file in files))


def label_of(source: Source, name: str) -> str:
    """Returns the name of the folder or file, and of the matrix where it is not H."""
    where = source.path.name or source.path.resolve().name
    return where if name == "H" else f"{where} {name}"
