"""The grid of H of step zero, op by op: silicon, displaced, with the Gaussian functions of `bench_h0`.

Directions are the ops: `superposition`, `xc_potential` and `grid_integrals`, each on what `nextham.h0` gives it the
first time, all bricks of these structures together. Bricks have 16³ points, on a GPU 8³ (`--brick`). H of step zero is
computed in double precision (`--dtype float64`). Bytes and flops are counted by the GPU's kernels (`--static`) alone.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch

from bench import bench_h0
from nextham.h0 import local, overlap_and_kinetic
from nextham_kernels.loading import use_reference
from nextham_kernels.ops.grid_integrals import grid_integrals
from nextham_kernels.ops.superposition import superposition
from nextham_kernels.ops.xc_potential import xc_potential

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "add_arguments", "problem", "recorded"]

CASES = {name: bench_h0.CASES[name] for name in ("si1", "si2", "si64", "si512")}
OPS = {"superposition": superposition, "xc_potential": xc_potential, "grid_integrals": grid_integrals}
DIRECTIONS = tuple(OPS)

Arguments = tuple[object, ...]
Runs = dict[str, Callable[[], dict[str, torch.Tensor]]]


@dataclass(frozen=True, eq=False)
class Problem:
    """Arguments of each op."""

    arguments: dict[str, Arguments]

    def gflop(self, direction: str) -> None:
        """Returns None: arithmetic is not counted."""

    def gbytes(self, direction: str) -> None:
        """Returns None: bytes are not counted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("--brick", type=int, help="points of a brick along each axis")


def recorded(case: str, brick: int) -> dict[str, Arguments]:
    """Returns what `nextham.h0.local_potential` calls each op with the first time: op → arguments, on the CPU."""
    structure, files = bench_h0.silicon(*CASES[case]), bench_h0.gaussian()
    overlap, _ = overlap_and_kinetic(structure, files.orbitals)
    found: dict[str, Arguments] = {}

    def noting(name: str) -> Callable:
        def run(*arguments: object) -> torch.Tensor:
            found.setdefault(name, arguments)
            return OPS[name](*arguments)

        return run

    with (
        mock.patch.object(local, "BRICK", brick),
        mock.patch.multiple(
            local,
            superposition=noting("superposition"),
            xc_at=noting("xc_potential"),
            grid_integrals=noting("grid_integrals"),
        ),
    ):
        local.local_potential(overlap, files.orbitals, files.pseudopotentials, memory_budget=1 << 40)
    return found


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Notes the arguments of a calculation on the CPU."""
    brick = arguments.brick or (local.BRICK if device.type == "cpu" else local.BRICK_ON_GPU)

    def moved(x: object) -> object:
        if not isinstance(x, torch.Tensor):
            return x
        return x.to(device, dtype) if x.is_floating_point() else x.to(device)

    return Problem({name: tuple(map(moved, x)) for name, x in recorded(case, brick).items()})


def kernel(problem: Problem) -> Runs:
    """The ops."""

    def run_of(name: str) -> Callable[[], dict[str, torch.Tensor]]:
        return lambda: {"y": OPS[name](*problem.arguments[name])}

    return {name: run_of(name) for name in DIRECTIONS}


def reference(problem: Problem) -> Runs:
    """Their references, in plain torch."""

    def run_of(run: Callable) -> Callable[[], dict[str, torch.Tensor]]:
        def slowly() -> dict[str, torch.Tensor]:
            with use_reference():
                return run()

        return slowly

    return {name: run_of(run) for name, run in kernel(problem).items()}


IMPLEMENTATIONS = {"kernel": kernel, "reference": reference}
