"""Builds a dataset for training: H0, converged H and S of many structures in one HDF5 file.

Each DIR is a run folder of ABACUS (STRU beside hrs0_nao.csr, hrs1_nao.csr and srs1_nao.csr), a published .pth sample, a
packed sample (.npz.xz), an .h5 file with H0, H and S, or a folder of such. Every sample is checked: H0, H and S
Hermitian, S positive definite at the Gamma point, converged where a log or info.json says so, Fermi level known. The
refused ones are listed with the reason, also in the file. An interrupted build goes on where it stopped; building into
an existing file adds to it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

SUMMARY = "build a dataset for training from many calculations"
EXAMPLES = """\
  nextham dataset build runs/ -o data.h5
  nextham dataset build runs/Si-1 runs/GaAs-1 more/*.pth -o data.h5 --jobs 8
  nextham info data.h5"""

_ENDINGS = (".pth", ".npz.xz", ".h5")
_FOLDER_FILES = ("STRU", "hamiltonian.h5", "overlap.h5")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham dataset`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser(
        "build",
        help="read, check and store samples",
        description=__doc__,
        epilog="examples:\n" + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("sources", nargs="+", metavar="DIR", help="samples, or folders of samples")
    build.add_argument("-o", "--output", required=True, metavar="FILE", help="the dataset, usually data.h5")
    build.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (default: all cores)")
    build.add_argument(
        "--precision", choices=("single", "double"), default="single", help="of the numbers (default single)"
    )
    build.add_argument(
        "--no-eigenvectors",
        action="store_true",
        help="leave out the eigenvectors of published samples; training then solves for its own",
    )


def run(args: argparse.Namespace) -> int:
    """Runs `nextham dataset`."""
    from nextham.cli.progress import bar
    from nextham.dataset import Dataset, join, remove_parts

    if args.jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {args.jobs}")
    found = list(find_samples(args.sources))
    if not found:
        raise ValueError(f"no samples in {', '.join(args.sources)}: expected run folders, .pth, .npz.xz or .h5 files")
    output = Path(args.output)
    parts = output.with_name(output.name + ".parts")
    known = {s.name: s.source for s in Dataset(output).samples.values()} if output.exists() else {}
    tasks, names = [], {}
    for path in found:
        task = Task(sample_name(path), str(path), str(parts), args.precision, not args.no_eigenvectors)
        if task.name in names:
            raise ValueError(f"two samples have the name {task.name}: {names[task.name]} and {path}")
        names[task.name] = path
        tasks.append(task)
    wanted = [t for t in tasks if known.get(t.name) != t.source]
    refused: dict[str, str] = {}
    with bar("samples") as progress:
        for done, result in enumerate(_results(wanted, args.jobs), start=1):
            if result.refused:
                refused[result.source] = result.refused
                print(f"refused: {result.source}: {result.refused}", file=sys.stderr)
            progress(done, len(wanted))
    ready = [parts / f"{t.name}.h5" for t in wanted if t.source not in refused]
    if ready or not output.exists():
        join(output, ready, refused)
    remove_parts(parts)
    total = len(Dataset(output))
    print(
        f"{output}: {total} samples ({len(ready)} added, {len(tasks) - len(wanted)} already there, "
        f"{len(refused)} refused), {output.stat().st_size / 1e6:.1f} MB"
    )
    return 0 if total else 1


def find_samples(sources: list[str]) -> Iterator[Path]:
    """Yields the samples that the given files and folders are or hold."""
    for source in map(Path, sources):
        if not source.exists():
            raise ValueError(f"{source}: no such file or folder")
        if source.is_file() or _is_sample(source):
            yield source
            continue
        for folder, below, files in os.walk(source):
            below.sort()
            here = Path(folder)
            for child in list(below):
                if _is_sample(here / child):
                    below.remove(child)
                    yield here / child
            yield from (here / file for file in sorted(files) if file.endswith(_ENDINGS))


def _is_sample(folder: Path) -> bool:
    """Whether it is meant as a run; one without STRU is refused by name, not passed over."""
    return any((folder / name).is_file() for name in _FOLDER_FILES) or any(folder.glob("hrs[01]*_nao.csr*"))


def sample_name(path: Path) -> str:
    """The name of a sample: its folder's or file's, without ending."""
    name = path.resolve().name
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name


class Task(NamedTuple):
    """One sample to read, check and write."""

    name: str
    source: str
    parts: str
    precision: str
    eigenvectors: bool


class Result(NamedTuple):
    """What became of it."""

    source: str
    refused: str


def _results(tasks: list[Task], jobs: int) -> Iterator[Result]:
    if jobs == 1 or len(tasks) < 2:
        yield from map(build_part, tasks)
        return
    # Fresh processes: a fork of one that runs torch's threads may hang.
    with ProcessPoolExecutor(min(jobs, len(tasks)), multiprocessing.get_context("spawn"), _one_thread) as pool:
        for future in as_completed([pool.submit(build_part, task) for task in tasks]):
            yield future.result()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def build_part(task: Task) -> Result:
    """Reads, checks and writes one sample, unless an earlier build did."""
    from nextham.dataset import Refused, check_sample, write_part
    from nextham.io.errors import FileError
    from nextham.io.hdf5 import read_contents_h5

    folder = Path(task.parts)
    part = folder / f"{task.name}.h5"
    if part.exists() and read_contents_h5(part).metadata["source"] == task.source:
        return Result(task.source, "")
    try:
        matrices, converged, efermi, extra = _read(task)
        facts = check_sample(matrices, converged, efermi)
    except (FileError, Refused, ValueError) as error:
        return Result(task.source, str(error).removeprefix(f"{task.source}: "))
    write_part(folder, task.name, matrices, {**facts, **extra, "source": task.source}, task.precision)
    return Result(task.source, "")


def _read(task: Task) -> tuple[dict, bool | None, float | None, dict]:
    """Matrices, convergence, Fermi level and what else to keep."""
    from nextham.cli.sources import open_source
    from nextham.io.published_sample import read_published

    path = Path(task.source)
    if path.suffix == ".pth":
        sample = read_published(path)
        matrices = {"H0": sample.H0, "H": sample.H0 + sample.delta, "S": sample.S}
        extra = {"kpoints": sample.kpoints, "eigenvectors": sample.eigenvectors} if task.eigenvectors else {}
        return matrices, None, _fermi_of_cut(matrices, sample.band_cut), {**extra}
    if path.is_dir() and not any((path / name).is_file() for name in _FOLDER_FILES):
        raise ValueError("there is no STRU")
    source = open_source(path)
    matrices = {name: source.read(name) for name in ("H0", "H", "S") if name in source.names()}
    return matrices, source.converged, source.efermi, {}


def _fermi_of_cut(matrices: dict, band_cut: int) -> float:
    """A Fermi level that gives the band_cut of a published sample, which does not say its own.

    It is 10 eV below the middle of the two levels at Γ between which the cut lies.
    """
    import numpy as np

    from nextham.kspace import bands_at

    levels = bands_at(matrices["H"], matrices["S"], np.zeros((1, 3)))[0]
    return float(levels[band_cut] + levels[min(band_cut + 1, len(levels) - 1)]) / 2 - 10.0
