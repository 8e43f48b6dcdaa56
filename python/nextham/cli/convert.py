"""Converts matrices between ABACUS's files, our .h5, published .pth samples and DeepH folders.

The kind of the output follows from its name: .h5, .pth, .csr (also .csr.gz, .csr.xz), .npz; anything else needs --to.
.h5, .pth, run and deeph take all matrices of the input, the others take one. ABACUS's files of collinear spin are two:
hrs1… and hrs2… where OUTPUT is called hrs1…, else 1-OUTPUT and 2-OUTPUT.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nextham.cli.argument_types import digits, finite
from nextham.cli.sources import MATRIX_HELP, add_source_arguments

if TYPE_CHECKING:
    from nextham.cli.sources import Source

SUMMARY = "between ABACUS CSR, our .h5, published .pth samples and DeepH folders"
EXAMPLES = """\
  nextham convert Si-1 si.h5
  nextham convert si.h5:H hrs1_nao.csr
  nextham convert Si-1 si.pth --fermi 6.93
  nextham convert sample.pth sample.h5 --precision single
  nextham convert Si-1:H hrs1.dat --to binary
  nextham convert si.h5 deeph-si --to deeph"""

KINDS = ("h5", "pth", "text", "text-3.11", "binary", "npz", "run", "deeph")
_BY_ENDING = {".h5": "h5", ".pth": "pth", ".csr": "text", ".csr.gz": "text", ".csr.xz": "text", ".npz": "npz"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham convert`."""
    parser.add_argument("input", metavar="INPUT", help=MATRIX_HELP)
    parser.add_argument("output", metavar="OUTPUT", help="file or folder to write")
    parser.add_argument("--to", choices=KINDS, help="what to write, where the name of OUTPUT does not say it")
    parser.add_argument("--overlap", metavar="MATRIX", help="S, where it is not beside INPUT")
    parser.add_argument(
        "--digits", type=digits, default=8, metavar="N", help="digits behind the point in text (default 8)"
    )
    parser.add_argument("--precision", choices=("single", "double"), help="of an .h5 (default: as the input has it)")
    parser.add_argument("--fermi", type=finite, metavar="EV", help="Fermi level, eV, where the input does not say it")
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs `nextham convert`."""
    from nextham.cli.run_folder import check_output, check_output_file
    from nextham.cli.sources import open_matrix, open_overlap, spin_files

    source, name = open_matrix(args.input, args)
    kind = args.to or next((k for end, k in _BY_ENDING.items() if args.output.lower().endswith(end)), None)
    if kind is None:
        raise ValueError(f"output: the name {args.output!r} does not say what to write: give --to {'|'.join(KINDS)}")
    output, efermi = Path(args.output), args.fermi if args.fermi is not None else source.efermi
    (check_output if kind in ("run", "deeph") else check_output_file)(output)
    if args.overlap:
        source.matrices["S"] = lambda: open_overlap(args.overlap, args)
    output.parent.mkdir(parents=True, exist_ok=True)
    written = [output]
    if kind == "h5":
        _write_h5(output, source, efermi, args.precision)
    elif kind == "pth":
        _write_pth(output, source, efermi)
    elif kind == "deeph":
        from nextham.io.deeph import write_deeph

        write_deeph(output, source.read("S"), source.read(name), efermi)
    elif kind == "run":
        from nextham.cli.run_folder import write_run

        h0 = source.read("H0") if "H0" in source.names() else None
        write_run(output, source.structure, source.read("H"), h0, source.read("S"), source.stru, digits=args.digits)
    else:
        from nextham.io.csr import write_blocks

        matrix = source.read(name)
        written = spin_files(output) if matrix.n_spin == 2 else [output]
        write_blocks(written, matrix, letter="S" if name == "S" else "H", format=kind, digits=args.digits)
    print(f"{args.input} → {' and '.join(map(str, written))} ({kind}, {_size(written)})")
    return 0


def _write_h5(output: Path, source: Source, efermi: float | None, precision: str | None) -> None:
    from nextham.io.hdf5 import write_blocks_h5

    metadata = {} if efermi is None else {"efermi_eV": efermi}
    write_blocks_h5(output, {name: source.read(name) for name in source.names()}, metadata, precision)


def _write_pth(output: Path, source: Source, efermi: float | None) -> None:
    from nextham.io.published_sample import PublishedSample, kpoint_mesh, write_published

    if efermi is None:
        raise ValueError("fermi: a published sample needs the Fermi level: give --fermi")
    matrices = (source.read(name) for name in ("H0", "H", "S"))
    sample = PublishedSample.from_matrices(*matrices, kpoint_mesh(), fermi=efermi, name=source.path.name)
    write_published(output, sample)


def _size(paths: list[Path]) -> str:
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return f"{size / 1e6:.2f} MB"
