"""Predicts the self-consistent Hamiltonian from H of step zero, or from the structure alone.

H of step zero and S are read (--h0 and --overlap), or computed from the orbital and pseudopotential files of a folder
(--basis; as by `nextham h0`), so that no DFT code is needed.

The output folder gets hrs1_nao.csr and srs1_nao.csr (ABACUS text, the HR_route and SR_route of PyATB), STRU,
hamiltonian.h5 (H, H0 and S in our format) and summary.json. The networks do not make the two blocks of a pair, H(R) and
H(-R), adjoint to each other; the Hermitian part of what they predict is written, unless --raw is given.

Where the name of the output ends in .h5, H, H0 and S go into that file alone, and --memory-budget bounds all memory but
some 10 kB per atom: for systems whose matrices do not fit it. H0 and S are computed (--basis), or read from the file of
`nextham h0 -o FILE.h5` (--h0 FILE.h5). Intermediate results lie in the folder of the output, what --basis computes as
OUT-h0.h5; it stays where the prediction is interrupted, and so do the outputs of finished networks, OUT.h5.networks:
given as --h0 (without --basis), the command goes on with the next network.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nextham.cli.argument_types import add_matrix_format, memory_size

if TYPE_CHECKING:
    import torch

    from nextham.blocks import Blocks
    from nextham.cli.progress import Stages
    from nextham.structure import Structure

SUMMARY = "structure (or H of step zero) and a model in, the self-consistent Hamiltonian out"
EXAMPLES = """\
  nextham predict POSCAR --basis DIR --model models/v1 -o predicted
  nextham predict STRU --h0 hrs0_nao.csr --overlap srs1_nao.csr --model models/v1 -o predicted
  nextham predict Si-1/STRU --h0 Si-1/hrs0_nao.csr.xz --overlap Si-1/srs1_nao.csr.xz --model models/v1 -o predicted
  nextham predict STRU --h0 hrs0_nao.csr --overlap srs1_nao.csr --model models/v1 --memory-budget 4GB -o predicted
  nextham predict STRU --h0 large.h5 --model models/v1 --memory-budget 4GB -o predicted.h5
  nextham bands predicted --compare Si-1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham predict`."""
    parser.add_argument("structure", metavar="STRUCTURE", help="STRU of the calculation (or CIF, POSCAR, …)")
    parser.add_argument("--h0", metavar="FILE", help="H of step zero (hrs0_nao.csr in any of its forms, or an .h5)")
    parser.add_argument("--overlap", metavar="FILE", help="S (srs1_nao.csr in any of its forms)")
    parser.add_argument(
        "--basis", metavar="DIR", help="folder of .orb and .upf files to compute both from, instead of reading them"
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="model folder: ours, or the published checkpoints"
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder, or .h5 file, to write")
    parser.add_argument("--orbitals", metavar="DIR", help="folder of the .orb files that the STRU names")
    add_matrix_format(parser)
    parser.add_argument("--raw", action="store_true", help="write the prediction as it is, not its Hermitian part")
    parser.add_argument(
        "--precision", choices=("single", "double"), default="single", help="of the network (default single)"
    )
    parser.add_argument("--device", default="cpu", help="where to compute: cpu (default), cuda or cuda:N")
    parser.add_argument(
        "--memory-budget",
        type=memory_size,
        metavar="SIZE",
        help="memory that each stage may take beside the model and, where no .h5 is written, the matrices, such as 4GB",
    )


def run(args: argparse.Namespace) -> int:
    """Runs `nextham predict`."""
    from nextham.cli.progress import Stages, bar, peak_memory_mb
    from nextham.cli.run_folder import check_output, write_run, write_summary
    from nextham.device import checked_device
    from nextham.model import load_any, predict_delta

    if args.output.lower().endswith(".h5"):
        return _into_file(args)
    if args.h0 is not None and args.h0.lower().endswith(".h5") and args.overlap is None:
        raise ValueError("output: what is predicted from an .h5 of H0 and S is an .h5 too, give -o FILE.h5")
    if (args.h0 is None) != (args.overlap is None) or (args.h0 is None) == (args.basis is None):
        raise ValueError("h0, overlap, basis: give either --h0 and --overlap, or --basis")
    check_output(Path(args.output))
    device = checked_device(args.device)
    stages = Stages()
    with stages("loading the model"):  # first: a folder that is none is found before anything long is computed
        ensemble = load_any(args.model).to(device)
        if args.precision == "double":
            ensemble = ensemble.double()
    structure, h0, overlap, stru = _computed(args, device, stages) if args.basis else _read(args, stages)
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
        "device": str(device),
        "not_hermitian_by_eV": asymmetry,
        "written": "as predicted" if args.raw else "its Hermitian part",
        "seconds": {name: round(t, 3) for name, t in stages.seconds.items()},
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
    write_summary(folder, summary)
    return 0


def _into_file(args: argparse.Namespace) -> int:
    """From file to file, within a budget of memory."""
    import numpy as np

    from nextham.cli.progress import Stages, bar
    from nextham.cli.run_folder import check_output_file, check_plain_h5, print_file_summary
    from nextham.device import checked_device
    from nextham.h0 import AtomicFiles, stream_h0
    from nextham.io.errors import FileError
    from nextham.io.hdf5 import read_contents_h5
    from nextham.io.structure_file import read_structure
    from nextham.model import load_any, predict_file

    if (args.h0 is None) == (args.basis is None) or args.overlap is not None:
        raise ValueError("h0, basis: give either --h0 FILE.h5, which has S too, or --basis, to write an .h5")
    if args.raw:
        raise ValueError("raw: into an .h5 goes the Hermitian part alone")
    if args.orbitals is not None:
        raise ValueError("orbitals: the .h5 of --h0 and the files of --basis say what the orbitals are")
    check_plain_h5(args.format, args.digits)
    device, stages, output = checked_device(args.device), Stages(), Path(args.output)
    computed = output.with_name(f"{output.stem}-h0.h5")
    check_output_file(output)
    if args.basis and computed.exists():
        raise FileError(computed, "is there already: give it as --h0 in place of --basis, or remove it")
    with stages("reading the files"):
        structure = read_structure(args.structure)
        ensemble = load_any(args.model).to(device)
        ensemble = ensemble.double() if args.precision == "double" else ensemble
    output.parent.mkdir(parents=True, exist_ok=True)
    if args.basis:
        files = AtomicFiles.read(args.basis, structure.numbers)
        with stages("H of step zero"), bar("atoms") as move:
            stream_h0(structure, files, computed, memory_budget=args.memory_budget, progress=move, device=device)
    h0 = Path(args.h0 or computed)
    of_file, given = read_contents_h5(h0).structure, structure.wrapped()[0]
    same = len(given.numbers) == len(of_file.numbers) and (given.numbers == of_file.numbers).all()
    if not (same and np.allclose(given.positions, of_file.positions) and np.allclose(given.cell, of_file.cell)):
        raise ValueError(f"structure: {args.structure} is not the structure of {h0}")
    with stages("predicting"), bar("pieces") as move:
        asymmetry = predict_file(ensemble, h0, output, args.memory_budget, move)
    if args.basis:
        computed.unlink()
    facts = {"model": str(args.model), "precision": args.precision, "device": str(device)}
    print_file_summary(output, "H", {**facts, "not_hermitian_by_eV": asymmetry}, stages)
    return 0


def _read(args: argparse.Namespace, stages: Stages) -> tuple[Structure, Blocks, Blocks, Path | None]:
    """Structure, H of step zero, S and the STRU, from files."""
    from nextham.cli.sources import read_atoms
    from nextham.io.csr import read_blocks

    with stages("reading the matrices"):
        structure, basis, stru = read_atoms(args.structure, args.orbitals)
        h0 = read_blocks(args.h0, structure, basis, unit="Ry")
        return structure, h0, read_blocks(args.overlap, structure, basis, unit="1").spinless(), stru


def _computed(
    args: argparse.Namespace, device: torch.device, stages: Stages
) -> tuple[Structure, Blocks, Blocks, Path | None]:
    """The same from orbitals and pseudopotentials."""
    from nextham.cli.progress import bar
    from nextham.h0 import AtomicFiles, build_h0
    from nextham.io.structure_file import is_stru, read_structure

    with stages("reading the files"):
        structure = read_structure(args.structure)
        structure.require_inside()
        files = AtomicFiles.read(args.basis, structure.numbers)
    with stages("H of step zero"), bar("grid") as move:
        h0, overlap = build_h0(structure, files, memory_budget=args.memory_budget, progress=move, device=device)
    return structure, h0, overlap, Path(args.structure) if is_stru(args.structure) else None
