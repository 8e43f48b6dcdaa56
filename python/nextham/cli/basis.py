"""Looks at the orbital and pseudopotential files of a directory.

`check` reads every .orb and .upf file (plain, .xz or .gz) and prints, for each element, the shells with their cut-offs,
the valence electrons and the projectors; what is missing or damaged follows in sentences, and the exit code is then 1.
"""

from __future__ import annotations

import argparse

SUMMARY = "look at a directory of orbitals and pseudopotentials"
EXAMPLES = """\
  nextham basis check DIR
  nextham basis check DIR --elements Ga As"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham basis`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="list what the directory has, and what is missing",
        description=__doc__,
        epilog="examples:\n" + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("directory", metavar="DIR", help="folder of .orb and .upf files")
    check.add_argument(
        "--elements", nargs="+", metavar="SYMBOL", help="elements that must be there (default: all that have a file)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs `nextham basis`."""
    from rich.console import Console
    from rich.table import Table

    from nextham.basis import Basis
    from nextham.io.basis_directory import survey
    from nextham.units import SYMBOLS, atomic_number

    found = survey(args.directory, None if args.elements is None else map(atomic_number, args.elements))
    if not found:
        raise ValueError(f"{args.directory}: there is no .orb or .upf file of an element")
    table = Table(box=None)
    for column in ("element", "shells", "r / Bohr", "E / Ry", "valence", "projectors", "spin-orbit", "core"):
        table.add_column(column, justify="left" if column in ("element", "shells") else "right")
    for element in found:
        orbitals, pseudo = element.orbitals, element.pseudopotential
        row = [SYMBOLS[element.number], "-", "-", "-", "-", "-", "-", "-"]
        if orbitals is not None:
            label = Basis({element.number: orbitals.shells}).label(element.number)
            row[1:4] = label, f"{orbitals.radius_cutoff:g}", f"{orbitals.energy_cutoff:g}"
        if pseudo is not None:
            row[4:6] = f"{pseudo.valence:g}", str(len(pseudo.l))
            row[6:] = "yes" if pseudo.spin_orbit else "no", "no" if pseudo.core is None else "yes"
        table.add_row(*row)
    console = Console()
    console.print(table)
    problems = [sentence for element in found for sentence in element.problems]
    for sentence in problems:
        console.print(sentence, soft_wrap=True, markup=False)
    return 1 if problems else 0
