"""Kernels compiled before they are needed: what is compiled is what a launch looks for, whatever the number of rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import harness
import pytest
import torch

from nextham_kernels import ahead, loading
from nextham_kernels.ops.gate import gate

pytestmark = pytest.mark.triton
ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import json, sys
import torch
from nextham_kernels.ahead import another_gpu, compile_ahead, launches
from nextham_kernels.ops.gate import gate

def run(n, dtype=torch.float32):
    def both():
        x = torch.ones(n, 26, dtype=dtype, requires_grad=True)
        gate(x, "2x0e+3x1o+2x2e").sum().backward()
    return both

keys = lambda *given: sorted(launch.key for launch in launches(run(*given), (9, 0)))
found = {"keys": {str(n): keys(n) for n in (1, 3, 16, 17)}, "double": keys(3, torch.float64)}

from bench import bench_model
from bench.__main__ import parse
for direction in ("forward", "train"):
    for case in ("si2", "si4"):
        options = parse("model", ["--networks", "1"])
        problem = bench_model.problem(case, torch.float32, torch.device("cpu"), options)
        work = bench_model.edge_frame(problem)[direction]
        found[f"{direction} {case}"] = sorted(launch.key for launch in launches(work, (9, 0)))

moves = []
found["compiled"] = [vars(launch) for launch in compile_ahead(run(3), (8, 0), progress=lambda *at: moves.append(at))]
found["moves"] = moves

from triton.backends.nvidia.compiler import CUDABackend
def broken(*args):
    raise ValueError("no such instruction")
CUDABackend.make_ptx = broken
try:
    compile_ahead(run(3), (10, 0))
except RuntimeError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""

# As on the GPU: Triton's own way to a launch, up to the launch itself.
LATER = """
import json
import torch, triton
from triton import knobs
from nextham_kernels.ahead import another_gpu
from nextham_kernels.loading import gpu_kernel
hits = []
def listener(*, src, metadata, cache_hit, **_):
    hits.append([src.name, metadata["hash"], cache_hit])
knobs.compilation.listener = listener
run = triton.JITFunction.run
triton.JITFunction.run = lambda self, *args, grid, warmup, **more: run(self, *args, grid=grid, warmup=True, **more)
with another_gpu((8, 0)):
    x = torch.ones(4096, 26)
    y = gpu_kernel("gate.kernel.forward")(x, "2x0e+3x1o+2x2e", False, 0)
    gpu_kernel("gate.kernel.backward")(y, x, "2x0e+3x1o+2x2e", False, 0, [True])
print(json.dumps(hits))
"""


def python(program, cache):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "python", os.environ.get("PYTHONPATH", ""))))
    environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def found(cache):
    return python(PROGRAM, cache)


def test_the_number_of_rows_changes_no_kernel(found):
    assert len(found["keys"]["3"]) == 2
    assert all(keys == found["keys"]["3"] for keys in found["keys"].values())
    assert not set(found["double"]) & set(found["keys"]["3"])


def test_networks_of_any_structure_have_the_same_kernels(found):
    for direction in ("forward", "train"):
        assert len(found[f"{direction} si2"]) > 20 and found[f"{direction} si2"] == found[f"{direction} si4"]


def test_a_launch_finds_what_was_compiled_ahead(found, cache):
    compiled = found["compiled"]
    assert [(c["function"], c["kernel"]) for c in compiled] == [
        ("gate.kernel.forward", "_forward"),
        ("gate.kernel.backward", "_backward"),
    ]
    assert found["moves"] == [[1, 2], [2, 2]]
    assert python(LATER, cache) == [[c["kernel"], c["key"], True] for c in compiled]


def test_a_kernel_that_does_not_compile_is_named(found):
    words = "gate.kernel.forward _forward for compute capability 10.0 does not compile: no such instruction"
    assert found["error"] == words or found["error"] == words.replace("forward", "backward")


def test_bad_input(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with harness.raises(ValueError, "capability: expected one, such as (9, 0), because torch finds no GPU"):
        ahead.compile_ahead(lambda: None)
    with harness.raises(ValueError, "capability: expected one of 7.0, 7.5, 8.0"):
        ahead.compile_ahead(lambda: None, (99, 0))
    monkeypatch.setattr("triton.JITFunction", int)
    with harness.raises(RuntimeError, "expected triton imported without TRITON_INTERPRET"):
        ahead.launches(lambda: gate(torch.ones(2, 5), "1x0e+1x1o"), (9, 0))


def test_what_a_gpu_is_given_only_inside():
    cpu = torch.device("cpu")
    with loading.gpu_ops():
        assert loading.composed(cpu) and loading.fused(cpu)
    assert not loading.composed(cpu) and not loading.fused(cpu)
    assert loading.composed(torch.device("cuda")) and loading.fused(torch.device("cuda"))
