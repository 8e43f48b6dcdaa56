"""Computes the optical conductivity and ε₂ by the Kubo-Greenwood formula, and draws them.

Interband transitions between the levels of H(k) C = S(k) C E, from H, S, their derivatives with respect to k and the
matrix elements of the position. These come from the orbitals (--basis) or from a file of ABACUS (--position; rr.csr or
data-rR-sparse.csr beside the matrices is found). Without either they are approximated: taken at the middle of the bond,
dipoles between orbitals of one atom neglected. Intraband (Drude) terms, excitons and local fields are left out. The
number of electrons in the sum rule is printed as a check: a small basis has too few empty levels for all of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nextham.cli.argument_types import positive
from nextham.cli.kspace import add_kspace_arguments

if TYPE_CHECKING:
    from nextham.blocks import Blocks
    from nextham.cli.sources import Source

SUMMARY = "optical conductivity and ε₂ (Kubo-Greenwood, interband): CSV and picture"
EXAMPLES = """\
  nextham optics Si-1
  nextham optics Si-1 --mesh 16 16 16 --max-energy 8 --width 0.05 -o silicon-optics
  nextham optics Si-1 --basis DIR
  nextham optics hrs1_nao.csr --overlap srs1_nao.csr --structure STRU --electrons 8"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham optics`."""
    add_kspace_arguments(parser, 0.15)
    parser.add_argument(
        "--max-energy", type=positive, default=10.0, metavar="EV", help="of the photons (default 10 eV)"
    )
    parser.add_argument("--step", type=positive, default=0.02, metavar="EV", help="of the energies (default 0.02 eV)")
    parser.add_argument(
        "--width", type=positive, default=0.1, metavar="EV", help="of the lines: exp(-x²/width²) (default 0.1 eV)"
    )
    parser.add_argument("--basis", metavar="DIR", help="folder of .orb files: exact position matrix elements")
    parser.add_argument("--position", metavar="FILE", help="position matrix as ABACUS writes it (rr.csr), instead")
    parser.add_argument(
        "-o", "--output", default="optics", metavar="NAME", help="writes NAME.png and NAME.csv (default optics)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs `nextham optics`."""
    import numpy as np

    from nextham.cli.kspace import fermi_energy, read_pair
    from nextham.cli.progress import bar
    from nextham.cli.run_folder import check_output
    from nextham.optics import optical_conductivity
    from nextham.spectra_plot import plot_optics

    if not 0 < args.step < args.max_energy:
        raise ValueError(f"step: expected between 0 and {args.max_energy:g} eV, got {args.step:g}")
    base = Path(args.output)
    check_output(base.parent)
    source, label, hamiltonian, overlap = read_pair(args)
    position = _position(source, args.basis, args.position)
    fermi = fermi_energy(source, label, hamiltonian, overlap, args)
    energies = args.step * np.arange(1, round(args.max_energy / args.step) + 1)
    with bar(f"optical conductivity of {label}") as progress:
        optics = optical_conductivity(
            hamiltonian,
            overlap,
            fermi,
            energies,
            args.mesh,
            args.width,
            progress=progress,
            threshold=args.threshold,
            position=position,
        )
    base.parent.mkdir(parents=True, exist_ok=True)
    table, picture = (base.with_name(base.name + end) for end in (".csv", ".png"))
    optics.to_csv(table)
    plot_optics(optics, picture, source.structure.formula())
    mesh = " x ".join(map(str, optics.size))
    print(f"{label}: mesh {mesh}; {optics.method}")
    print(f"{optics.electrons()[-1]:.2f} electrons in the sum rule up to {energies[-1]:g} eV: {table}, {picture}")
    return 0


def _position(source: Source, basis: str | None, position: str | None) -> tuple[Blocks, Blocks, Blocks] | None:
    """The position matrix: from orbitals, from a file, or from a file beside the matrices."""
    if basis is not None and position is not None:
        raise ValueError("basis, position: give one of them")
    if basis is not None:
        from nextham.h0 import position_matrix
        from nextham.io.basis_directory import read_orbitals

        return position_matrix(source.structure, read_orbitals(basis, source.structure.numbers))
    folder = source.path if source.path.is_dir() else source.path.parent
    beside = [p for p in (folder / "rr.csr", folder / "data-rR-sparse.csr") if p.is_file()]
    if position is None and not beside:
        return None
    from nextham.io.position_file import read_position

    return read_position(position or beside[0], source.structure, source.basis)
