"""Runs every benchmark through pytest-benchmark: `pytest bench/ [--case NAME]`."""

import importlib

import pytest

from bench.__main__ import operations


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the choice of the case."""
    parser.addoption("--case", help="case of every operation (default: its first, the smallest)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes a test of every operation, direction and implementation."""
    found = []
    for op in operations():
        module = importlib.import_module(f"bench.bench_{op}")
        case = metafunc.config.getoption("--case") or next(iter(module.CASES))
        found += [(op, case, direction, name) for direction in module.DIRECTIONS for name in module.IMPLEMENTATIONS]
    metafunc.parametrize(("op", "case", "direction", "implementation"), found, ids=["-".join(each) for each in found])
