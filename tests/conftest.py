"""Fixtures and marks shared by all tests."""

import sys
from pathlib import Path

import pytest

from nextham_kernels import loading

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(config, items):
    """Deselects the tests of the reference data where a checkout stands alone."""
    if SHARED.is_dir():
        return
    absent = [item for item in items if item.get_closest_marker("shared")]
    config.hook.pytest_deselected(items=absent)
    items[:] = [item for item in items if not item.get_closest_marker("shared")]


def pytest_generate_tests(metafunc):
    """Runs a test with `instruction_set` once for each that this processor has."""
    if "instruction_set" in metafunc.fixturenames:
        metafunc.parametrize("instruction_set", loading.instruction_sets(), indirect=True)


@pytest.fixture
def instruction_set(request, monkeypatch) -> str:
    """All kernels are those of this instruction set."""
    chosen = loading.kernels(request.param)
    for name, module in list(sys.modules.items()):
        if name.startswith("nextham_kernels.ops.") and hasattr(module, "kernels"):
            monkeypatch.setattr(module, "kernels", lambda: chosen)
    return request.param


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data beside the checkout; only for tests marked `shared`."""
    assert SHARED.is_dir(), "mark this test `shared`: it reads the reference data"
    return SHARED
