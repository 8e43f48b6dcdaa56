"""What runs where: the table of kernels, the signatures of GPU kernels, the switch, a missing package."""

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import types

import harness
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import nextham_kernels.ops
from nextham_kernels import loading
from nextham_kernels.loading import gpu_kernel, loaded, use_interpreter
from nextham_kernels.ops.gate import gate, reference
from nextham_kernels.registration import GPU_KERNELS

for module in pkgutil.walk_packages(nextham_kernels.ops.__path__, "nextham_kernels.ops."):
    if module.name.rsplit(".", 1)[1] not in ("kernel", "cuda"):
        importlib.import_module(module.name)

TRITON = sorted(name for name in GPU_KERNELS.values() if ".kernel." in name)


def test_the_table_is_what_the_ops_registered():
    ours = [o for o in torch._C._dispatch_get_all_op_names() if o.startswith("nextham::")]
    forward = {o.removeprefix("nextham::") for o in ours} - {"number_text"}
    forward = {name for name in forward if name.removesuffix("_backward") not in forward - {name}}
    table = loaded()
    assert forward == set(table) - {"number_text"}
    for op in forward:
        name = GPU_KERNELS.get(f"nextham::{op}")
        kind = "reference" if name is None else "triton" if ".kernel." in name else "cupy"
        assert table[op]["cuda"] == kind, op


@pytest.mark.triton
@pytest.mark.parametrize("name", TRITON)
def test_a_gpu_kernel_has_the_signature_of_the_cpu_kernel_and_counts_its_cost(name):
    function, count = gpu_kernel(name), gpu_kernel(f"{name}_cost")
    given = list(inspect.signature(function).parameters)
    assert list(inspect.signature(count).parameters) == given
    on_cpu = importlib.import_module(f"nextham_kernels.ops.{name.split('.')[0]}.cpu")
    same = getattr(on_cpu, name.rsplit(".", 1)[1], None)
    if same is not None:
        assert list(inspect.signature(same).parameters) == given


@pytest.mark.triton
def test_ops_run_their_triton_kernels_inside_the_interpreter():
    x = harness.random(3, 5)
    assert loaded()["gate"]["cpu"] == "cpp"
    with use_interpreter():
        assert loaded()["gate"]["cpu"] == "triton-interpreted"
        assert loaded()["number_text"]["cpu"] == "cpp"
        harness.assert_close(gate(x, "1x0e+1x1o"), reference.gate(x, "1x0e+1x1o", False, 0))


PROGRAM = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from nextham_kernels.loading import gpu_kernel, loaded
from nextham_kernels.ops.gate import gate
gate(torch.zeros(2, 5), "1x0e+1x1o")
print(loaded()["gate"]["cpu"])
"""


@pytest.mark.triton
@pytest.mark.parametrize(
    ("first", "mode", "expected"),
    [
        ("", "triton-interpreted", "triton-interpreted"),
        ("import triton", "triton-interpreted", "expected TRITON_INTERPRET=1 set before triton is imported"),
        ("import sys; sys.modules['triton'] = None", "triton-interpreted", "run `pip install 'nextham-kernels[gpu]'`"),
        ("import sys; sys.modules['triton'] = None", "", "cpp"),
    ],
)
def test_one_switch(first, mode, expected):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", first + PROGRAM],
        env={**environment, "NEXTHAM_KERNELS": mode},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in (run.stdout + run.stderr).splitlines()[-1], run.stderr


def test_a_missing_cupy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with harness.raises(RuntimeError, "eigh.cuda.forward needs cupy, which cannot be imported: run `pip install"):
        loading.gpu_kernel.__wrapped__("eigh.cuda.forward")


def test_an_old_triton_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__="3.2.0"))
    assert loading.missing()["triton"].startswith("a GPU kernel needs triton 3.6 or newer, got 3.2.0: run `pip")


def test_what_is_required_and_missing_gives_its_reason(monkeypatch):
    loading.require("cpp", "scalar")
    with harness.raises(ValueError, "kind: expected one of cpp, scalar, avx2, avx512, amx, triton"):
        loading.require("sse")
    monkeypatch.setattr(loading, "instruction_sets", lambda: ["scalar", "avx2"])
    with harness.raises(RuntimeError, "amx: this processor and this build have scalar, avx2 alone"):
        loading.require("amx")
    for package in ("triton", "cupy"):
        monkeypatch.setitem(sys.modules, package, None)
        with harness.raises(RuntimeError, f"needs {package}, which cannot be imported: run `pip install"):
            loading.require(package)
    monkeypatch.setenv("PATH", "")
    with harness.raises(RuntimeError, "nvcc is not on the PATH"):
        loading.require("nvcc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with harness.raises(RuntimeError, f"cuda: torch {torch.__version__} "):
        loading.require("cuda")
    monkeypatch.setitem(sys.modules, "nextham_kernels._C", None)
    with harness.raises(RuntimeError, "the compiled kernels nextham_kernels._C are missing: run `pip install .`"):
        loading.require("cpp")


@pytest.mark.parametrize(
    ("word", "code", "words"),
    [("scalar", 0, "tests collected"), ("sse", 4, "NEXTHAM_REQUIRE: sse: kind: expected one of")],
)
def test_tests_end_where_something_required_is_missing(word, code, words):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/test_layers.py"]
    environment = {**os.environ, "NEXTHAM_REQUIRE": word}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == code and words in run.stdout + run.stderr


class Names(TorchDispatchMode):
    """Notes the operators that pass the dispatcher."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_plain_tensors_pass_by_the_dispatcher_and_modes_do_not():
    given = {"x": harness.random(3, 5)}
    harness.assert_same_gradients(
        lambda x: gate(x, "1x0e+1x1o"), lambda x: torch.ops.nextham.gate(x, "1x0e+1x1o", False, 0), given
    )
    x = harness.leaf(given["x"])
    assert "Node" in type(gate(x, "1x0e+1x1o").grad_fn).__name__
    with Names() as names:
        torch.autograd.grad(gate(x, "1x0e+1x1o").sum(), x)
    assert {"nextham.gate.default", "nextham.gate_backward.default"} <= set(names.seen)
    with torch.no_grad():
        assert not gate(x, "1x0e+1x1o").requires_grad
