"""Fixtures and marks shared by all tests."""

import importlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from nextham_kernels import loading

SHARED = Path(__file__).resolve().parents[2] / "shared"
REQUIRED = [word for word in os.environ.get("NEXTHAM_REQUIRE", "").split(",") if word]

# Read when triton is imported: without a GPU its kernels run by the interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config):
    """`NEXTHAM_REQUIRE=triton-interpreted,nvcc,shared,…`: what is missing of it ends the run, with its reason."""
    for word in REQUIRED:
        try:
            if word == "shared":
                assert SHARED.is_dir(), f"{SHARED} is not there"
            elif word == "pyatb":
                importlib.import_module("pyatb")
            else:
                loading.require(word)
        except (AssertionError, ImportError, RuntimeError, ValueError) as error:
            raise pytest.UsageError(f"NEXTHAM_REQUIRE: {word}: {error}") from error


def pytest_collection_modifyitems(config, items):
    """Deselects the tests of what is not there: the reference data of a checkout that stands alone, programs."""
    absent = set() if SHARED.is_dir() else {"shared"}
    for mark, there in (
        ("triton", "triton" not in loading.missing()),  # it is made for Linux alone; torch may bring an older one
        ("nvcc", shutil.which("nvcc")),
        ("pyatb", importlib.util.find_spec("pyatb")),
    ):
        if not there:
            absent.add(mark)
    dropped = [item for item in items if any(item.get_closest_marker(mark) for mark in absent)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


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


@pytest.fixture(scope="session", autouse=True)
def table_cache(tmp_path_factory):
    """Tables of H(0) are kept in a folder of this run, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEXTHAM_CACHE", str(tmp_path_factory.mktemp("tables")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data beside the checkout; only for tests marked `shared`."""
    assert SHARED.is_dir(), "mark this test `shared`: it reads the reference data"
    return SHARED
