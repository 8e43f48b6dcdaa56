"""Says how far one Hamiltonian is from another: H and its reference, same structure and basis.

E = H − reference. The gauge shift μ = Re⟨S,E⟩/⟨S,S⟩ is taken off; the gauge MAE is the mean of |E − μS|.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from nextham.cli.argument_types import finite, natural
from nextham.cli.kspace import add_electron_arguments
from nextham.cli.sources import MATRIX_HELP, add_source_arguments

if TYPE_CHECKING:
    from nextham.metrics import BandError, GaugeReport, OverlapCondition

SUMMARY = "gauge MAE in all its parts, band error near the Fermi level, conditioning of S"
EXAMPLES = """\
  nextham compare predicted Si-1
  nextham compare Si-1:H0 Si-1 --window -5 5 --json report.json
  nextham compare A/hrs1_nao.csr B/hrs1_nao.csr --overlap B/srs1_nao.csr"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham compare`."""
    parser.add_argument("a", metavar="A", help=MATRIX_HELP)
    parser.add_argument("b", metavar="B", help="the reference, likewise")
    parser.add_argument("--overlap", metavar="MATRIX", help="S, where it is not beside B")
    parser.add_argument(
        "--window",
        type=finite,
        nargs=2,
        default=(-5.0, 5.0),
        metavar=("LO", "HI"),
        help="levels that the band error is of, eV around E_F (default -5 5)",
    )
    parser.add_argument(
        "--mesh", type=natural, nargs=3, default=(4, 4, 4), metavar=("N1", "N2", "N3"), help="k-points (default 4 4 4)"
    )
    add_electron_arguments(parser, "Fermi level of B, eV, instead of computing it")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there, errors in meV")
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs `nextham compare`."""
    from nextham.cli.kspace import count_electrons
    from nextham.cli.progress import bar
    from nextham.cli.run_folder import check_output_file
    from nextham.cli.sources import open_hamiltonian, open_overlap
    from nextham.fermi import fermi_level_of, monkhorst_pack
    from nextham.metrics import band_error, gauge_mae, overlap_condition

    if not args.window[0] < args.window[1]:
        raise ValueError(f"window: expected two ascending energies, got {args.window[0]:g} and {args.window[1]:g}")
    if args.json:
        check_output_file(Path(args.json))
    (source_a, name_a), (source_b, name_b) = (open_hamiltonian(spec, args) for spec in (args.a, args.b))
    if args.overlap:
        overlap = open_overlap(args.overlap, args)
    else:
        overlap = (source_b if "S" in source_b.names() else source_a).read("S")
    a, b = source_a.read(name_a), source_b.read(name_b)
    report = gauge_mae(a, b, overlap)
    kpoints, _ = monkhorst_pack(tuple(args.mesh))
    condition = overlap_condition(overlap, kpoints)
    if args.fermi is None:
        electrons = count_electrons(source_b, args.electrons, args.pseudo)
        with bar("Fermi level of B") as progress:
            fermi = fermi_level_of(b, overlap, electrons, progress=progress).energy
    else:
        fermi = args.fermi
    with bar("bands of A and B") as progress:
        bands = band_error(a, b, overlap, kpoints, fermi, tuple(args.window), progress)
    print_report(report, condition, bands)
    if args.json:
        result = {
            "a": args.a,
            "b": args.b,
            "gauge": report.to_dict(),
            "bands": bands.to_dict(),
            "overlap": condition.to_dict(),
        }
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written to {args.json}")
    return 0


def print_report(report: GaugeReport, condition: OverlapCondition, bands: BandError) -> None:
    """Prints the tables of a comparison."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"gauge MAE (μ = {report.mu_eV * 1e3:.3f} meV taken off)")
    for column in ("part", "", "MAE / meV", "elements"):
        table.add_column(column, justify="left" if column in ("part", "") else "right")
    previous = None
    for group, name, mae, count in report.rows():
        table.add_row("" if group == previous else group, name, f"{mae:.4f}", f"{count:,}")
        previous = group
    console = Console()
    console.print(table)
    low, high = bands.window_eV
    console.print(
        f"bands from {low:g} to {high:g} eV around E_F: mean error {bands.mean_meV:.2f} meV, largest "
        f"{bands.max_meV:.2f} meV ({bands.n_levels} levels)\nS(k): smallest eigenvalue {condition.smallest:.3e}, "
        f"condition number {condition.condition:.3e}",
        soft_wrap=True,
    )
