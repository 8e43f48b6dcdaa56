"""Computes H of step zero and S of a structure from orbital and pseudopotential files alone, without a DFT code.

H of step zero is that of the superposed atomic densities, what ABACUS starts from; its zero of energy is ABACUS's.
Orbitals (.orb) and norm-conserving pseudopotentials (.upf) of every element are taken from one folder, plain, .xz or
.gz; `nextham basis check DIR` says what it has. The output folder gets hrs0_nao.csr and srs1_nao.csr (ABACUS text, the
HR_route and SR_route of PyATB), STRU, hamiltonian.h5 (H0 and S in our format) and summary.json; with --position also
rr.csr, the matrix elements of the position (rR_route). As in ABACUS's own files, elements of the .csr files below 1e-10
(H in Ry) are left out, and with them pairs of atoms that have no others; hamiltonian.h5 keeps every bit. Radial tables
are kept in ~/.cache/nextham (NEXTHAM_CACHE).

Where the name of the output ends in .h5, H0 and S go into that file alone, group after group of atoms: for systems
whose matrices do not fit the memory. The file has its name once it is whole, before that OUT.h5.part; a run that was
interrupted goes on when the same command is given again, with the same --memory-budget.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nextham.cli.argument_types import add_matrix_format, memory_size

if TYPE_CHECKING:
    import torch

SUMMARY = "structure and basis files in, H of step zero and S out: no DFT code"
EXAMPLES = """\
  nextham h0 STRU --basis DIR -o h0
  nextham h0 silicon.cif --basis DIR --position -o h0
  nextham h0 STRU --basis DIR --memory-budget 4GB -o large.h5
  nextham h0 STRU --basis DIR --memory-budget 4GB --single --precision single -o large.h5
  nextham bands h0:H0 --pseudo DIR
  nextham compare h0:H0 RUN:H0"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham h0`."""
    parser.add_argument("structure", metavar="STRUCTURE", help="STRU, CIF, POSCAR, XYZ, …")
    parser.add_argument("--basis", required=True, metavar="DIR", help="folder of .orb and .upf files")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder, or .h5 file, to write")
    parser.add_argument("--position", action="store_true", help="write the matrix elements of the position too")
    add_matrix_format(parser)
    parser.add_argument("--device", default="cpu", help="where it is computed: cpu (default), cuda or cuda:N")
    parser.add_argument("--single", action="store_true", help="single precision on the grid, off by at most 0.1 meV")
    parser.add_argument("--precision", choices=("single", "double"), help="of the numbers of an .h5 (default double)")
    parser.add_argument(
        "--memory-budget",
        type=memory_size,
        metavar="SIZE",
        help="memory that the grid may take beside the matrices, or all of it where an .h5 is written, such as 4GB "
        "(default of the latter 2GiB)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs `nextham h0`."""
    import torch

    from nextham.cli.progress import Stages, bar, peak_memory_mb
    from nextham.cli.run_folder import check_output, write_run, write_summary
    from nextham.device import checked_device
    from nextham.h0 import AtomicFiles, build_h0, position_matrix
    from nextham.io.structure_file import is_stru, read_structure

    device, dtype = checked_device(args.device), torch.float32 if args.single else torch.float64
    if args.output.lower().endswith(".h5"):
        return _into_file(args, device, dtype)
    if args.precision is not None:
        raise ValueError("precision: of the numbers of an .h5 as output; those of a folder are in double precision")
    check_output(Path(args.output))
    stages = Stages()
    with stages("reading the files"):
        structure = read_structure(args.structure)
        structure.require_inside()
        files = AtomicFiles.read(args.basis, structure.numbers)
    with stages("H of step zero"), bar("grid") as move:
        h0, overlap = build_h0(
            structure, files, memory_budget=args.memory_budget, progress=move, device=device, dtype=dtype
        )
    position = None
    if args.position:
        with stages("position"):
            position = position_matrix(structure, files.orbitals)
    folder, stru = Path(args.output), Path(args.structure)
    with stages("writing"):
        stru = stru if is_stru(stru) else None
        write_run(folder, structure, None, h0, overlap, stru, args.format, args.digits, position)
    summary = {
        "structure": structure.formula(),
        "atoms": structure.n_atoms,
        "orbitals": h0.n_orbitals,
        "edges": h0.n_edges,
        "n_spin": h0.n_spin,
        "basis": str(args.basis),
        "device": str(device),
        "precision": "single on the grid" if args.single else "double",
        "seconds": {name: round(t, 3) for name, t in stages.seconds.items()},
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
    write_summary(folder, summary)
    return 0


def _into_file(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> int:
    """Writes an `.h5` group after group of atoms."""
    from nextham.cli.progress import Stages, bar
    from nextham.cli.run_folder import check_output_file, check_plain_h5, print_file_summary
    from nextham.h0 import AtomicFiles, stream_h0
    from nextham.io.structure_file import read_structure

    if args.position:
        raise ValueError("position: it is written into a folder, not into an .h5 file")
    check_plain_h5(args.format, args.digits)
    stages, output = Stages(), Path(args.output)
    check_output_file(output)
    with stages("reading the files"):
        structure = read_structure(args.structure)
        files = AtomicFiles.read(args.basis, structure.numbers)
    output.parent.mkdir(parents=True, exist_ok=True)
    with stages("H of step zero"), bar("atoms") as move:
        settings = {"memory_budget": args.memory_budget, "device": device, "dtype": dtype}
        settings |= {} if args.precision is None else {"precision": args.precision}
        stream_h0(structure, files, output, progress=move, **settings)
    precision = {"precision": args.precision or "double", "on_the_grid": "single" if args.single else "double"}
    print_file_summary(output, "H0", {"basis": str(args.basis), "device": str(device), **precision}, stages)
    return 0
