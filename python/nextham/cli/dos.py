"""Computes the density of states, whole and by Mulliken weights on shells, elements or atoms, and draws it.

The linear tetrahedron method has no width to choose; `--method gaussian` smears levels instead. Either way each bin
holds its exact number of states, so that sums over bins count levels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nextham.cli.argument_types import finite, positive
from nextham.cli.kspace import add_kspace_arguments

SUMMARY = "density of states, projected on shells, elements or atoms: CSV and picture"
EXAMPLES = """\
  nextham dos Si-1
  nextham dos Si-1 --mesh 12 12 12 --window -12 8 --by shell -o silicon-dos
  nextham dos predicted --method gaussian --width 0.2 --by atom
  nextham dos hrs1_nao.csr --overlap srs1_nao.csr --structure STRU --electrons 8"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham dos`."""
    add_kspace_arguments(parser, 0.15)
    parser.add_argument(
        "--window",
        type=finite,
        nargs=2,
        default=(-12.0, 8.0),
        metavar=("LO", "HI"),
        help="eV around E_F (default -12 8)",
    )
    parser.add_argument("--step", type=positive, default=0.02, metavar="EV", help="width of the bins (default 0.02 eV)")
    parser.add_argument(
        "--method",
        choices=("tetrahedron", "gaussian"),
        default="tetrahedron",
        help="linear tetrahedra (default) or smeared levels",
    )
    parser.add_argument(
        "--width", type=positive, default=0.1, metavar="EV", help="of gaussian: exp(-x²/width²) (default 0.1 eV)"
    )
    parser.add_argument(
        "--by", choices=("shell", "element", "atom", "none"), default="shell", help="projections (default shell)"
    )
    parser.add_argument(
        "-o", "--output", default="dos", metavar="NAME", help="writes NAME.png and NAME.csv (default dos)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs `nextham dos`."""
    from nextham.cli.kspace import fermi_energy, read_pair
    from nextham.cli.progress import bar
    from nextham.cli.run_folder import check_output
    from nextham.dos import density_of_states
    from nextham.spectra_plot import plot_dos

    if not args.window[0] < args.window[1]:
        raise ValueError(f"window: expected two ascending energies, got {args.window[0]:g} and {args.window[1]:g}")
    base = Path(args.output)
    check_output(base.parent)
    source, label, hamiltonian, overlap = read_pair(args)
    fermi = fermi_energy(source, label, hamiltonian, overlap, args)
    window = (fermi + args.window[0], fermi + args.window[1])
    with bar(f"density of states of {label}") as progress:
        dos = density_of_states(
            hamiltonian,
            overlap,
            window,
            args.step,
            args.mesh,
            args.method,
            args.width,
            None if args.by == "none" else args.by,
            fermi,
            progress,
            args.threshold,
        )
    base.parent.mkdir(parents=True, exist_ok=True)
    table, picture = (base.with_name(base.name + end) for end in (".csv", ".png"))
    dos.to_csv(table)
    plot_dos(dos, picture, tuple(args.window), source.structure.formula())
    filled = dos.integrated()[:, dos.energies <= fermi][:, -1:].sum()
    print(f"{label}: {dos.method}; {filled:.3f} electrons below E_F: {table}, {picture}")
    return 0
