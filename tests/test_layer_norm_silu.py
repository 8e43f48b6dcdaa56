"""layer_norm_silu against torch's own layer norm and SiLU, its vjp against automatic differentiation."""

import harness
import pytest
import torch
from torch.nn import functional

from nextham_kernels.ops.layer_norm_silu import layer_norm_silu, layer_norm_silu_vjp, reference

EPS = 1e-6
OPS = {
    "layer_norm_silu": (layer_norm_silu, reference.layer_norm_silu),
    "layer_norm_silu_vjp": (layer_norm_silu_vjp, reference.layer_norm_silu_vjp),
}
WIDTHS = [1, 7, 256]


def inputs(op, width, n_edges=harness.EDGES):
    tensors = {
        "v": harness.random(n_edges, width, seed=4),
        "h": 3 * harness.random(n_edges, width, seed=1) + 0.5,
        "weight": harness.random(width, seed=2),
        "bias": harness.random(width, seed=3),
    }
    if op == "layer_norm_silu":
        del tensors["v"]
    return tensors


def by(f):
    return lambda *args, **named: f(*args, *named.values(), EPS)


@pytest.mark.parametrize("width", WIDTHS)
def test_reference_is_the_definition(width):
    def definition(h, weight, bias):
        return functional.silu(functional.layer_norm(h, h.shape[1:], weight, bias, EPS))

    v, h, weight, bias = inputs("layer_norm_silu_vjp", width).values()
    harness.assert_close(reference.layer_norm_silu(h, weight, bias, EPS), definition(h, weight, bias))
    _, expected = torch.autograd.functional.vjp(lambda h: definition(h, weight, bias), h, v)
    if width == 1:  # the variance vanishes, and the derivative with it
        expected = torch.zeros_like(h)
    harness.assert_close(reference.layer_norm_silu_vjp(v, h, weight, bias, EPS), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("op", OPS)
def test_forward(op, width, dtype):
    kernel, plain = map(by, OPS[op])
    harness.assert_as_exact_as_reference(kernel, plain, [t.to(dtype) for t in inputs(op, width).values()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", OPS)
def test_large_arguments(op, dtype):
    """SiLU far from zero, where the exponential is tiny or huge, and a row of equal numbers."""
    tensors = inputs(op, 256)
    tensors["weight"] *= 300
    tensors["h"][3] = 2.5
    kernel, plain = map(by, OPS[op])
    harness.assert_as_exact_as_reference(kernel, plain, [t.to(dtype) for t in tensors.values()])


@pytest.mark.parametrize("width", WIDTHS[1:])
@pytest.mark.parametrize("op", OPS)
def test_backward(op, width):
    kernel, plain = map(by, OPS[op])
    tensors = inputs(op, width)
    harness.assert_same_gradients(kernel, plain, tensors)
    weights = {n: t for n, t in tensors.items() if n in ("weight", "bias")}
    features = {n: t for n, t in tensors.items() if n not in weights}
    harness.assert_same_gradients(
        lambda **f: kernel(*f.values(), *weights.values()), lambda **f: plain(*f.values(), *weights.values()), features
    )


@pytest.mark.parametrize("op", OPS)
def test_float32_gradients(op):
    """As exact as the reference's in float32."""

    def gradients(f):
        def run(*tensors):
            leaves = [harness.leaf(t) for t in tensors]
            return torch.autograd.grad((by(f)(*leaves) * 0.01 * leaves[0].detach()).sum(), leaves)

        return run

    kernel, plain = map(gradients, OPS[op])
    harness.assert_as_exact_as_reference(kernel, plain, [t.float() for t in inputs(op, 256, 200).values()])


@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op):
    harness.gradcheck(by(OPS[op][0]), *inputs(op, 5, 2).values())


def test_instruction_sets_agree(instruction_set):
    for op, functions in OPS.items():
        kernel, plain = map(by, functions)
        tensors = inputs(op, 256)
        harness.assert_close(kernel(**tensors), plain(**tensors))
        harness.assert_same_gradients(kernel, plain, tensors)


def test_threads_agree():
    """The sums over edges differ by rounding, the rest not at all; and the same thread count gives the same bits."""
    tensors = inputs("layer_norm_silu_vjp", 256, 300)  # above the size where a second thread starts

    def run():
        leaves = [harness.leaf(t) for t in tensors.values()]
        return torch.autograd.grad((layer_norm_silu_vjp(*leaves) ** 2).sum(), leaves)

    harness.assert_threads_agree(run, harness.EXACT)
    harness.assert_threads_agree(lambda: run()[1:2])


def test_contract():
    v, h, weight, bias = inputs("layer_norm_silu_vjp", 7).values()
    assert layer_norm_silu(h[:0], weight, bias).shape == (0, 7)
    leaves = [harness.leaf(t) for t in (v[:0], h[:0], weight, bias)]
    layer_norm_silu_vjp(*leaves).sum().backward()
    assert leaves[1].grad.shape == (0, 7) and not leaves[2].grad.any()
    harness.assert_close(layer_norm_silu(h.T.contiguous().T, weight, bias), layer_norm_silu(h, weight, bias))
    torch.library.opcheck(torch.ops.nextham.layer_norm_silu, (*map(harness.leaf, (h, weight, bias)), EPS))
    torch.library.opcheck(torch.ops.nextham.layer_norm_silu_vjp, (*map(harness.leaf, (v, h, weight, bias)), EPS))
    with harness.raises(ValueError, "weight: expected shape [c] with c = 7, got [6]"):
        layer_norm_silu(h, weight[1:], bias)
    with harness.raises(ValueError, "h: expected shape [e, c] with e = 17, c = 7, got [16, 7]"):
        layer_norm_silu_vjp(v, h[1:], weight, bias)
    with harness.raises(ValueError, "eps: expected a positive number, got 0"):
        layer_norm_silu(h, weight, bias, 0)
    with harness.raises(TypeError, "bias: expected dtype float64 as v, got float32"):
        layer_norm_silu_vjp(v, h, weight, bias.float())


@pytest.mark.triton
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("width", [7, 256])
def test_gpu_kernel(op, width):
    kernel, plain = OPS[op]
    harness.assert_gpu_kernel(f"{op} {op}_backward", by(kernel), by(plain), inputs(op, width))
    if op == "layer_norm_silu":  # the gradient of h alone
        weight, bias = (inputs(op, width)[name].requires_grad_(False) for name in ("weight", "bias"))

        def of_h(f):
            return lambda h: f(h, weight.to(h), bias.to(h), EPS)

        harness.assert_gpu_kernel(f"{op} {op}_backward", of_h(kernel), of_h(plain), {"h": inputs(op, width)["h"]})


@pytest.mark.triton
def test_one_row_for_all():
    v, h, weight, bias = harness.random(1, 7, seed=1), harness.random(9, 7), harness.random(7, seed=2), torch.zeros(7)
    given = {"v": v, "h": h, "weight": weight, "bias": bias.double()}
    with torch.no_grad():
        every = layer_norm_silu_vjp(v.expand(9, 7), h, weight, bias.double())
        harness.assert_close(layer_norm_silu_vjp(**given), every)
        with harness.on_gpu() as device:
            found = layer_norm_silu_vjp(*(t.to(device) for t in given.values()))
        harness.assert_close(found.cpu(), every)
    harness.assert_same_gradients(
        layer_norm_silu_vjp, lambda v, **others: layer_norm_silu_vjp(v.expand(9, 7), **others), given
    )
