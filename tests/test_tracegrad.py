"""tracegrad: the forms against e3nn's fully connected product, the gradient and the update against its closed form."""

import harness
import pytest
import torch
from e3nn import o3
from torch.nn import functional

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.loading import use_reference
from nextham_kernels.ops.tracegrad import (
    fold_tracegrad,
    folded_invariants,
    quadratic_forms,
    reference,
    trace_invariants,
    tracegrad,
    tracegrad_update,
)

CASES = {
    "small": ("3x0e+2x1o+1x2e", 5, (4, 3)),
    "one_linear": ("2x0o+2x1e", 3, (2,)),
    "production": ("32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e", 16, (24, 24, 24, 24)),
}
NEXTHAM = ("32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e", 1024, (256, 256, 256, 256))


def inputs(case, n_edges=harness.EDGES):
    irreps, n_forms, widths = CASES.get(case, NEXTHAM)
    irreps = irreps_of(irreps)
    mlp, width = [], n_forms
    for i, out in enumerate(widths):
        if i:
            mlp += [1 + 0.1 * harness.random(width, seed=i), 0.1 * harness.random(width, seed=10 + i)]
        mlp += [harness.random(out, width, seed=20 + i) / width**0.5, 0.1 * harness.random(out, seed=30 + i)]
        width = out
    forms = harness.random(sum(mul * mul for mul, _ in irreps) * n_forms, seed=2)
    return harness.random(n_edges, irreps.dim, seed=1), forms, mlp


def by_hand(x, forms, mlp, irreps):
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
    expected_z, expected_g = by_hand(x, forms, mlp, irreps)
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
    harness.assert_same_gradients(by(tracegrad), by(by_hand), named, 1e-11)


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


def both_updates(case, edge, wanted):
    """The update and its reference of named tensors, what is wanted of x′ and z, and the tensors."""
    irreps = CASES.get(case, NEXTHAM)[0]
    x, forms, mlp = inputs(case)
    x = edge_layout(irreps).to_row(x) if edge else x

    def kernel(x, forms, *mlp, **named):
        folded = fold_tracegrad(forms, [*mlp, *named.values()], irreps)
        y, z = tracegrad_update(x, folded, 0.2, edge, invariants="z" in wanted)
        return tuple(t for t, name in ((y, "x"), (z, "z")) if name in wanted)

    def plain(x, forms, *mlp, **named):
        y, z = reference.tracegrad_update(x, forms, [*mlp, *named.values()], irreps_of(irreps), 0.2, edge)
        return tuple(t for t, name in ((y, "x"), (z, "z")) if name in wanted)

    return kernel, plain, {"x": x, "forms": forms, **{f"mlp_{i}": p for i, p in enumerate(mlp)}}


@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_update(case, edge):
    """Values, and the gradient of x and every parameter through x′ and z."""
    kernel, plain, tensors = both_updates(case, edge, "xz")
    for actual, expected in zip(kernel(**tensors), plain(**tensors), strict=True):
        harness.assert_close(actual, expected)
    harness.assert_same_gradients(kernel, plain, tensors)


@pytest.mark.parametrize("wanted", ["x", "z"])
@pytest.mark.parametrize("case", CASES)
def test_one_result_of_the_update(case, wanted):
    """The gradient through x′ alone, z not being computed, and through z alone."""
    kernel, plain, tensors = both_updates(case, True, wanted)
    # The last bias has no part in x′, and neither has the first where there is no layer norm.
    free = [f"mlp_{i}" for i in ((5,) if case == "small" else (1,) if case == "one_linear" else (13,))]
    fixed = {name: tensors.pop(name) for name in free} if wanted == "x" else {}
    harness.assert_same_gradients(lambda **t: kernel(**t, **fixed), lambda **t: plain(**t, **fixed), tensors)


def test_float32_update():
    """In the sizes of NextHAM, values and gradients as exact as the reference's."""

    def with_gradients(f):
        def run(*tensors):
            leaves = [harness.leaf(t) for t in tensors]
            y, z = f(*leaves)
            pull = torch.linspace(-1, 1, y.shape[1], dtype=y.dtype)
            loss = (y * pull).sum() + (z * pull[: z.shape[1]]).sum()
            return y.detach(), z.detach(), *torch.autograd.grad(loss, leaves)

        return run

    kernel, plain, tensors = both_updates("nextham", True, "xz")
    tensors = [t.float() for t in tensors.values()]
    harness.assert_as_exact_as_reference(with_gradients(kernel), with_gradients(plain), tensors)


def test_update_without_weights():
    """The gradient of x alone, the parameters being constants, without a graph and with one."""
    irreps = CASES["production"][0]
    x, forms, mlp = inputs("production")
    folded = fold_tracegrad(forms, mlp, irreps)
    y, z = tracegrad_update(x, folded)
    assert not y.requires_grad and not z.requires_grad
    results = []
    for update in (
        lambda x: tracegrad_update(x, folded),
        lambda x: reference.tracegrad_update(x, forms, mlp, irreps_of(irreps), 0.2, False),
    ):
        leaf = harness.leaf(x)
        results.append(torch.autograd.grad(sum(t.square().sum() for t in update(leaf)), leaf)[0])
    harness.assert_close(*results)


def test_update_by_references():
    """As `NEXTHAM_KERNELS=reference` binds it."""
    kernel, plain, tensors = both_updates("production", True, "xz")
    with use_reference():
        for actual, expected in zip(kernel(**tensors), plain(**tensors), strict=True):
            harness.assert_close(actual, expected)
        harness.assert_same_gradients(kernel, plain, tensors)


def test_instruction_sets_agree(instruction_set):
    test_update("production", True)


def test_threads():
    """Any number of threads gives the same result and gradients; the same number, the same bits."""
    x, forms, mlp = inputs("production", 150)
    tensors = [t.float() for t in (x, forms, *mlp)]

    def run():
        x, forms, *mlp = leaves = [harness.leaf(t) for t in tensors]
        made = tracegrad_update(x, fold_tracegrad(forms, mlp, CASES["production"][0]))
        return *(t.detach() for t in made), *torch.autograd.grad(sum(t.square().sum() for t in made), leaves)

    harness.assert_threads_agree(run, 1e-5)


@pytest.mark.parametrize("n_edges", [1, 32, 150])
def test_tiles_of_the_derivative(n_edges):
    """A part of a tile, a whole one, and several panels of which the last is not whole, in both precisions."""
    irreps = CASES["production"][0]
    x, forms, mlp = inputs("production", n_edges)

    def gradients(update):
        def run(*tensors):
            leaves = [harness.leaf(t) for t in tensors]
            y, z = update(*leaves)
            pull = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
            return torch.autograd.grad((y * pull).sum() + z.square().sum(), leaves)

        return run

    kernel = gradients(lambda x, forms, *mlp: tracegrad_update(x, fold_tracegrad(forms, mlp, irreps)))
    plain = gradients(lambda x, w, *mlp: reference.tracegrad_update(x, w, mlp, irreps_of(irreps), 0.2, False))
    for actual, expected in zip(kernel(x, forms, *mlp), plain(x, forms, *mlp), strict=True):
        harness.assert_close(actual, expected)
    harness.assert_as_exact_as_reference(kernel, plain, [t.float() for t in (x, forms, *mlp)])


def test_update_keeps_little():
    """1673 numbers per edge for the backward pass in the sizes of NextHAM, as `closed_form` says."""
    x, forms, mlp = inputs("nextham")
    folded = fold_tracegrad(forms, mlp, NEXTHAM[0])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        tracegrad_update(harness.leaf(x), folded)
    own = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 8 for t in kept if len(t) == len(x)}
    own.pop(folded.last.untyped_storage().data_ptr())
    assert sum(own.values()) == 1673 * len(x)


@pytest.mark.parametrize("case", CASES)
def test_folded_invariants(case):
    irreps = CASES[case][0]
    x, forms, mlp = inputs(case)

    def folded(x, forms, **named):
        rows = edge_layout(irreps).to_row(x)
        return folded_invariants(rows, fold_tracegrad(forms, [*named.values()], irreps), edge=True)

    def plain(x, forms, **named):
        return trace_invariants(x, forms, [*named.values()], irreps)

    tensors = {"x": x, "forms": forms, **{f"mlp_{i}": p for i, p in enumerate(mlp)}}
    harness.assert_close(folded(**tensors), plain(**tensors))
    harness.assert_same_gradients(folded, plain, tensors)


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance_of_the_update(inversion):
    irreps = CASES["production"][0]
    x, forms, mlp = inputs("production")
    folded = fold_tracegrad(forms, mlp, irreps)
    d = harness.representation(irreps, harness.random_rotation(1), inversion)
    y, z = tracegrad_update(x, folded)
    turned_y, turned_z = tracegrad_update(x @ d.T, folded)
    harness.assert_close(turned_z, z, 1e-11)
    harness.assert_close(turned_y, y @ d.T, 1e-11)


def test_contract_of_the_update():
    irreps, _, _ = CASES["small"]
    x, forms, mlp = inputs("small")
    folded = fold_tracegrad(forms, mlp, irreps)
    y, z = tracegrad_update(x[:0], folded)
    assert y.shape == (0, 14) and z.shape == (0, 3)
    assert tracegrad_update(x, folded, invariants=False)[1] is None
    harness.assert_close(tracegrad_update(x.T.contiguous().T, folded)[0], tracegrad_update(x, folded)[0])
    zero = tracegrad_update(torch.zeros_like(x), folded)[0]
    assert not zero.any()  # no gradient, and nothing to scale it by
    leaf = harness.leaf(x)
    with harness.raises(RuntimeError, "tracegrad_update has first derivatives only"):
        torch.autograd.grad(tracegrad_update(leaf, folded)[0].sum(), leaf, create_graph=True)
    with harness.raises(ValueError, "x: expected shape [e, 14]"):
        tracegrad_update(x[:, 1:], folded)
    with harness.raises(TypeError, "forms: expected dtype float32 as x, got float64"):
        folded_invariants(x.float(), folded)
    with harness.raises(ValueError, "weight: expected shape [70], got [69]"):
        fold_tracegrad(forms[1:], mlp, irreps)
    with harness.raises(ValueError, "irreps: expected each irrep once, got 1x0e+2x0e"):
        fold_tracegrad(forms, mlp, "1x0e+2x0e")
    with harness.raises(TypeError, "mlp[0]: expected dtype float64 as weight, got float32"):
        fold_tracegrad(forms, [p.float() for p in mlp], irreps)
