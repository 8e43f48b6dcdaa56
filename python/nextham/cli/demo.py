"""Runs the main job on a real sample that ships with the package: strained, displaced silicon with spin-orbit coupling.

Predicts H from H of step zero, compares both with the converged H of ABACUS and draws their bands. The model that ships
with the package was trained on other materials; silicon was held out. With --basis H of step zero is not read but
computed from the orbital and pseudopotential files of a folder, and compared with that of ABACUS first.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

SUMMARY = "the main job on a bundled sample: prediction, comparison, band picture"
EXAMPLES = """\
  nextham demo
  nextham demo --output demo-output --model models/v1
  nextham demo --basis DIR"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham demo`."""
    parser.add_argument(
        "-o", "--output", default="demo-output", metavar="DIR", help="folder to write (default demo-output)"
    )
    parser.add_argument("--model", metavar="DIR", help="model folder; by default the model that ships with the package")
    parser.add_argument("--basis", metavar="DIR", help="folder of .orb and .upf files to compute H of step zero from")


def run(args: argparse.Namespace) -> int:
    """Runs `nextham demo`."""
    from nextham.cli import main
    from nextham.cli.run_folder import check_output
    from nextham.data import bundled_model, sample

    folder, run_folder = Path(args.output), sample("Si-1")
    check_output(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = args.model or str(bundled_model())
    predicted = str(folder / "predicted")
    si = str(run_folder)
    given = ["--h0", f"{si}/hrs0_nao.csr.xz", "--overlap", f"{si}/srs1_nao.csr.xz"]
    first = []
    if args.basis:
        computed, given = str(folder / "h0"), ["--basis", args.basis]
        first = [
            ["h0", f"{si}/STRU", "--basis", args.basis, "-o", computed],
            ["compare", f"{computed}:H0", f"{si}:H0", "--json", str(folder / "computed-h0.json")],
        ]
    legend = ["--label", "DFT", "--label", "prediction", "--label", "H of step zero"]
    picture = ["--kpath", "GXWKGL", "--window", "-8", "8", "-o", str(folder / "bands")]
    commands = [
        ["info", si],
        *first,
        ["predict", f"{si}/STRU", *given, "--model", model, "-o", predicted],
        ["compare", f"{si}:H0", si, "--json", str(folder / "h0.json")],
        ["compare", predicted, si, "--json", str(folder / "prediction.json")],
        ["bands", si, "--compare", predicted, "--compare", f"{si}:H0", *legend, *picture],
    ]
    for command in commands:
        print(f"\n$ nextham {shlex.join(command)}")
        code = main(command)
        if code:
            return code
    print(f"\nThe picture is {folder / 'bands.png'}.")
    return 0
