"""Ops inside torch: autocast, fake tensors of a GPU that is not there, tracing."""

import harness
import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from nextham_kernels import nn, registration
from nextham_kernels.ops.gate import gate
from nextham_kernels.ops.tensor_product import product
from nextham_kernels.ops.tensor_product.radial import tensor_product_radial

TIMES = product("4x0e+2x1o", "1x0e+1x1o", "4x0e+2x1o", [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)])


def radial_inputs():
    shapes = {"x": (3, 10), "y": (3, 4), "hidden": (3, 5), "weight": (5, TIMES.n_weights)}
    return {
        name: harness.leaf(harness.random(*shape, seed=i).float()) for i, (name, shape) in enumerate(shapes.items())
    }


def test_autocast_changes_no_bit():
    given = radial_inputs()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = tensor_product_radial(**given, product=TIMES)
            results.append([out, *torch.autograd.grad(out.sum(), list(given.values()))])
    for plain, cast in zip(*results, strict=True):
        assert cast.dtype == torch.float32 and torch.equal(plain, cast)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kernels_of_both_devices_run_outside_autocast(device):
    seen = registration._outside_autocast(device, lambda: torch.is_autocast_enabled(device))
    before = torch.is_autocast_enabled(device)
    torch.set_autocast_enabled(device, True)
    try:
        assert not seen() and torch.is_autocast_enabled(device)
    finally:
        torch.set_autocast_enabled(device, before)
    assert not seen()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    with harness.raises(TypeError, "x: expected dtype float32 or float64, got "):
        gate(torch.zeros(2, 5, dtype=dtype), "1x0e+1x1o")
    with harness.raises(TypeError, "cast it with .float())"):
        gate(torch.zeros(2, 5, dtype=dtype), "1x0e+1x1o")


def test_fake_tensors_of_a_gpu():
    with FakeTensorMode(), torch.no_grad():
        x = torch.empty(7, 5, device="cuda")
        out = gate(x, "1x0e+1x1o")
        assert out.device.type == "cuda" and out.shape == (7, 4)
        (grad,) = torch.ops.nextham.gate_backward(out, x, "1x0e+1x1o", False, 0, [True])
        assert grad.device == x.device and grad.shape == x.shape
        ends = torch.empty(9, dtype=torch.int64, device="cuda")
        nodes, *others = (torch.empty(*s, device="cuda") for s in ((3, 10), (9, 4), (9, 5), (5, TIMES.n_weights)))
        assert tensor_product_radial(nodes, *others, TIMES, ends, ends).shape == (3, 10)
        traced = make_fx(lambda x: gate(x, "1x0e+1x1o") * 2)(x)
    assert "torch.ops.nextham.gate.default" in traced.code


@pytest.mark.parametrize("kind", ["TensorProductConv", "RadialTensorProduct", "EdgeTensorProduct"])
def test_one_compilation_serves_every_number_of_atoms_and_edges(kind):
    torch.manual_seed(1)
    layout, paths = ("4x0e+2x1o", "1x0e+1x1o", "4x0e+2x1o"), [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)]
    module = {
        "TensorProductConv": lambda: nn.TensorProductConv(*layout, paths, shared_weights=False, internal_weights=False),
        "RadialTensorProduct": lambda: nn.RadialTensorProduct(*layout, paths, [5, 6]),
        "EdgeTensorProduct": lambda: nn.EdgeTensorProduct("4x0e+2x1o", 1, "3x0e+1x1o"),
    }[kind]().double()
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    compiled = torch.compile(module, backend=aot_autograd(fw_compiler=counted), dynamic=True, fullgraph=True)
    for n, e in ((7, 11), (8, 6), (9, 10)):  # 6 is also the number of weights of an edge, 10 of columns of x
        rows, cols = torch.arange(e) % n, torch.arange(e) * 2 % n
        if kind == "EdgeTensorProduct":
            given = harness.random(e, 10), harness.random(e, 3, seed=1), harness.random(e, module.radial_numel, seed=2)
        else:
            width = 6 if kind == "TensorProductConv" else 5
            given = harness.random(n, 10), harness.random(e, 4, seed=1), harness.random(e, width, seed=2), rows, cols
        x = harness.leaf(given[0])
        (gradient,) = torch.autograd.grad(compiled(x, *given[1:]).square().sum(), x)
        (expected,) = torch.autograd.grad(module(x, *given[1:]).square().sum(), x)
        harness.assert_close(gradient, expected)
    assert len(graphs) == 2  # forward and backward
