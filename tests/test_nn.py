"""nextham_kernels.nn against e3nn's modules with the same weights; e3nn's coefficients are rounded to float32."""

import copy
import importlib
import io

import harness
import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3

from nextham_kernels import nn
from nextham_kernels.loading import reference_only, use_reference

FEATURES, HARMONICS = "5x0e+4x1o+3x2e+2x1e", "1x0e+1x1o+1x2e"
UVU = [(0, 0, 0, "uvu", True), (1, 1, 0 + 2, "uvu", True), (2, 1, 1, "uvu", False, 2.0)]

# name → class, arguments, keywords, irreps of the operands
MODULES = {
    "product": ("TensorProduct", (FEATURES, HARMONICS, "5x0e+3x1o+4x0e", UVU), {}, (FEATURES, HARMONICS)),
    "path": (
        "TensorProduct",
        (FEATURES, HARMONICS, "5x0e+3x1o+4x0e", UVU),
        {"irrep_normalization": "norm", "path_normalization": "path", "in1_var": [0.5, 1.0, 2.0, 3.0]},
        (FEATURES, HARMONICS),
    ),
    "connected": ("FullyConnectedTensorProduct", (FEATURES, HARMONICS, "3x0e+6x1o+2x2e"), {}, (FEATURES, HARMONICS)),
    "harmonic": (
        "FullyConnectedTensorProduct",
        (FEATURES, "0e+1o+2e+3o", "3x0e+6x1o"),
        {},
        (FEATURES, "0e+1o+2e+3o"),
    ),
    "elementwise": ("ElementwiseTensorProduct", ("5x1o+5x1e", "10x1e"), {}, ("5x1o+5x1e", "10x1e")),
    "filtered": ("ElementwiseTensorProduct", ("5x1o+5x1e", "10x1e", ["0e", "0o"]), {}, ("5x1o+5x1e", "10x1e")),
    "full": ("FullTensorProduct", ("2x0e+3x1o", "4x0e+1x1o"), {}, ("2x0e+3x1o", "4x0e+1x1o")),
    "square": ("TensorSquare", ("3x0e+2x1o",), {}, ("3x0e+2x1o",)),
    "square_norm": ("TensorSquare", ("3x0e+2x1o",), {"irrep_normalization": "norm"}, ("3x0e+2x1o",)),
    "square_weights": ("TensorSquare", ("3x0e+2x1o", "4x0e+2x2e+1x1e"), {}, ("3x0e+2x1o",)),
    "linear": ("Linear", (FEATURES, "7x0e+2x1o+3x3o"), {}, (FEATURES,)),
    "linear_bias": (
        "Linear",
        (FEATURES, "7x0e+2x1o+3x0e"),
        {"biases": True, "path_normalization": "path"},
        (FEATURES,),
    ),
    "linear_features": ("Linear", (FEATURES, "7x0e+2x1o"), {"f_in": 3, "f_out": 2}, ()),
    "linear_features_bias": ("Linear", (FEATURES, "7x0e+2x1o"), {"f_in": 3, "f_out": 2, "biases": True}, ()),
    "harmonics": ("SphericalHarmonics", ("0e+1o+2e+3o", True), {}, ("1o",)),
    "harmonics_few": ("SphericalHarmonics", ([3, 1, 3], False, "norm"), {}, ("1o",)),
    "harmonics_pseudo": ("SphericalHarmonics", ("1e+2e", True, "component"), {}, ("1e",)),
    "gate": (
        "Gate",
        ("4x0e", [torch.nn.functional.silu], "5x0e", [torch.sigmoid], "3x1o+2x2e"),
        {},
        ("9x0e+3x1o+2x2e",),
    ),
    "gate_odd": (
        "Gate",
        ("4x0e+3x0o", [torch.nn.functional.silu, torch.tanh], "2x0o+3x0e", [torch.tanh, torch.sigmoid], "3x1o+2x1e"),
        {},
        ("5x0o+7x0e+3x1o+2x1e",),
    ),
    "gate_scalars": ("Gate", ("4x0e", [torch.nn.functional.silu], "", [], ""), {}, ("4x0e",)),
    "norm_activation": ("NormActivation", (o3.Irreps(FEATURES), torch.sigmoid), {"bias": True}, (FEATURES,)),
    "norm_epsilon": ("NormActivation", (o3.Irreps(FEATURES), torch.tanh), {"epsilon": 1e-5}, (FEATURES,)),
    "batch_norm": ("BatchNorm", (FEATURES,), {}, (FEATURES,)),
    "batch_norm_norm": ("BatchNorm", (FEATURES,), {"normalization": "norm", "include_bias": False}, (FEATURES,)),
    "batch_norm_plain": ("BatchNorm", (FEATURES,), {"affine": False}, (FEATURES,)),
    "instance_norm": ("BatchNorm", (FEATURES,), {"instance": True}, (FEATURES,)),
}


def pair(case, dtype=torch.float64, **more):
    """e3nn's module and ours with its weights."""
    name, arguments, keywords, _ = MODULES[case]
    torch.manual_seed(3)
    theirs = getattr(o3 if hasattr(o3, name) else e3nn_nn, name)(*arguments, **keywords, **more).to(dtype)
    ours = getattr(nn, name)(*arguments, **keywords, **more).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def operands(case, *leading, dtype=torch.float64):
    irreps = MODULES[case][3]
    if not irreps:  # channels of Linear's f_in
        return [harness.random(*leading, 3, o3.Irreps(FEATURES).dim).to(dtype)]
    return [harness.random(*leading, o3.Irreps(i).dim, seed=n).to(dtype) for n, i in enumerate(irreps)]


@pytest.mark.parametrize("case", MODULES)
def test_same_as_e3nn(case):
    theirs, ours = pair(case)
    assert isinstance(ours, type(theirs))
    x = [harness.leaf(t) for t in operands(case, harness.EDGES)]
    results = [module(*x) for module in (ours, theirs)]
    harness.assert_close(*results, harness.GOLDEN)
    weights = [dict(module.named_parameters()) for module in (ours, theirs)]
    assert weights[0].keys() == weights[1].keys()
    cotangent = harness.random(*results[1].shape, seed=5)
    grads = [
        torch.autograd.grad((result * cotangent).sum(), [*x, *own.values()])
        for result, own in zip(results, weights, strict=True)
    ]
    for actual, expected in zip(*grads, strict=True):
        harness.assert_close(actual, expected, harness.GOLDEN)


@pytest.mark.parametrize("case", MODULES)
def test_attributes_and_weights(case):
    theirs, ours = pair(case)
    for name in ("irreps_in", "irreps_in1", "irreps_in2", "irreps_out", "weight_numel", "instructions", "output_mask"):
        if hasattr(theirs, name):
            actual, expected = getattr(ours, name), getattr(theirs, name)
            assert torch.equal(actual, expected) if isinstance(actual, torch.Tensor) else actual == expected
    if hasattr(theirs, "weight_views") and case not in ("linear_bias", "linear_features", "linear_features_bias"):
        for actual, expected in zip(ours.weight_views(), theirs.weight_views(), strict=True):
            assert torch.equal(actual, expected)
    assert str(ours) == str(theirs)
    own = {n for n in theirs.state_dict() if "_compiled" not in n}
    assert {n for n in ours.state_dict() if "_compiled" not in n} == own


@pytest.mark.parametrize("case", ["product", "linear_bias", "gate_odd", "batch_norm", "harmonics"])
def test_copies(case):
    _, ours = pair(case)
    stored = io.BytesIO()
    torch.save(ours, stored)
    stored.seek(0)
    x = operands(case, 4)
    expected = ours.eval()(*x)
    for other in (copy.deepcopy(ours), torch.load(stored, weights_only=False).eval()):
        assert torch.equal(other(*x), expected)
    single = copy.deepcopy(ours).float()
    assert single(*(t.float() for t in x)).dtype == torch.float32


@pytest.mark.parametrize("case", ["product", "connected", "linear", "harmonics", "gate", "gate_odd", "norm_activation"])
def test_leading_axes(case):
    theirs, ours = pair(case)
    for leading in ((), (0,), (2, 3)):
        harness.assert_close(ours(*operands(case, *leading)), theirs(*operands(case, *leading)), harness.GOLDEN)


def test_operands_are_broadcast():
    theirs, ours = pair("connected")
    x, y = operands("connected", 3, 1)[0], operands("connected", 4)[1]
    harness.assert_close(ours(x, y), theirs(x, y), harness.GOLDEN)


@pytest.mark.parametrize("shared", [True, False])
def test_external_weights(shared):
    theirs, ours = pair("connected", internal_weights=False, shared_weights=shared)
    x, y = operands("connected", harness.EDGES)
    weight = harness.random(*(() if shared else (harness.EDGES,)), ours.weight_numel)
    harness.assert_close(ours(x, y, weight), theirs(x, y, weight), harness.GOLDEN)
    parts = list(theirs.weight_views(weight))
    harness.assert_close(ours(x, y, parts), theirs(x, y, weight), harness.GOLDEN)
    with harness.raises(RuntimeError, "Weights must be provided"):
        ours(x, y)
    # e3nn cannot build biases of each row
    theirs, ours = pair("linear_bias" if shared else "linear", internal_weights=False, shared_weights=shared)
    weight, bias = (harness.random(*weight.shape[:-1], n) for n in (ours.weight_numel, ours.bias_numel))
    harness.assert_close(ours(x, weight, bias), theirs(x, weight, bias), harness.GOLDEN)
    with harness.raises(RuntimeError, "weight: expected weights"):
        ours(x)


@pytest.mark.parametrize("shared", [True, False])
def test_right(shared):
    theirs, ours = pair("connected", compile_right=True, internal_weights=False, shared_weights=shared)
    y = operands("connected", 4)[1]
    weight = harness.random(*(() if shared else (4,)), ours.weight_numel)
    harness.assert_close(ours.right(y, weight), theirs.right(y, weight), harness.GOLDEN)


@pytest.mark.parametrize("case", ["batch_norm", "batch_norm_norm", "batch_norm_plain"])
def test_running_averages(case):
    theirs, ours = pair(case)
    for seed in range(3):
        x = 2 + harness.random(harness.EDGES, o3.Irreps(FEATURES).dim, seed=seed)
        ours(x), theirs(x)
    harness.assert_close(ours.running_mean, theirs.running_mean)
    harness.assert_close(ours.running_var, theirs.running_var)
    harness.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("irreps_out", ["2x4e", ""])
def test_channels_that_nothing_leads_to(irreps_out):
    found = nn.Linear("4x0e+3x1o", irreps_out, f_in=3, f_out=2)(torch.ones(5, 3, 13))
    assert found.shape == (5, 2, o3.Irreps(irreps_out).dim) and not found.any()


def test_paths_that_are_none_are_refused():
    with harness.raises(ValueError, "(0, 0, 0, 'uuw'): expected weights"):
        nn.TensorProduct("3x1o", "3x1o", "2x0e", [(0, 0, 0, "uuw", False)])


def test_gate_uses_the_kernel_where_it_can():
    assert pair("gate")[1]._fused == "4x0e+3x1o+2x2e"
    assert pair("gate_odd")[1]._fused is None


@pytest.mark.parametrize("case", MODULES)
def test_compile_without_graph_breaks(case):
    _, ours = pair(case)
    ours.eval()
    x = operands(case, 4)
    harness.assert_close(torch.compile(ours, fullgraph=True, backend="aot_eager")(*x), ours(*x))


@pytest.mark.filterwarnings("error:.*performance drop")
@pytest.mark.parametrize("case", MODULES)
def test_vmap(case):
    """The same as one after the other, gradients included; e3nn's NormActivation has no vmap."""
    _, ours = pair(case)
    ours.eval()
    x = {f"x_{i}": t for i, t in enumerate(operands(case, 2, 3))}

    def mapped(**given):
        return torch.vmap(lambda *each: ours(*each))(*given.values())

    def one_by_one(**given):
        return torch.stack([ours(*each) for each in zip(*given.values(), strict=True)])

    harness.assert_close(mapped(**x), one_by_one(**x))
    harness.assert_same_gradients(mapped, one_by_one, x)


def test_second_derivatives_of_forces():
    """Weights' gradients of a force, through harmonics, product and linear map."""
    theirs, ours = (torch.nn.ModuleList([pair("harmonics")[i], pair("harmonic")[i]]) for i in (0, 1))
    x, r = harness.random(harness.EDGES, o3.Irreps(FEATURES).dim), harness.leaf(harness.random(harness.EDGES, 3))
    grads = []
    for harmonics, product in (theirs, ours):
        energy = product(x, harmonics(r)).square().sum()
        (force,) = torch.autograd.grad(energy, r, create_graph=True)
        grads.append(torch.autograd.grad(force.square().sum(), [product.weight, r]))
    for actual, expected in zip(*reversed(grads), strict=True):
        harness.assert_close(actual, expected, harness.GOLDEN)


def test_use_reference():
    _, ours = pair("connected")
    x = operands("connected", 4)
    with use_reference():
        assert reference_only()
        expected = ours(*x)
    assert not reference_only()
    harness.assert_close(ours(*x), expected)


def test_old_e3nn_is_refused(monkeypatch):
    monkeypatch.setattr("e3nn.__version__", "0.4.4")
    with pytest.raises(ImportError, match=r"e3nn: expected 0\.5 or newer, got 0\.4\.4"):
        importlib.reload(nn)
