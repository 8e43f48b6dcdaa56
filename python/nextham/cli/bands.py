"""Computes band structures along a path and draws them over each other.

Solves H(k) C = S(k) C E on the path. Each Hamiltonian is moved by its own Fermi level, which comes from the number of
valence electrons (of the pseudopotentials) and a mesh of k-points.

All levels of a large cell are too many (512 silicon atoms have 13,312): --levels N computes the N nearest to the Fermi
level at each k-point, and takes for that the level up to which the electrons fill the levels of Γ.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nextham.cli.argument_types import finite, natural
from nextham.cli.kspace import add_electron_arguments
from nextham.cli.sources import MATRIX_HELP, add_source_arguments

if TYPE_CHECKING:
    from nextham.bands import BandStructure
    from nextham.blocks import Blocks
    from nextham.cli.sources import Source
    from nextham.kpath import BandPath

SUMMARY = "band structure on a high-symmetry path: CSV and picture, several Hamiltonians over each other"
EXAMPLES = """\
  nextham bands Si-1
  nextham bands predicted --compare Si-1 --compare Si-1:H0 --kpath GXWKGL -o bands
  nextham bands Si-1 --kpath "G=0,0,0 X=0.5,0,0.5 | K=0.375,0.375,0.75 G=0,0,0" --points 300 --window -6 6
  nextham bands supercell --kpath G --levels 60
  nextham bands hrs1_nao.csr --overlap srs1_nao.csr --structure STRU --electrons 8"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham bands`."""
    parser.add_argument("matrix", metavar="MATRIX", help=MATRIX_HELP)
    parser.add_argument(
        "--compare", action="append", default=[], metavar="MATRIX", help="draw another one too (repeatable)"
    )
    parser.add_argument("--label", action="append", default=[], metavar="TEXT", help="names in the legend, in order")
    parser.add_argument("--overlap", metavar="MATRIX", help="S, where it is not beside the first matrix")
    parser.add_argument(
        "--kpath",
        default="auto",
        metavar="PATH",
        help="auto (default: the standard path of the lattice), G alone, corners such as GXWKGL, or corners with "
        "coordinates in units of the reciprocal lattice vectors, such as 'G=0,0,0 X=0.5,0,0.5'",
    )
    parser.add_argument("--points", type=natural, default=200, metavar="N", help="k-points on the path (default 200)")
    parser.add_argument(
        "--window",
        type=finite,
        nargs=2,
        default=(-10.0, 10.0),
        metavar=("LO", "HI"),
        help="energies of the picture, eV around E_F (default -10 10)",
    )
    add_electron_arguments(parser, "Fermi level of all, eV, instead of computing it")
    parser.add_argument(
        "--mesh",
        type=natural,
        nargs=3,
        metavar=("N1", "N2", "N3"),
        help="k-points for the Fermi level (default: at most 0.25/Å apart, 2π included)",
    )
    parser.add_argument(
        "--threshold",
        type=finite,
        metavar="X",
        help="drop eigenvalues of S(k) up to X, such as 1e-5 (canonical orthogonalisation; default: none)",
    )
    parser.add_argument(
        "--levels", type=natural, metavar="N", help="only the N levels nearest to E_F at each k-point: for large cells"
    )
    parser.add_argument(
        "-o", "--output", default="bands", metavar="NAME", help="writes NAME.png and NAME….csv (default bands)"
    )
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs `nextham bands`."""
    from nextham.bands import band_structure
    from nextham.bands_plot import plot_bands
    from nextham.cli.kspace import count_electrons, describe_fermi, label_of
    from nextham.cli.progress import bar
    from nextham.cli.run_folder import check_output
    from nextham.cli.sources import open_hamiltonian, open_overlap
    from nextham.fermi import fermi_level_of
    from nextham.kpath import band_path

    specs = [args.matrix, *args.compare]
    if len(args.label) > len(specs):
        raise ValueError(f"label: expected at most one for each of {len(specs)} matrices, got {len(args.label)}")
    if args.levels is not None and (args.mesh or args.threshold is not None):
        raise ValueError("levels: takes the Fermi level of Γ and all of S(k), so neither --mesh nor --threshold")
    if not args.window[0] < args.window[1]:
        raise ValueError(f"window: expected two ascending energies, got {args.window[0]:g} and {args.window[1]:g}")
    base = Path(args.output)
    check_output(base.parent)
    opened = [open_hamiltonian(spec, args) for spec in specs]
    first = opened[0][0]
    path = band_path(first.structure, args.kpath, args.points)
    labels = [*args.label, *(label_of(source, name) for source, name in opened[len(args.label) :])]
    shared_overlap = open_overlap(args.overlap, args) if args.overlap else None
    electrons = None if args.fermi is not None else count_electrons(first, args.electrons, args.pseudo)
    results, overlap = [], shared_overlap
    for (source, name), label in zip(opened, labels, strict=True):
        if shared_overlap is None and "S" in source.names():
            overlap = source.read("S")
        if overlap is None:
            raise ValueError(f"overlap: {source.path} has no S beside it: give --overlap")
        hamiltonian = source.read(name)
        energy = args.fermi
        if args.levels is not None:
            results.append(_near(hamiltonian, overlap, path, args, electrons, label))
            continue
        if energy is None:
            with bar(f"Fermi level of {label}") as progress:
                level = fermi_level_of(
                    hamiltonian, overlap, electrons, args.mesh, progress=progress, threshold=args.threshold
                )
            print(describe_fermi(label, level, "on the mesh"))
            energy = level.energy
        with bar(f"bands of {label}") as progress:
            results.append(band_structure(hamiltonian, overlap, path, energy, progress, args.threshold))
    base.parent.mkdir(parents=True, exist_ok=True)
    for number, bands in enumerate(results):
        file = base.with_name(base.name + (f"-{number + 1}" if len(results) > 1 else "") + ".csv")
        bands.to_csv(file)
        print(f"{labels[number]}: {file}")
    picture = base.with_name(base.name + ".png")
    plot_bands(results, labels, picture, _styles(opened), tuple(args.window), first.structure.formula())
    corners = " ".join(label for _, label in path.ticks())
    where = f"{path.lattice}, {corners}, {len(path.kpoints)} k-points" if len(path.kpoints) > 1 else corners
    print(f"{where}: {picture}")
    return 0


def _near(
    hamiltonian: Blocks,
    overlap: Blocks,
    path: BandPath,
    args: argparse.Namespace,
    electrons: float | None,
    label: str,
) -> BandStructure:
    """The levels near the Fermi level alone."""
    import numpy as np

    from nextham.bands import BandStructure, band_structure_near
    from nextham.cli.kspace import describe_fermi
    from nextham.cli.progress import bar
    from nextham.levels import levels_around_fermi

    energy = args.fermi
    if energy is None:
        with bar(f"Fermi level of {label}"):
            found, level = levels_around_fermi(hamiltonian, overlap, np.zeros(3), electrons, args.levels)
        print(describe_fermi(label, level, "at Γ"))
        energy = level.energy
        if not path.kpoints.any():  # Γ alone
            return BandStructure(path, found.values[None], energy, found.first)
    with bar(f"bands of {label}") as progress:
        return band_structure_near(hamiltonian, overlap, path, energy, args.levels, progress)


def _styles(opened: list[tuple[Source, str]]) -> list[str]:
    """H0 thin grey, folders that `nextham predict` wrote dashed red, others black."""
    return [
        "h0" if name == "H0" else "prediction" if (source.path / "summary.json").is_file() else "dft"
        for source, name in opened
    ]
