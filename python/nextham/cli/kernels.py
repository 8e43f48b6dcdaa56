"""Compiles the GPU kernels of a command before it runs, on this machine or for another one.

A GPU's first call otherwise waits until what it meets is compiled, for minutes on few processors. `compile` finds out
what `nextham predict` (a STRUCTURE and --model) or `nextham train` (--settings) will launch, by running it on a
cell of a few atoms of the same elements on the CPU, and compiles that on all processors into Triton's cache
(~/.triton/cache, or the folder of TRITON_CACHE_DIR). No GPU is needed: --capability says for which one it is. The cache
may be copied to the machine that has it, if triton and this package are the same there. Give the options of the later
run: other elements, networks or precision have kernels of their own.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nextham.structure import Structure
    from nextham.train import TrainSettings

SUMMARY = "compile the GPU kernels of a later run"
EXAMPLES = """\
  nextham kernels compile STRU --model models/v1
  nextham kernels compile POSCAR --basis DIR --model models/v1 --capability 9.0
  nextham kernels compile --settings train.yaml"""

SPACING = 1.9
"""Å between the atoms of the small cell: every network's range has edges, all elements are neighbours."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `nextham kernels`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    command = actions.add_parser(
        "compile",
        help="compile what a command will launch",
        description=__doc__,
        epilog="examples:\n" + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "structure", nargs="?", metavar="STRUCTURE", help="the structure that `nextham predict` will read"
    )
    command.add_argument("--model", metavar="DIR", help="the model folder of that prediction")
    command.add_argument(
        "--basis",
        metavar="DIR",
        help="its folder of .orb and .upf files, if it has one: compiles the kernels of H0 too",
    )
    command.add_argument("--orbitals", metavar="DIR", help="its folder of the .orb files that the STRU names")
    command.add_argument("--precision", choices=("single", "double"), default="single", help="of its networks")
    command.add_argument("--settings", metavar="FILE", help="settings of `nextham train`, in place of all these")
    command.add_argument(
        "--capability", type=_capability, metavar="X.Y", help="compute capability (default: of this machine's GPU)"
    )


def _capability(word: str) -> tuple[int, int]:
    if not re.fullmatch(r"\d+\.\d", word):
        raise argparse.ArgumentTypeError(f"expected a compute capability such as 9.0, got {word!r}")
    major, minor = word.split(".")
    return int(major), int(minor)


def run(args: argparse.Namespace) -> int:
    """Runs `nextham kernels`."""
    import time

    import torch

    from nextham.cli.progress import bar
    from nextham.train import read_settings
    from nextham_kernels.ahead import compile_ahead

    if (args.settings is None) == (args.structure is None) or (args.model is None) != (args.structure is None):
        raise ValueError("structure, settings: give either STRUCTURE and --model, or --settings")
    if args.capability is None and not torch.cuda.is_available():
        raise ValueError("capability: expected one, such as 9.0 for an H100 or H200, because torch finds no GPU")
    work = prediction(args) if args.settings is None else training(read_settings(args.settings))
    start = time.perf_counter()
    with bar("kernels") as move:
        found = compile_ahead(work, args.capability, progress=move)
    major, minor = args.capability or torch.cuda.get_device_capability()
    seconds = time.perf_counter() - start
    print(f"{len(found)} kernels for compute capability {major}.{minor} in {seconds:.0f} s")
    return 0


def small_cell(structure: Structure) -> Structure:
    """Returns a cubic cell whose places are taken by the elements in turn."""
    import itertools

    import numpy as np

    from nextham.structure import Structure

    elements = structure.species()
    if not elements:
        raise ValueError("structure: expected atoms, got none")
    side = next(n for n in itertools.count(1) if n**3 >= len(elements))
    places = SPACING * np.array(list(itertools.product(range(side), repeat=3)), dtype=float)
    numbers = [elements[i % len(elements)] for i in range(len(places))]
    return Structure(side * SPACING * np.eye(3), places, numbers)


def prediction(args: argparse.Namespace) -> Callable[[], object]:
    """Returns what `nextham predict` computes, for the small cell."""
    import numpy as np

    from nextham.basis import Basis
    from nextham.blocks import Blocks
    from nextham.cli.sources import read_atoms
    from nextham.graph import neighbour_graph
    from nextham.h0 import AtomicFiles, build_h0
    from nextham.io.structure_file import read_structure
    from nextham.model import load_any, predict_delta

    ensemble = load_any(args.model)
    if args.precision == "double":
        ensemble = ensemble.double()
    if args.basis is not None:
        structure = read_structure(args.structure)
        files = AtomicFiles.read(args.basis, structure.numbers)
        cell = small_cell(structure)

        def from_files() -> None:
            predict_delta(ensemble, build_h0(cell, files)[0])

        return from_files
    structure, basis, _ = read_atoms(args.structure, args.orbitals)
    cell = small_cell(structure)
    basis = Basis({z: basis[z] for z in structure.species()})
    h0 = Blocks.zeros(neighbour_graph(cell, ensemble.config.cutoff), basis, 4, np.complex128)
    return lambda: predict_delta(ensemble, h0)


def training(settings: TrainSettings) -> Callable[[], object]:
    """Returns what a step of `nextham train` and its validation compute, for a small cell."""
    import dataclasses

    import numpy as np
    import torch

    from nextham.graph import neighbour_graph
    from nextham.structure import Structure
    from nextham.train.trainer import make_ensemble

    ensemble = make_ensemble(dataclasses.replace(settings, run=dataclasses.replace(settings.run, device="cpu")))
    config = ensemble.config
    cell = small_cell(Structure(np.eye(3), np.zeros((1, 3)), [14]))  # the dataset's layout is that of all elements
    graph = neighbour_graph(cell, config.cutoff)
    src, dst = torch.from_numpy(graph.src), torch.from_numpy(graph.dst)
    vector = torch.from_numpy(graph.vector()).to(ensemble.dtype)
    n = sum(2 * l + 1 for l in config.shells)
    kind = ensemble.dtype.to_complex() if config.spinor else ensemble.dtype

    def step() -> None:
        blocks = torch.zeros(len(src), 4 if config.spinor else 1, n, n, dtype=kind)
        h0 = ensemble.irreps_of_blocks(blocks).to(ensemble.dtype)
        geometry = ensemble.geometry(src, dst, vector)
        for recorded, with_trace in ((True, True), (False, True), (False, False)):
            with torch.set_grad_enabled(recorded):
                found = ensemble.on_geometries(h0, [geometry], with_trace)
                correction = ensemble.correction(found.irreps)
                loss = correction.abs().sum() + (found.trace.sum() if with_trace else 0)
            if recorded:
                loss.backward()

    return step
