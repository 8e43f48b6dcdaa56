"""Every implementation of every operation: its result is that of the first one, and it is timed."""

import importlib
from functools import cache
from types import ModuleType

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.__main__ import max_rel_diff, parse

# torch 2.10 deprecates TorchScript, which one implementation uses.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@cache
def module_of(op: str) -> ModuleType:
    """The benchmark's module."""
    return importlib.import_module(f"bench.bench_{op}")


@cache
def problem(op: str, case: str) -> object:
    """The input, the same for all implementations."""
    return module_of(op).problem(case, torch.float32, torch.device("cpu"), parse(op, ["--case", case]))


@cache
def expected(op: str, case: str, direction: str) -> dict[str, torch.Tensor]:
    """What the first implementation gives."""
    first = next(iter(module_of(op).IMPLEMENTATIONS.values()))
    return first(problem(op, case))[direction]()


def test_operation(op: str, case: str, direction: str, implementation: str, benchmark: BenchmarkFixture) -> None:
    """Checks, then times."""
    run = module_of(op).IMPLEMENTATIONS[implementation](problem(op, case))[direction]
    for _ in range(3):  # TorchScript compiles at the second and third run
        result = run()
    assert max_rel_diff(result, expected(op, case, direction)) < 1e-3
    benchmark(run)
