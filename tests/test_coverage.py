"""Every op has a GPU kernel of every order or a reason why not, and every GPU kernel has its test."""

import ast
from pathlib import Path

from nextham_kernels.coverage import ORDERS, WITHOUT_KERNEL, coverage
from nextham_kernels.loading import loaded
from nextham_kernels.registration import GPU_KERNELS, GPU_ORDERS


def test_what_has_no_kernel_has_a_reason():
    table = coverage()
    plain = {(op, ORDERS[i]) for op, row in table.items() for i, kind in enumerate(row) if kind == "reference"}
    assert plain <= set(WITHOUT_KERNEL), f"no GPU kernel, no reason in coverage.py: {plain - set(WITHOUT_KERNEL)}"
    assert set(WITHOUT_KERNEL) <= plain, f"a reason in coverage.py without need: {set(WITHOUT_KERNEL) - plain}"
    assert all(row[0] != "reference" for row in table.values())


def test_the_table_is_that_of_loaded():
    served = loaded()
    assert coverage().keys() == served.keys() - {"number_text"}
    assert all(row[0] == served[op]["cuda"] for op, row in coverage().items())


def test_an_op_without_a_kernel_would_be_found(monkeypatch):
    monkeypatch.setitem(GPU_ORDERS, "gate", ("triton", "reference", "reference"))
    assert ("gate", "backward") not in WITHOUT_KERNEL and coverage()["gate"][1] == "reference"


def test_every_triton_kernel_is_compared_with_its_reference():
    named, endings = set(), set()
    for path in Path(__file__).parent.glob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        if "assert_gpu_kernel" in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    named |= set(node.value.split())
                if isinstance(node, ast.JoinedStr):
                    endings |= {path.name for part in node.values if "_backward" in str(getattr(part, "value", ""))}
    coverage()
    for op in (name.removeprefix("nextham::") for name, kernel in GPU_KERNELS.items() if ".kernel." in kernel):
        forward = op.removesuffix("_backward")
        assert op in named or (forward in named and endings), f"{op}: no test compares its GPU kernel"
