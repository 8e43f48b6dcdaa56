"""gram and gram_apply against loops over channels, and each as the derivative of the other."""

import harness
import pytest
import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.gram import gram, gram_apply, gram_update, n_pairs, reference

CASES = {
    "plain": "3x0e+2x1o+1x2e",
    "repeated": "2x1e+5x0o+0x2e+3x1e",
    "one_tile_of_four": "4x1o+9x0e",
    "production": "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e",
}
OPS = {"gram": (gram, reference.gram), "gram_apply": (gram_apply, reference.gram_apply)}


def inputs(op, case, n_edges=harness.EDGES):
    d = irreps_of(CASES[case]).dim
    second = {"y": harness.random(n_edges, d, seed=2)}
    if op == "gram_apply":
        second = {"c": harness.random(n_edges, n_pairs(CASES[case]), seed=3)}
    tensors = {"x": harness.random(n_edges, d, seed=1), **second}
    return tensors if op == "gram" else {"c": tensors["c"], "x": tensors["x"]}


def channels(x, irreps):
    """The vectors [2l + 1] of the channels of each block, for one edge."""
    start = 0
    for mul, ir in irreps_of(irreps):
        yield [x[start + u * ir.dim : start + (u + 1) * ir.dim] for u in range(mul)]
        start += mul * ir.dim


def loop_gram(x, y, irreps):
    result = []
    for a, b in zip(channels(x, irreps), channels(y, irreps), strict=True):
        for u in range(len(a)):
            result.append(a[u] @ b[u])
            result += [a[u] @ b[v] + a[v] @ b[u] for v in range(u + 1, len(a))]
    return torch.stack(result)


def loop_apply(c, x, irreps):
    result, entries = [], iter(c.tolist())
    for a in channels(x, irreps):
        y = [torch.zeros_like(vector) for vector in a]
        for u in range(len(a)):
            for v in range(u, len(a)):
                entry = next(entries)
                y[u] = y[u] + entry * a[v]
                if u != v:
                    y[v] = y[v] + entry * a[u]
        result += y
    assert next(entries, None) is None
    return torch.cat(result)


@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_definition(case):
    for op, loop in (("gram", loop_gram), ("gram_apply", loop_apply)):
        first, second = inputs(op, case, 2).values()
        expected = torch.stack([loop(a, b, CASES[case]) for a, b in zip(first, second, strict=True)])
        harness.assert_close(OPS[op][1](first, second, CASES[case], False), expected)


def both(op, case, edge):
    """The op and its reference, and inputs laid out as they read them."""
    tensors = inputs(op, case)
    if edge:
        tensors = {n: t if n == "c" else edge_layout(CASES[case]).to_row(t) for n, t in tensors.items()}

    def by(f):
        return lambda *args, **named: f(*args, *named.values(), CASES[case], edge)

    return *map(by, OPS[op]), tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("op", OPS)
def test_forward(op, case, edge, dtype):
    kernel, plain, tensors = both(op, case, edge)
    harness.assert_as_exact_as_reference(kernel, plain, [t.to(dtype) for t in tensors.values()])
    if op == "gram":
        x = tensors["x"].to(dtype)
        harness.assert_as_exact_as_reference(lambda x: kernel(x, x), lambda x: plain(x, x), [x])


@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("op", OPS)
def test_backward(op, case, edge):
    kernel, plain, tensors = both(op, case, edge)
    harness.assert_same_gradients(kernel, plain, tensors)
    for name in tensors:  # with one gradient alone
        others = {n: t for n, t in tensors.items() if n != name}

        def of(f, name=name, others=others):
            return lambda **own: f(**{n: own.get(n, others.get(n)) for n in (*tensors,)})

        harness.assert_same_gradients(of(kernel), of(plain), {name: tensors[name]})


@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op):
    harness.gradcheck(lambda a, b: OPS[op][0](a, b, CASES["plain"]), *inputs(op, "plain", 2).values())


def test_instruction_sets_agree(instruction_set):
    for op in OPS:
        kernel, plain, tensors = both(op, "production", True)
        harness.assert_close(kernel(**tensors), plain(**tensors))
        harness.assert_same_gradients(kernel, plain, tensors)


def test_threads_agree():
    x = harness.random(300, 392)  # above the size where a second thread starts

    def run():
        g = gram(x, x, CASES["production"])
        return g, gram_apply(g, x, CASES["production"])

    harness.assert_threads_agree(run)


@pytest.mark.parametrize("case", CASES)
def test_each_is_the_derivative_of_the_other(case):
    """Σ C · gram(x, y) = ⟨x, gram_apply(C, y)⟩, and ∂/∂x Σ C · gram(x, x) = 2 gram_apply(C, x)."""
    irreps = CASES[case]
    x, y = inputs("gram", case).values()
    c, _ = inputs("gram_apply", case).values()
    harness.assert_close((c * gram(x, y, irreps)).sum(1), (x * gram_apply(c, y, irreps)).sum(1))
    leaf = harness.leaf(x)
    (gradient,) = torch.autograd.grad((c * gram(leaf, leaf, irreps)).sum(), leaf)
    harness.assert_close(gradient, 2 * gram_apply(c, x, irreps))


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    irreps = CASES["production"]
    x, y = inputs("gram", "production").values()
    c, _ = inputs("gram_apply", "production").values()
    d = harness.representation(irreps, harness.random_rotation(1), inversion)
    harness.assert_close(gram(x @ d.T, y @ d.T, irreps), gram(x, y, irreps), 1e-11)
    harness.assert_close(gram_apply(c, x @ d.T, irreps), gram_apply(c, x, irreps) @ d.T, 1e-11)


def test_contract():
    irreps = CASES["plain"]
    x, y = inputs("gram", "plain").values()
    c, _ = inputs("gram_apply", "plain").values()
    assert gram(x[:0], y[:0], irreps).shape == (0, 10)
    assert gram_apply(c[:0], x[:0], irreps).shape == (0, 14)
    assert gram(x[:, :0], x[:, :0], "").shape == (17, 0)
    harness.assert_close(gram(x.T.contiguous().T, y, irreps), gram(x, y, irreps))
    harness.assert_close(gram_apply(c.T.contiguous().T, x, irreps), gram_apply(c, x, irreps))
    torch.library.opcheck(torch.ops.nextham.gram, (harness.leaf(x), harness.leaf(y), irreps, True))
    torch.library.opcheck(torch.ops.nextham.gram_apply, (harness.leaf(c), harness.leaf(x), irreps, False))
    with harness.raises(ValueError, "x: expected shape [e, 14]"):
        gram(x[:, 1:], y, irreps)
    with harness.raises(ValueError, "y: expected shape [e, d] with e = 17, d = 14, got [16, 14]"):
        gram(x, y[1:], irreps)
    with harness.raises(ValueError, "c: expected shape [e, 10] with e = 17, got [17, 9]"):
        gram_apply(c[:, 1:], x, irreps)
    with harness.raises(TypeError, "y: expected dtype float64 as x, got float32"):
        gram(x, y.float(), irreps)
    with harness.raises(TypeError, "x: expected dtype float64 as c, got float32"):
        gram_apply(c, x.float(), irreps)


@pytest.mark.triton
@pytest.mark.parametrize(("case", "edge"), [("plain", False), ("repeated", True), ("production", True)])
@pytest.mark.parametrize("op", OPS)
def test_gpu_kernel(op, case, edge):
    kernel, plain = OPS[op]
    irreps = str(irreps_of(CASES[case]))
    harness.assert_gpu_kernel(
        f"{op} {op}_backward",
        lambda **tensors: kernel(*tensors.values(), irreps, edge),
        lambda **tensors: plain(*tensors.values(), irreps, edge),
        inputs(op, case, 3 if case == "production" else 9),
        second=case != "production",
    )
    if op == "gram" and case != "production":
        harness.assert_gpu_kernel(
            "gram gram_backward",
            lambda x: kernel(x, x, irreps, edge),
            lambda x: plain(x, x, irreps, edge),
            {"x": inputs(op, case, 9)["x"]},
        )


@pytest.mark.triton
@pytest.mark.parametrize(("case", "edge"), [("plain", False), ("repeated", True), ("production", True)])
def test_gpu_kernel_of_the_update(case, edge):
    irreps = str(irreps_of(CASES[case]))
    harness.assert_gpu_kernel(
        "gram_update",
        lambda **tensors: gram_update(*tensors.values(), irreps, 0.2, edge),
        lambda **tensors: reference.gram_update(*tensors.values(), irreps, edge, 0.2),
        inputs("gram_apply", case, 3 if case == "production" else 9),
    )


@pytest.mark.parametrize("edge", [False, True])
def test_update(edge):
    irreps = CASES["repeated"]
    given = inputs("gram_apply", "repeated")
    g = 2 * gram_apply(*given.values(), irreps, edge)
    expected = given["x"] + 0.3 * (given["x"].norm(dim=1) / (g.norm(dim=1) + 1e-5))[:, None] * g
    harness.assert_close(gram_update(*given.values(), irreps, 0.3, edge), expected)
    name = str(irreps_of(irreps))
    harness.assert_same_gradients(
        lambda c, x: gram_update(c, x, irreps, 0.3, edge),
        lambda c, x: reference.gram_update(c, x, name, edge, 0.3),
        given,
    )
