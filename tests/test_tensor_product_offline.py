"""Kernels of the standard products compiled for a GPU that is not there: no spills, shared memory within the limit.

`tests/test_offline.py` has those of the benchmarks' first case; these are the products that ask most of registers.
With `NEXTHAM_EVERY_PRODUCT=1` all products of `bench/cases.py` are compiled, plain and radial, in both precisions and
for the compute capabilities 8.0, 9.0 and 10.0.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cases import TENSOR_PRODUCT
from bench.offline import SHARED_MEMORY

ROOT = Path(__file__).resolve().parents[1]

# Linear maps have no benchmark of their own; the op is called with the product's result as its map's operand.
PROGRAM = """
import dataclasses, json, sys
import torch
from bench.cases import TENSOR_PRODUCT
from bench.offline import Call, _compile
from nextham_kernels.ops.tensor_product import conv, linear, product, radial

name, kind, *targets = sys.argv[1:]
torch.set_default_dtype(torch.float64 if kind.endswith("64") else torch.float32)
kind = kind.removesuffix("64")
case = TENSOR_PRODUCT[name]
irreps_out, instructions = case.instructions()
paths = product(case.irreps_1, case.irreps_2, irreps_out, instructions)
meta = lambda *shape: torch.empty(*shape, device="meta")
rows, (d_1, d_2, d_out) = 50_000, paths.dims
weight = meta(paths.n_weights) if case.shared else meta(rows, paths.n_weights)
inputs = (meta(rows, d_1), meta(rows, d_2), weight)
if kind == "linear":
    places = {ir: i for i, ir in enumerate(dict.fromkeys(ir for _, ir in paths.irreps_out))}
    out = "+".join(f"128x{ir}" for ir in places)
    mixes = [(i, 0, places[ir], "uvw", True) for i, (_, ir) in enumerate(paths.irreps_out)]
    line = product(paths.irreps_out, "1x0e", out, mixes)
    inputs += (meta(line.n_weights),)
    words, op, d_out = (paths.word, line.word), "nextham::tensor_product_linear", line.dims[2]
elif kind == "radial":
    index = lambda n: torch.empty(n, device="meta", dtype=torch.int64)
    inputs = (meta(2500, d_1), meta(rows, d_2), meta(rows, 64), meta(64, paths.n_weights), *(index(rows),) * 4)
    words, op, rows = (2500, paths.word), "nextham::tensor_product_radial", 2500
else:
    words, op = (paths.word,), "nextham::tensor_product"
calls = [
    Call(op, (*inputs, *words), None, False),
    Call(f"{op}_backward", (meta(rows, d_out), *inputs, *words, [True] * len(inputs)), None, False),
]
for kernel in _compile(calls, [int(target) for target in targets], ""):
    print(json.dumps(dataclasses.asdict(kernel)))
"""


EVERY = bool(os.environ.get("NEXTHAM_EVERY_PRODUCT"))
TARGETS = ["80", "90", "100"] if EVERY else ["90"]
KINDS = ["", "64"] if EVERY else [""]


def compiled(name, kind):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "python", os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-c", PROGRAM, name, kind, *TARGETS]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def check(kernels):
    assert len({k["function"] for k in kernels}) == 2
    for k in kernels:
        assert k["spills"] == 0, f"{k['name']}: {k['spills']} bytes of local memory"
        assert k["shared"] <= SHARED_MEMORY[k["capability"]] and k["narrow"] == 0, k["name"]


@pytest.mark.triton
def test_no_spills():
    check(compiled("single-777", "product"))


@pytest.mark.triton
@pytest.mark.slow
def test_no_spills_with_a_linear_map():
    check(compiled("mace-medium", "linear"))


LARGE = ["mace-large", "sevennet-l3i5", "diffdock-l2", "nextham", "deeph-e3", "nequip-toluene"]
RADIAL = ["mace-large"]
if EVERY:
    LARGE = sorted(TENSOR_PRODUCT)
    RADIAL = [name for name in LARGE if not TENSOR_PRODUCT[name].shared]


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("bits", KINDS)
@pytest.mark.parametrize("name", LARGE)
def test_no_spills_of_large_products(name, bits):
    check(compiled(name, "product" + bits))


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("bits", KINDS)
@pytest.mark.parametrize("name", RADIAL)
def test_no_spills_of_radial_products(name, bits):
    check(compiled(name, "radial" + bits))
