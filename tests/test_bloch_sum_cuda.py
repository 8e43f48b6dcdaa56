"""The CUDA kernels of bloch_sum: compiled for GPUs, and run as plain C++ through the calls that CuPy would get."""

import contextlib
import ctypes
import importlib
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import harness
import pytest
import torch
from test_bloch_sum import arguments

from nextham_kernels.ops.bloch_sum import reference

FOLDER = Path(importlib.util.find_spec("nextham_kernels.ops.bloch_sum").origin).parent
CASES = ["one orbital", "ragged", "spinor", "many k-points", "production"]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The kernels as plain C++."""
    path = tmp_path_factory.mktemp("bloch_sum") / "host.so"
    source = Path(__file__).with_name("bloch_sum_host.cpp")
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    command = [shutil.which("c++"), *flags, f"-I{FOLDER}", "-x", "c++", str(source), "-o", str(path)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(path))


class RawModule:
    """What CuPy's has, on the CPU."""

    library = None

    def __init__(self, code, options):
        assert code == (FOLDER / "kernel.cu").read_text(encoding="utf-8") and options == ("--std=c++17",)

    def get_function(self, name):
        def run(grid, block, args):
            assert block == (256,) and all(g > 0 for g in grid)
            size = (ctypes.c_uint * 3)(*grid, *[1] * (3 - len(grid)))
            kinds = {"int64": ctypes.c_longlong, "int32": ctypes.c_int, "int": ctypes.c_void_p}
            getattr(self.library, f"host_{name}")(size, *(kinds[type(a).__name__](int(a)) for a in args))

        return run


@pytest.fixture
def cuda(library, monkeypatch):
    """`bloch_sum/cuda.py` with such a CuPy."""
    monkeypatch.setattr(RawModule, "library", library)
    stream = types.SimpleNamespace(ExternalStream=lambda pointer, device: contextlib.nullcontext())
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(RawModule=RawModule, cuda=stream))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: types.SimpleNamespace(cuda_stream=0))
    monkeypatch.delitem(sys.modules, "nextham_kernels.ops.bloch_sum.cuda", raising=False)
    yield importlib.import_module("nextham_kernels.ops.bloch_sum.cuda")
    del sys.modules["nextham_kernels.ops.bloch_sum.cuda"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("case", CASES)
def test_kernels_are_the_definition(cuda, case, dtype):
    given = arguments(case, dtype)
    blocks = given[0].clone().requires_grad_()
    expected = reference.bloch_sum(blocks, *given[1:])
    tolerance = harness.EXACT if expected.dtype == torch.float64 else 1e-6
    harness.assert_close(cuda.forward(*given), expected, tolerance)
    grad = harness.random(*expected.shape, seed=4).to(expected.dtype)
    (grad_blocks,) = torch.autograd.grad(expected, blocks, grad)
    found = cuda.backward(grad, *given, [True, False, False, False])
    harness.assert_close(found[0], grad_blocks, tolerance)


def test_nothing_to_sum(cuda):
    blocks, coefficient, edges, pairs, size, spins = arguments("ragged", torch.float64)
    dense = cuda.forward(blocks[:0], coefficient, edges[:0], pairs[:1], size, spins)
    assert dense.shape == (coefficient.shape[1], size, size, 2) and not dense.any()
    none = coefficient[:, :0]
    assert cuda.forward(blocks, none, edges, pairs, size, spins).shape == (0, size, size, 2)
    found = cuda.backward(dense[:0], blocks, none, edges, pairs, size, spins, [True, False, False, False])
    assert not found[0].any()


def test_phases_have_no_derivative(cuda):
    given = arguments("ragged", torch.float64)
    with pytest.raises(RuntimeError, match="no derivative with respect to the phases"):
        cuda.backward(cuda.forward(*given), *given, [True, True, False, False])


@pytest.mark.nvcc
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiled_for_gpus_without_spills(capability, tmp_path):
    flags = ["-std=c++17", "-Werror", "all-warnings", "-Xptxas", "-v", "-cubin", f"-arch=sm_{capability}"]
    command = ["nvcc", *flags, str(FOLDER / "kernel.cu"), "-o", str(tmp_path / "kernel.cubin")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", run.stderr)
    assert len(spills) == 8 and all(set(numbers) == {"0"} for numbers in spills), run.stderr
