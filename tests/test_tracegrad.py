"""tracegrad: the forms against e3nn's fully connected product, the gradient against its closed form."""

import harness
import pytest
import torch
from e3nn import o3
from torch.nn import functional

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.tracegrad import quadratic_forms, trace_invariants, tracegrad

CASES = {
    "small": ("3x0e+2x1o+1x2e", 5, (4, 3)),
    "one_linear": ("2x0o+2x1e", 3, (2,)),
    "production": ("32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e", 16, (24, 24, 24, 24)),
}


def inputs(case, n_edges=harness.EDGES):
    irreps, n_forms, widths = CASES[case]
    irreps = irreps_of(irreps)
    mlp, width = [], n_forms
    for i, out in enumerate(widths):
        if i:
            mlp += [1 + 0.1 * harness.random(width, seed=i), 0.1 * harness.random(width, seed=10 + i)]
        mlp += [harness.random(out, width, seed=20 + i) / width**0.5, 0.1 * harness.random(out, seed=30 + i)]
        width = out
    forms = harness.random(sum(mul * mul for mul, _ in irreps) * n_forms, seed=2)
    return harness.random(n_edges, irreps.dim, seed=1), forms, mlp


def closed_form(x, forms, mlp, irreps):
    """g = 2 C x with C the symmetric part of ∂(Σ z)/∂(Gram matrix), by one backward sweep of the MLP written out."""
    irreps = irreps_of(irreps)
    n_forms = mlp[0].shape[1]
    scale = sum(mul * mul for mul, _ in irreps) ** -0.5
    states = [quadratic_forms(x, forms, irreps, n_forms) @ mlp[0].T + mlp[1]]
    for i in range(2, len(mlp), 4):
        y = functional.layer_norm(states[-1], states[-1].shape[1:], mlp[i], mlp[i + 1], eps=1e-6)
        states.append(functional.silu(y) @ mlp[i + 2].T + mlp[i + 3])
    z, grad = states.pop(), torch.ones_like(states[-1] @ mlp[-2].T if states else x.new_ones(len(x), mlp[0].shape[0]))
    for i in reversed(range(2, len(mlp), 4)):
        h = states.pop()
        centred = h - h.mean(1, keepdim=True)
        inverse = (centred.square().mean(1, keepdim=True) + 1e-6).rsqrt()
        unit = centred * inverse
        y = unit * mlp[i] + mlp[i + 1]
        s = torch.sigmoid(y)
        grad = (grad @ mlp[i + 2]) * (s + y * s * (1 - s)) * mlp[i]  # with respect to the unit vector
        grad = inverse * (grad - grad.mean(1, keepdim=True) - unit * (grad * unit).mean(1, keepdim=True))
    grad = grad @ mlp[0]  # [e, h]
    out, start = [], 0
    for (mul, ir), s in zip(irreps, irreps.slices(), strict=True):
        w = forms[start * n_forms : (start + mul * mul) * n_forms].view(mul, mul, n_forms)
        c = torch.einsum("uvh,eh->euv", w, grad) * scale / ir.dim**0.5
        out.append(((c + c.mT) @ x[:, s].unflatten(1, (mul, ir.dim))).flatten(1))
        start += mul * mul
    return z, torch.cat(out, dim=1)


@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_definition(case):
    irreps, n_forms, _ = CASES[case]
    x, forms, mlp = inputs(case)
    product = o3.FullyConnectedTensorProduct(
        irreps, irreps, f"{n_forms}x0e", internal_weights=False, shared_weights=True
    )
    q = product.double()(x, x, forms)
    harness.assert_close(quadratic_forms(x, forms, irreps, n_forms), q, harness.GOLDEN)
    z, g = tracegrad(x, forms, mlp, irreps)
    expected_z, expected_g = closed_form(x, forms, mlp, irreps)
    harness.assert_close(z, expected_z)
    harness.assert_close(g, expected_g)
    harness.assert_close(trace_invariants(x, forms, mlp, irreps), expected_z)


def test_without_a_graph():
    irreps = CASES["small"][0]
    x, forms, mlp = inputs("small")
    with torch.no_grad():
        z, g = tracegrad(x, forms, mlp, irreps)
    assert not z.requires_grad and not g.requires_grad
    harness.assert_close(g, tracegrad(x, forms, mlp, irreps)[1])


@pytest.mark.parametrize("case", CASES)
def test_backward(case):
    """The derivative of z and g, so the second derivative of the invariants, for x and every parameter."""
    x, forms, mlp = inputs(case)

    def by(f):
        return lambda x, forms, **p: f(x, forms, list(p.values()), CASES[case][0])

    named = {"x": x, "forms": forms, **{f"mlp_{i}": p for i, p in enumerate(mlp)}}
    harness.assert_same_gradients(by(tracegrad), by(closed_form), named, 1e-11)


def test_gradcheck():
    x, forms, mlp = inputs("small", 2)
    harness.gradcheck(lambda x, w, *m: tracegrad(x, w, m, CASES["small"][0]), x, forms, *mlp)


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    irreps = CASES["production"][0]
    x, forms, mlp = inputs("production")
    d = harness.representation(irreps, harness.random_rotation(1), inversion)
    z, g = tracegrad(x, forms, mlp, irreps)
    turned_z, turned_g = tracegrad(x @ d.T, forms, mlp, irreps)
    harness.assert_close(turned_z, z, 1e-11)
    harness.assert_close(turned_g, g @ d.T, 1e-11)


def test_contract():
    irreps, n_forms, _ = CASES["small"]
    x, forms, mlp = inputs("small")
    z, g = tracegrad(x[:0], forms, mlp, irreps)
    assert z.shape == (0, 3) and g.shape == (0, 14)
    harness.assert_close(tracegrad(x.T.contiguous().T, forms, mlp, irreps)[1], tracegrad(x, forms, mlp, irreps)[1])
    with harness.raises(ValueError, "x: expected shape [e, 14]"):
        tracegrad(x[:, 1:], forms, mlp, irreps)
    with harness.raises(ValueError, "weight: expected shape [70], got [69]"):
        tracegrad(x, forms[1:], mlp, irreps)
    with harness.raises(ValueError, "mlp: expected 2 tensors (Linear) and 4 more for each (LayerNorm, Linear)"):
        tracegrad(x, forms, mlp[:-1], irreps)
    with harness.raises(ValueError, "mlp[2]: expected shape [4], got [3]"):
        tracegrad(x, forms, [*mlp[:2], mlp[2][1:], *mlp[3:]], irreps)
    with harness.raises(ValueError, "mlp[4]: expected shape [out, 4], got [3, 3]"):
        tracegrad(x, forms, [*mlp[:4], mlp[4][:, 1:], mlp[5]], irreps)
    with harness.raises(ValueError, "irreps: expected each irrep once, got 1x0e+2x0e"):
        quadratic_forms(x[:, :3], forms, "1x0e+2x0e", n_forms)
    with harness.raises(TypeError, "weight: expected dtype float64 as x, got float32"):
        quadratic_forms(x, forms.float(), irreps, n_forms)
