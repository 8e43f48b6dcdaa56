"""Says what a file or folder is and what it holds, by its content; exit code 1 where one of them is nothing known."""

from __future__ import annotations

import argparse
import sys

SUMMARY = "what is this file"
EXAMPLES = """\
  nextham info hrs1_nao.csr
  nextham info Si-1 predicted/hamiltonian.h5 STRU Si.upf
  nextham info data.h5
  nextham info --kernels"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham info`."""
    parser.add_argument("path", nargs="*", metavar="FILE", help="files or folders")
    parser.add_argument("--kernels", action="store_true", help="which kernel serves which op on this machine")


def run(args: argparse.Namespace) -> int:
    """Runs `nextham info`."""
    from nextham.io.detect import KINDS, identify
    from nextham.io.errors import FileError

    if not args.path and not args.kernels:
        raise ValueError("FILE: expected files or folders, or --kernels")
    if args.kernels:
        print_kernels()
    failed = False
    for path in args.path:
        try:
            found = identify(path)
        except FileError as error:  # the others are wanted all the same
            print(f"nextham: {error}", file=sys.stderr)
            failed = True
            continue
        print(f"{path}: {KINDS[found.kind]}\n  {found.facts}")
        if found.kind == "dataset":
            print_dataset(path)
    return int(failed)


def print_kernels() -> None:
    """Prints which kernel serves which op on this machine, and what is missing."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from nextham_kernels.coverage import coverage
    from nextham_kernels.loading import instruction_sets, loaded, missing, reference_only

    console = Console()
    if not reference_only():
        console.print(f"CPU: {instruction_sets()[-1]}")
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    console.print(f"GPU: {', '.join(gpus) or f'torch {torch.__version__} finds none'}")
    for kind, why in missing().items():
        console.print(f"{kind}: {why}", soft_wrap=True, markup=False)
    table = Table()
    for column in ("op", "cpu", "cuda", "cuda, backward", "double backward"):
        table.add_column(column)
    orders = coverage()
    for op, devices in loaded().items():
        table.add_row(op, devices["cpu"], devices.get("cuda", "–"), *orders.get(op, ("–",) * 3)[1:])
    console.print(table)
    console.print("composed: of our kernels; reference: plain torch (nextham_kernels.coverage says why)")


def print_dataset(path: str) -> None:
    """Prints the statistics of a dataset: totals, materials, elements, what was refused."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from nextham.dataset import Dataset

    dataset = Dataset(path)
    samples = list(dataset.samples.values())
    console = Console()
    if samples:
        edges, atoms = (np.array([getattr(s, name) for s in samples]) for name in ("n_edges", "n_atoms"))
        error, size = np.array([s.h0_mae for s in samples]), dataset.bytes_of()
        table = Table(show_header=False, box=None)
        for name, values in (
            ("atoms", atoms),
            ("orbitals", np.array([s.n_orbitals for s in samples])),
            ("edges", edges),
        ):
            table.add_row(
                name, f"{values.sum():,} in all, {values.min():,} to {values.max():,}, mean {values.mean():,.1f}"
            )
        words = f"mean {error.mean():.3f}, {error.min():.3f} to {error.max():.3f}"
        table.add_row("H0 gauge MAE / meV", words)
        total = sum(size.values())
        table.add_row("size", f"{total / 1e6:.2f} MB, {total / max(1, edges.sum()):,.0f} bytes per edge below 8 Å")
        console.print(table)
        table = Table()
        for column in ("material", "samples", "atoms", "edges", "H0 / meV"):
            table.add_column(column, justify="left" if column == "material" else "right")
        for material in sorted({s.material for s in samples}):
            of = [s for s in samples if s.material == material]
            values = (len(of), sum(s.n_atoms for s in of), sum(s.n_edges for s in of))
            table.add_row(material, *(f"{x:,}" for x in values), f"{np.mean([s.h0_mae for s in of]):.3f}")
        console.print(table)
        elements = sorted({e for s in samples for e in s.elements})
        counts = (f"{e} {sum(e in s.elements for s in samples)}" for e in elements)
        console.print("samples with each element: " + ", ".join(counts), soft_wrap=True)
    for source, why in dataset.refused.items():
        console.print(f"refused: {source}: {why}", soft_wrap=True, markup=False)
