"""Predicts the self-consistent Hamiltonian from H of step zero.

The output folder gets hrs1_nao.csr and srs1_nao.csr (ABACUS text, the HR_route and SR_route of PyATB), STRU,
hamiltonian.h5 (H, H0 and S in our format) and summary.json. The networks do not make the two blocks of a pair, H(R) and
H(-R), adjoint to each other; the Hermitian part of what they predict is written, unless --raw is given.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from nextham.cli.memory_size import memory_size

if TYPE_CHECKING:
    from nextham.blocks import Blocks
    from nextham.structure import Structure

SUMMARY = "H of step zero and a model in, the self-consistent Hamiltonian out"
EXAMPLES = """\
  nextham predict STRU --h0 hrs0_nao.csr --overlap srs1_nao.csr --model models/v1 -o predicted
  nextham predict Si-1/STRU --h0 Si-1/hrs0_nao.csr.xz --overlap Si-1/srs1_nao.csr.xz --model models/v1 -o predicted
  nextham predict STRU --h0 hrs0_nao.csr --overlap srs1_nao.csr --model models/v1 --memory-budget 4GB -o predicted
  nextham bands predicted --compare Si-1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham predict`."""
    parser.add_argument("structure", metavar="STRUCTURE", help="STRU of the calculation (or CIF, POSCAR, …)")
    parser.add_argument("--h0", required=True, metavar="FILE", help="H of step zero (hrs0_nao.csr in any of its forms)")
    parser.add_argument("--overlap", required=True, metavar="FILE", help="S (srs1_nao.csr in any of its forms)")
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="model folder: ours, or the published checkpoints"
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--orbitals", metavar="DIR", help="folder of the .orb files that the STRU names")
    parser.add_argument(
        "--format", choices=("text", "text-3.11", "binary", "npz"), default="text", help="of the matrices"
    )
    parser.add_argument("--digits", type=int, default=8, help="digits behind the point in text (default 8)")
    parser.add_argument("--raw", action="store_true", help="write the prediction as it is, not its Hermitian part")
    parser.add_argument("--precision", choices=("single", "double"), default="single", help="of the network")
    parser.add_argument(
        "--memory-budget",
        type=memory_size,
        metavar="SIZE",
        help="memory that the prediction may take beside the model and the matrices, such as 4GB",
    )


def run(args: argparse.Namespace) -> int:
    """Runs `nextham predict`."""
    from nextham.cli.progress import Stages, bar, peak_memory_mb
    from nextham.cli.sources import read_atoms
    from nextham.io.csr import read_blocks
    from nextham.model import load_any, predict_delta

    stages = Stages()
    with stages("reading the matrices"):
        structure, basis, stru = read_atoms(args.structure, args.orbitals)
        h0 = read_blocks(args.h0, structure, basis, unit="Ry")
        overlap = read_blocks(args.overlap, structure, basis, unit="1").spinless()
    with stages("loading the model"):
        ensemble = load_any(args.model)
        if args.precision == "double":
            ensemble = ensemble.double()
    with stages("predicting"), bar("pieces") as move:
        delta = predict_delta(ensemble, h0, args.memory_budget, move)
        n_spin = max(h0.n_spin, delta.n_spin)
        predicted = h0.with_spin(n_spin) + delta.with_spin(n_spin)
        asymmetry = predicted.hermitian_error()
        if not args.raw:
            predicted = predicted.symmetrised()
    folder = Path(args.output)
    with stages("writing"):
        write_run(folder, structure, predicted, h0, overlap, stru, args.format, args.digits)
    summary = {
        "structure": structure.formula(),
        "atoms": structure.n_atoms,
        "orbitals": h0.n_orbitals,
        "edges": h0.n_edges,
        "edges_of_the_network": h0.within(0.0, ensemble.config.cutoff).n_edges,
        "model": str(args.model),
        "target": ensemble.config.target,
        "precision": args.precision,
        "not_hermitian_by_eV": asymmetry,
        "written": "as predicted" if args.raw else "its Hermitian part",
        "seconds": {name: round(t, 3) for name, t in stages.seconds.items()},
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print_summary(summary)
    print(f"written to {folder}")
    return 0


def write_run(
    folder: Path,
    structure: Structure,
    hamiltonian: Blocks,
    h0: Blocks | None,
    overlap: Blocks,
    stru: Path | None,
    format: str = "text",
    digits: int = 8,
) -> None:
    """Writes a run folder that ABACUS's users, PyATB and the other commands can read."""
    import numpy as np

    from nextham.cli.sources import H5_NAME, spin_files
    from nextham.io.csr import write_blocks
    from nextham.io.hdf5 import write_blocks_h5
    from nextham.io.stru import StruFile, write_stru

    folder.mkdir(parents=True, exist_ok=True)
    ending = {"npz": "npz"}.get(format, "csr")
    # PyATB reads H and S side by side and takes it that their lattice vectors are the same list.
    vectors = np.unique(np.concatenate([hamiltonian.graph.R, overlap.graph.R]), axis=0)
    spin_overlap = overlap.with_spin(4) if hamiltonian.n_spin == 4 else overlap
    h_file = folder / f"hrs1_nao.{ending}"
    h_files = spin_files(h_file) if hamiltonian.n_spin == 2 else [h_file]
    write_blocks(h_files, hamiltonian, letter="H", R=vectors, format=format, digits=digits)
    write_blocks(folder / f"srs1_nao.{ending}", spin_overlap, letter="S", R=vectors, format=format, digits=digits)
    if stru is None:
        write_stru(folder / "STRU", StruFile.from_structure(structure))
    elif stru.resolve() != (folder / "STRU").resolve():
        shutil.copyfile(stru, folder / "STRU")
    matrices = {"H": hamiltonian, "H0": h0, "S": overlap}
    write_blocks_h5(folder / H5_NAME, {name: matrix for name, matrix in matrices.items() if matrix is not None})


def print_summary(summary: dict[str, object]) -> None:
    """Prints the summary as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in summary.items():
        if isinstance(value, dict):
            value = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in value.items())
        table.add_row(name.replace("_", " "), str(value))
    Console().print(table)
