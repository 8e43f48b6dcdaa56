"""accelerate and restore on a network of e3nn modules."""

import copy
import io
from unittest import mock

import e3nn
import harness
import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3

import nextham_kernels
from nextham_kernels import acceleration, nn, registration
from nextham_kernels.acceleration import Report
from nextham_kernels.loading import gpu_kernel

HIDDEN = "6x0e+4x1o"


class Scaled(o3.Linear):
    """A subclass with code of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Network(torch.nn.Module):
    """A layer of every kind."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        gate = e3nn_nn.Gate("3x0e", [torch.nn.functional.silu], "4x0e", [torch.sigmoid], "4x1o")
        self.harmonics = o3.SphericalHarmonics("0e+1o+2e", True, "component")
        self.product = o3.FullyConnectedTensorProduct(HIDDEN, "0e+1o+2e", gate.irreps_in)
        self.gate = gate
        self.linear = o3.Linear(gate.irreps_out, HIDDEN)
        self.own = Scaled(HIDDEN, HIDDEN)
        self.norm = e3nn_nn.BatchNorm(HIDDEN)
        self.square = o3.TensorSquare(HIDDEN, "1x0e")
        self.grid = o3.Norm(HIDDEN)

    def forward(self, x, r):
        x = self.norm(self.own(self.linear(self.gate(self.product(x, self.harmonics(r))))))
        return self.square(x).sum() + self.grid(x).sum()


REPLACED = {
    "harmonics": "SphericalHarmonics",
    "product": "FullyConnectedTensorProduct",
    "gate": "Gate",
    "linear": "Linear",
    "norm": "BatchNorm",
    "square": "TensorSquare",
    "grid.tp": "TensorProduct",
}


def results(model):
    model = model.double()
    x, r = harness.random(harness.EDGES, 18), harness.leaf(harness.random(harness.EDGES, 3, seed=1))
    energy = model(x, r)
    (force,) = torch.autograd.grad(energy, r, create_graph=True)
    grads = torch.autograd.grad(force.square().sum() + energy, list(model.parameters()))
    return torch.cat([energy.reshape(1), force.flatten(), *(g.flatten() for g in grads)])


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("mode", ["eager", "script"])
def test_same_results_before_and_after(mode):
    default = e3nn.get_optimization_defaults()["jit_mode"]
    e3nn.set_optimization_defaults(jit_mode=mode)
    try:
        model = Network()
    finally:
        e3nn.set_optimization_defaults(jit_mode=default)
    parameters = dict(model.named_parameters())
    expected = results(model)
    report = nextham_kernels.accelerate(model)
    assert report.replaced == REPLACED
    assert report.kept == {"own": "Scaled is a subclass of Linear with code of its own"}
    assert type(model.product) is nn.FullyConnectedTensorProduct
    assert all(p is parameters[name] for name, p in model.named_parameters())
    harness.assert_close(results(model), expected, harness.GOLDEN)
    if mode == "eager":  # compiled functions of e3nn's harmonics cannot be copied
        harness.assert_close(results(copy.deepcopy(model)), results(model))
    assert not nextham_kernels.accelerate(model).replaced
    assert nextham_kernels.restore(model) == len(REPLACED)
    assert type(model.product) is o3.FullyConnectedTensorProduct and type(model.gate) is e3nn_nn.Gate
    harness.assert_close(results(model), expected)


def test_dry_run_changes_nothing():
    model = Network()
    assert nextham_kernels.accelerate(model, dry_run=True).replaced == REPLACED
    assert type(model.linear) is o3.Linear


def test_checkpoints_go_both_ways():
    model, ours = Network(), Network()
    nextham_kernels.accelerate(ours)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    ours.load_state_dict(model.state_dict())
    back = Network()
    back.load_state_dict(ours.state_dict())
    harness.assert_close(results(back), results(model))
    harness.assert_close(results(ours), results(model), harness.GOLDEN)


def test_compiled_model():
    model = Network().double().eval()
    x, r = harness.random(4, 18), harness.random(4, 3, seed=1)
    expected = model(x, r)
    compiled = torch.compile(model, backend="eager")
    nextham_kernels.accelerate(compiled)
    harness.assert_close(compiled(x, r), expected, harness.GOLDEN)


def test_exported_model_takes_other_numbers_of_rows():
    model = Network().double().eval()
    nextham_kernels.accelerate(model)
    example = harness.random(4, 18), harness.random(4, 3, seed=1)
    rows = torch.export.Dim("rows")
    exported = torch.export.export(model, example, dynamic_shapes=({0: rows}, {0: rows})).module()
    x, r = harness.random(7, 18, seed=2), harness.random(7, 3, seed=3)
    harness.assert_close(exported(x, r), model(x, r))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:The .grad attribute:UserWarning")
def test_scripted_and_compiled_submodules():
    model = Network()
    model.linear = torch.jit.script(o3.Linear("3x0e+4x1o", HIDDEN))
    model.product = torch.compile(model.product, backend="eager")
    expected = results(model)
    report = nextham_kernels.accelerate(model)
    assert report.kept["linear"] == "compiled by TorchScript as a whole; accelerate the model before scripting it"
    assert report.replaced["product._orig_mod"] == "FullyConnectedTensorProduct"
    harness.assert_close(results(model), expected, harness.GOLDEN)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_model_takes_other_numbers_of_rows():
    model = Network().double().eval()
    nextham_kernels.accelerate(model)
    traced = torch.jit.trace(model, (harness.random(4, 18), harness.random(4, 3, seed=1)), check_trace=False)
    x, r = harness.random(7, 18, seed=2), harness.random(7, 3, seed=3)
    harness.assert_close(traced(x, r), model(x, r))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_scripting_is_refused_in_a_sentence():
    model = Network()
    nextham_kernels.accelerate(model)
    for module, name in (
        (model, "SphericalHarmonics"),
        (nn.EdgeTensorProduct("2x1o", 1, "2x0e"), "EdgeTensorProduct"),
    ):
        with harness.raises(RuntimeError, f"torch.jit.script cannot compile {name} of nextham_kernels"):
            torch.jit.script(module)
    nextham_kernels.restore(model)
    assert isinstance(torch.jit.script(model.linear), torch.jit.ScriptModule)


def test_copies_of_an_accelerated_model():
    default = e3nn.get_optimization_defaults()["jit_mode"]
    e3nn.set_optimization_defaults(jit_mode="eager")  # functions that torch compiles cannot be pickled
    try:
        model = Network()
    finally:
        e3nn.set_optimization_defaults(jit_mode=default)
    nextham_kernels.accelerate(model)
    expected = results(model)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for other in (copy.deepcopy(model), torch.load(stored, weights_only=False)):
        assert type(other.product) is nn.FullyConnectedTensorProduct
        harness.assert_close(results(other), expected)
        assert nextham_kernels.restore(other) == len(REPLACED)
    single = copy.deepcopy(model).float()(harness.random(4, 18).float(), harness.random(4, 3, seed=1).float())
    assert single.dtype == torch.float32


def test_other_devices_stay():
    model = o3.Linear("2x0e", "1x0e").to("meta")
    report = nextham_kernels.accelerate(model)
    assert report.kept == {"": "the model is on meta; the kernels are for the CPU and CUDA"}
    assert type(model) is o3.Linear


def test_models_on_cuda(monkeypatch):
    """Which kernel runs is decided in each call, so nothing but Triton's absence keeps a model on CUDA as it is."""
    assert acceleration._without_kernels({"cpu"}) is None
    monkeypatch.setattr(acceleration, "missing", lambda: {})
    assert acceleration._without_kernels({"cpu", "cuda"}) is None
    monkeypatch.setattr(acceleration, "missing", lambda: {"triton": "a GPU kernel needs triton"})
    assert acceleration._without_kernels({"cuda"}) == "a GPU kernel needs triton"
    assert acceleration._without_kernels({"cpu"}) is None
    with nextham_kernels.use_reference():
        assert acceleration._without_kernels({"cuda"}) is None


@pytest.mark.triton
def test_accelerated_model_on_gpu_kernels():
    """On a GPU, or with its kernels on the CPU by the interpreter: energy, forces and the weights' gradients."""
    torch.manual_seed(1)
    model = torch.nn.ModuleDict(
        {
            "harmonics": o3.SphericalHarmonics("0e+1o", True, "component"),
            "product": o3.FullyConnectedTensorProduct("2x0e+1x1o", "0e+1o", "3x0e+1x1o"),
            "gate": e3nn_nn.Gate("2x0e", [torch.nn.functional.silu], "1x0e", [torch.sigmoid], "1x1o"),
            "linear": o3.Linear("2x0e+1x1o", "1x0e"),
        }
    ).double()
    x, r = harness.random(3, 5), harness.random(3, 3, seed=1)

    def run(device):
        x_, r_ = x.to(device), harness.leaf(r.to(device))
        out = model["linear"](model["gate"](model["product"](x_, model["harmonics"](r_))))
        grads = torch.autograd.grad(out.sum(), [r_, *model.parameters()])
        return torch.cat([t.flatten().cpu() for t in (out.detach(), *grads)])

    expected = run(torch.device("cpu"))
    called = set()

    def counted(name):
        called.add(name)
        return gpu_kernel(name)

    with harness.on_gpu() as device, mock.patch.object(registration, "gpu_kernel", counted):
        model.to(device)
        assert len(nextham_kernels.accelerate(model).replaced) == 4
        harness.assert_close(run(device), expected, harness.GOLDEN)
    assert {"tensor_product.kernel.forward", "tensor_product.kernel.backward", "gate.kernel.forward"} <= called


def test_report():
    report = nextham_kernels.accelerate(
        torch.nn.Sequential(o3.Linear("2x0e", "1x0e"), e3nn_nn.S2Activation("0e", torch.tanh, 4))
    )
    assert str(report).splitlines() == [
        "1 module on the kernels of nextham-kernels, 1 left as they are",
        "  + 0: Linear",
        "  - 1: S2Activation has no counterpart here",
    ]
    assert isinstance(report, Report)
    with harness.raises(TypeError, "model: expected a torch.nn.Module, got str"):
        nextham_kernels.accelerate("model")


def test_a_linear_map_of_channels_stays():
    model = torch.nn.Sequential(o3.Linear("4x0e", "4x0e", f_in=2, f_out=3), o3.Linear("4x0e", "2x0e"))
    report = nextham_kernels.accelerate(model)
    assert list(report.replaced) == ["1"] and report.kept == {"0": "f_in: e3nn's own code is as quick"}
    assert type(model[0]) is o3.Linear
