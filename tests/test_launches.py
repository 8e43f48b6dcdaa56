"""What Triton's interpreter forgives and a GPU does not: grids, strides, the current device, numbers that nobody wrote.

`bench.offline` makes every launch of the network and of the benchmarks with no rows and with ten million, too
(`tests/test_offline.py` runs it); what it refuses is tested here.
"""

import ast
import contextlib
import types
from pathlib import Path

import harness
import pytest
import torch

from bench.cases import TENSOR_PRODUCT
from bench.offline import check_launch, with_rows
from nextham_kernels import registration
from nextham_kernels.ops.tensor_product import product, programs

KERNELS = sorted((Path(registration.__file__).parent / "ops").glob("*/kernel.py"))


@pytest.mark.parametrize(
    "grid", [(2**31,), (10, 65536), (1, 1, 65536), (2**20, 2**12)], ids=["x", "y", "z", "all together"]
)
def test_a_grid_that_no_gpu_takes_is_refused(grid):
    check_launch((2**31 - 1,), ())
    check_launch((0,), ())
    with harness.raises(AssertionError, "grid: "):
        check_launch(grid, ())


def test_a_tensor_with_gaps_is_refused():
    x = torch.zeros(4, 6)
    check_launch((1,), (x, x[1:], 3))
    with harness.raises(AssertionError, "argument 1: strides (6, 1)"):
        check_launch((1,), (x, x[:, :3]))


def test_a_tensor_elsewhere_is_refused():
    with harness.raises(AssertionError, "argument 2: on meta, not cpu"):
        check_launch((1,), (torch.zeros(2), 5, torch.zeros(2, device="meta")))


def test_rows_are_those_of_features_and_indices():
    x, index, weight = torch.zeros(40, 3), torch.zeros(40, dtype=torch.int64), torch.zeros(40)
    assert [len(t) for t in with_rows((x, index, weight, torch.zeros(7)), 5)] == [5, 5, 40, 7]
    assert [len(t) for t in with_rows((weight, x), 0)] == [0, 0]
    assert [len(t) for t in with_rows((x[:2], x[:2]), 0)] == [2, 2]


def generated():
    """Texts of generated kernels: plain, shared weights, backward, over a graph, with a radial network."""
    for name in ("mace-medium", "deeph-e3"):
        case = TENSOR_PRODUCT[name]
        irreps_out, instructions = case.instructions()
        word = product(case.irreps_1, case.irreps_2, irreps_out, instructions).word
        for shared in (False, True):
            found = [programs.forward(word, shared), programs.backward(word, shared, (True, True, True))]
            if programs.conv_fuses(word):
                found.append(programs.forward(word, shared, conv=True))
            yield from (kernel.text for program in found for kernel in program.kernels)
        if programs.radial_fuses(word, 64):
            yield from (kernel.text for kernel in programs.radial_forward(word, 64, True).kernels)


def calls(text):
    """The calls of Triton's own functions, as (name, keywords, number of arguments)."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("tl."):
            yield ast.unparse(node.func)[3:], {word.arg for word in node.keywords}, len(node.args)


def test_masked_lanes_hold_a_number_and_nothing_is_added_in_an_unknown_order():
    loads = 0
    for text in (*(path.read_text(encoding="utf-8") for path in KERNELS), *generated()):
        for name, words, _ in calls(text):
            if name == "load":
                loads += 1
                assert "mask" not in words or "other" in words, text
            assert not name.startswith("atomic"), text
    assert loads > 500


def test_a_kernel_runs_on_the_device_of_its_tensors(monkeypatch):
    current, seen = [0], []

    @contextlib.contextmanager
    def device_of(x):
        before, current[0] = current[0], x.device.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(registration, "gpu_kernel", lambda name: lambda *args: seen.append((name, current[0], args)))
    run = registration._on_cuda(lambda *args: None, ("gate.kernel.forward",))
    x = types.SimpleNamespace(device=torch.device("cuda:1"))  # torch makes no such tensor without a GPU
    run(x, torch.ones(6, 4).T, "4x0e")
    ((name, device, args),) = seen
    assert (name, device, current[0]) == ("gate.kernel.forward", 1, 0)
    assert args[0] is x and args[1].is_contiguous() and args[2] == "4x0e"
