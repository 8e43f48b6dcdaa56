"""Runs the main job on a real sample that ships with the package: strained, displaced silicon with spin-orbit coupling.

Predicts H from H of step zero, compares both with the converged H of ABACUS and draws their bands. The model that ships
with the package was trained on other materials; silicon was held out.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

SUMMARY = "the main job on a bundled sample: prediction, comparison, band picture"
EXAMPLES = """\
  nextham demo
  nextham demo --output demo-output --model models/v1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham demo`."""
    parser.add_argument(
        "-o", "--output", default="demo-output", metavar="DIR", help="folder to write (default demo-output)"
    )
    parser.add_argument("--model", metavar="DIR", help="model folder; by default the model that ships with the package")


def run(args: argparse.Namespace) -> int:
    """Runs `nextham demo`."""
    from nextham.cli import main
    from nextham.data import bundled_model, sample

    folder, run_folder = Path(args.output), sample("Si-1")
    folder.mkdir(parents=True, exist_ok=True)
    model = args.model or str(bundled_model())
    predicted = str(folder / "predicted")
    si = str(run_folder)
    h0, overlap = f"{si}/hrs0_nao.csr.xz", f"{si}/srs1_nao.csr.xz"
    legend = ["--label", "DFT", "--label", "prediction", "--label", "H of step zero"]
    picture = ["--kpath", "GXWKGL", "--window", "-8", "8", "-o", str(folder / "bands")]
    commands = [
        ["info", si],
        ["predict", f"{si}/STRU", "--h0", h0, "--overlap", overlap, "--model", model, "-o", predicted],
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
