"""The folder that a command writes: matrices as ABACUS's users and PyATB read them, our own file, a summary."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nextham.io.errors import FileError

if TYPE_CHECKING:
    from nextham.blocks import Blocks
    from nextham.cli.progress import Stages
    from nextham.structure import Structure

__all__ = [
    "check_output",
    "check_output_file",
    "check_plain_h5",
    "print_file_summary",
    "print_summary",
    "write_run",
    "write_summary",
]

_UNITS = {"mb": "MB", "eV": "eV"}


def check_output(path: Path) -> None:
    """Raises FileError where a folder (or file) cannot be made, before anything long is computed for it."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise FileError(path, f"cannot be written: {there} is a file, not a folder")
    if not os.access(there, os.W_OK):
        raise FileError(path, f"cannot be written: no permission to write into {there}")


def check_output_file(path: Path) -> None:
    """Raises FileError where a file cannot be made, likewise."""
    if path.is_dir():
        raise FileError(path, "cannot be written: it is a folder, not a file")
    check_output(path.parent)


def check_plain_h5(format: str, digits: int) -> None:
    """Refuses what only the matrices of a folder can be given, where an `.h5` is written."""
    if format != "text" or digits != 8:
        raise ValueError("format, digits: of a folder's matrices; an .h5 keeps every bit and takes neither")


def write_run(
    folder: Path,
    structure: Structure,
    hamiltonian: Blocks | None,
    h0: Blocks | None,
    overlap: Blocks,
    stru: Path | None,
    format: str = "text",
    digits: int = 8,
    position: Sequence[Blocks] | None = None,
) -> None:
    """Writes a run folder that ABACUS's users, PyATB and the other commands can read.

    H becomes hrs1_nao, or where there is none H of step zero hrs0_nao; S srs1_nao, the position matrix rr.csr. All of
    them go into hamiltonian.h5 but the position matrix.
    """
    import numpy as np

    from nextham.cli.sources import H5_NAME, spin_files
    from nextham.io.csr import write_blocks
    from nextham.io.hdf5 import write_blocks_h5
    from nextham.io.position_file import write_position
    from nextham.io.stru import StruFile, write_stru

    folder.mkdir(parents=True, exist_ok=True)
    ending = {"npz": "npz"}.get(format, "csr")
    main, name = (h0, "hrs0_nao") if hamiltonian is None else (hamiltonian, "hrs1_nao")
    # PyATB reads them side by side and takes it that their lattice vectors are the same list.
    graphs = [main.graph, overlap.graph, *(matrix.graph for matrix in position or ())]
    vectors = np.unique(np.concatenate([graph.R for graph in graphs]), axis=0)
    spin_overlap = overlap.with_spin(4) if main.n_spin == 4 else overlap
    h_file = folder / f"{name}.{ending}"
    h_files = spin_files(h_file) if main.n_spin == 2 else [h_file]
    write_blocks(h_files, main, letter="H", R=vectors, format=format, digits=digits)
    write_blocks(folder / f"srs1_nao.{ending}", spin_overlap, letter="S", R=vectors, format=format, digits=digits)
    if position is not None:
        write_position(folder / "rr.csr", position, spinor=main.n_spin == 4, R=vectors, digits=digits)
    if stru is None:
        write_stru(folder / "STRU", StruFile.from_structure(structure))
    elif stru.resolve() != (folder / "STRU").resolve():
        shutil.copyfile(stru, folder / "STRU")
    matrices = {"H": hamiltonian, "H0": h0, "S": overlap}
    write_blocks_h5(folder / H5_NAME, {name: matrix for name, matrix in matrices.items() if matrix is not None})


def write_summary(folder: Path, summary: dict[str, object]) -> None:
    """Writes summary.json and prints it as a table."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print_summary(folder, summary)


def print_file_summary(output: Path, matrix: str, facts: Mapping[str, object], stages: Stages) -> None:
    """Prints a summary of an `.h5` that was written: what it holds, facts of the command, times and memory.

    Args:
        output: the file.
        matrix: name of the matrix whose edges and spins are told.
        facts: what else is to be told.
        stages: the stages of the command.
    """
    from nextham.cli.progress import peak_memory_mb
    from nextham.io.hdf5 import read_contents_h5

    contents = read_contents_h5(output)
    summary = {
        "structure": contents.structure.formula(),
        "atoms": contents.structure.n_atoms,
        "orbitals": int(contents.basis.n_orbitals_of(contents.structure.numbers).sum()),
        "edges": contents.n_edges[matrix],
        "n_spin": contents.n_spin[matrix],
        **facts,
        "file_mb": round(output.stat().st_size / 1e6, 1),
        "seconds": {name: round(t, 3) for name, t in stages.seconds.items()},
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
    print_summary(output, summary)


def print_summary(written: Path, summary: dict[str, object]) -> None:
    """Prints a summary of what was written, a line for each of its values."""
    lines = {}
    for name, value in summary.items():
        # The unit stands at the end of a name: peak_memory_mb, not_hermitian_by_eV.
        words, _, last = name.rpartition("_")
        name, unit = (words, f" {_UNITS[last]}") if last in _UNITS else (name, "")
        if isinstance(value, dict):
            value = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in value.items())
        lines[name.replace("_", " ")] = (f"{value:.4g}" if isinstance(value, float) else str(value)) + unit
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f" {name:{width}}  {value}")
    print(f"written to {written}")
