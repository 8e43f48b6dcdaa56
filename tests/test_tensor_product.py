"""tensor_product against e3nn's TensorProduct, whose constants are rounded to float32 (harness.GOLDEN)."""

import harness
import pytest
import torch
from e3nn import o3

from nextham_kernels.clebsch_gordan import wigner_3j
from nextham_kernels.ops.tensor_product import product, reference, tensor_product
from nextham_kernels.ops.tensor_product.plan import ZERO

MODES = tuple(reference.SUMS)
FEATURES, SECOND = "7x0e+5x1o+3x2e", "3x0e+2x1o+1x2e"
EQUAL = "4x0e+4x1o+4x1e"


def paths_of(mode):
    """Irreps and instructions with every coupling, some without weights, one path twice."""
    irreps_1, irreps_2 = {
        "uvu": (FEATURES, SECOND),
        "uvv": (SECOND, FEATURES),
        "uvw": (FEATURES, "3x0e+2x1o+11x2e"),
        "uvuv": (FEATURES, "3x0e+2x1o+11x2e"),
    }.get(mode, (EQUAL, EQUAL))
    irreps_1, irreps_2, out, instructions = o3.Irreps(irreps_1), o3.Irreps(irreps_2), [], []
    for i, (u, ir_1) in enumerate(irreps_1):
        for j, (v, ir_2) in enumerate(irreps_2):
            for ir in ir_1 * ir_2:
                pairs = u * (u - 1) // 2
                has_weight = mode in ("uvw", "u<vw") or (i + j) % 3 != 0
                mul = {"uvw": 5, "uvu": u, "uvv": v, "uuu": u, "uvuv": u * v, "uvu<v": pairs, "u<vw": 9}.get(mode)
                out.append((mul or (6 if has_weight else 1), ir))
                instructions.append((i, j, len(out) - 1, mode, has_weight))
    return irreps_1, irreps_2, o3.Irreps(out), [*instructions, instructions[1]]


def inputs(paths, shared, n=harness.EDGES):
    shapes = {"x": (n, paths.irreps_1.dim), "y": (n, paths.irreps_2.dim)}
    shapes["weight"] = (paths.n_weights,) if shared else (n, paths.n_weights)
    return {name: harness.random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def functions(paths):
    """The kernel and its reference."""
    return (
        lambda x, y, weight: tensor_product(x, y, weight, paths),
        lambda x, y, weight: reference.tensor_product(x, y, weight, paths.word),
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_reference_is_the_definition(mode, shared):
    paths = product(*paths_of(mode))
    module = o3.TensorProduct(*paths_of(mode), shared_weights=shared, internal_weights=False).double()
    assert module.weight_numel == paths.n_weights
    harness.assert_close(
        reference.tensor_product(*inputs(paths, shared).values(), paths.word),
        module(*inputs(paths, shared).values()),
        harness.GOLDEN,
    )


@pytest.mark.parametrize("path_normalization", ["element", "path", "none"])
@pytest.mark.parametrize("irrep_normalization", ["component", "norm", "none"])
def test_coefficients_are_e3nns(irrep_normalization, path_normalization):
    options = {
        "irrep_normalization": irrep_normalization,
        "path_normalization": path_normalization,
        "in1_var": [0.5, 2.0, 1.0],
        "in2_var": [1.0, 3.0, 0.25],
    }
    for mode in MODES:
        *irreps, instructions = paths_of(mode)
        instructions = [(*path, 1.0 + i) for i, path in enumerate(instructions)]
        options["out_var"] = [1.0 + i for i in range(len(irreps[2]))]
        module, paths = o3.TensorProduct(*irreps, instructions, **options), product(*irreps, instructions, **options)
        expected = [path.path_weight for path in module.instructions]
        assert [path.coefficient for path in paths.paths] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_forward(mode, shared, dtype):
    paths = product(*paths_of(mode))
    kernel, plain = functions(paths)
    harness.assert_as_exact_as_reference(kernel, plain, [x.to(dtype) for x in inputs(paths, shared).values()])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_backward(mode, shared):
    paths = product(*paths_of(mode))
    harness.assert_same_gradients(*functions(paths), inputs(paths, shared, 41))


@pytest.mark.parametrize("wanted", [("x",), ("y",), ("weight",), ("x", "weight")])
@pytest.mark.parametrize("mode", ["uvu", "uvw"])
def test_backward_of_some(mode, wanted):
    paths = product(*paths_of(mode))
    for shared in (True, False):
        given = inputs(paths, shared)
        chosen = {name: given.pop(name) for name in wanted}
        kernel, plain = functions(paths)
        harness.assert_same_gradients(
            lambda f=kernel, g=given, **leaves: f(**g, **leaves), lambda f=plain, g=given, **l: f(**g, **l), chosen
        )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_double_backward(mode, shared):
    paths = product(*paths_of(mode))
    kernel, plain = functions(paths)
    given = inputs(paths, shared)
    grad = harness.random(harness.EDGES, paths.irreps_out.dim, seed=7)

    def gradients(function):
        def of(grad, **leaves):
            leaves = {name: x if x.requires_grad else harness.leaf(x) for name, x in leaves.items()}
            return torch.autograd.grad(function(**leaves), list(leaves.values()), grad, create_graph=True)

        return of

    harness.assert_same_gradients(gradients(kernel), gradients(plain), {**given, "grad": grad})


def test_many_weights_and_channels():
    # more than 4096 weights of each row, more pairs than a batch, results in several chunks
    paths = product(
        "40x0e+9x1o",
        "30x0e+9x1o",
        "70x0e+8x1o",
        [(0, 0, 0, "uvw", True), (1, 1, 0, "uvw", True), (0, 1, 1, "uvw", True)],
    )
    big = product("200x1o", "1x1o", "200x1e+200x2e", [(0, 0, 0, "uvu", True), (0, 0, 1, "uvu", True)])
    for case, shared in ((paths, True), (paths, False), (big, False)):
        harness.assert_same_gradients(*functions(case), inputs(case, shared, 19))


def test_high_degrees():
    paths = product("3x11o", "1x11e", "3x10o+3x11o", [(0, 0, 0, "uvu", True), (0, 0, 1, "uvu", True)])
    harness.assert_same_gradients(*functions(paths), inputs(paths, False))
    smallest = min(c[c.abs() > ZERO].abs().min() for c in (wigner_3j(l, 11, 11) for l in range(12)))
    largest_noise = max(c[c.abs() <= ZERO].abs().max() for c in (wigner_3j(l, 11, 11) for l in range(12)))
    assert smallest > 1e-6 and largest_noise < 1e-11


def test_instruction_sets_agree(instruction_set):
    for mode in MODES:
        paths = product(*paths_of(mode))
        for shared in (True, False):
            harness.assert_same_gradients(*functions(paths), inputs(paths, shared))


def test_shared_gradients_are_deterministic():
    paths = product(*paths_of("uvw"))
    given = {name: harness.leaf(x) for name, x in inputs(paths, True, 500).items()}
    harness.assert_threads_agree(
        lambda: torch.autograd.grad(tensor_product(**given, product=paths).sum(), given["weight"]), harness.EXACT
    )


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode):
    mul = {"uvuv": 4, "uvu<v": 1}.get(mode, 2)
    paths = product("2x1o", "2x1o", f"{mul}x1e", [(0, 0, 0, mode, True)])
    for shared in (True, False):
        harness.gradcheck(functions(paths)[0], *inputs(paths, shared, 2).values())


@pytest.mark.parametrize("inversion", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_equivariance(mode, inversion):
    paths, rotation = product(*paths_of(mode)), harness.random_rotation(1)
    irreps = (paths.irreps_1, paths.irreps_2, paths.irreps_out)
    d_1, d_2, d_out = (harness.representation(i, rotation, inversion).T for i in irreps)
    given = inputs(paths, False)
    rotated = tensor_product(given["x"] @ d_1, given["y"] @ d_2, given["weight"], paths)
    harness.assert_close(rotated, tensor_product(**given, product=paths) @ d_out)


def test_compile_without_graph_breaks():
    paths = product(*paths_of("uvu"))
    given = {name: harness.leaf(x) for name, x in inputs(paths, False).items()}
    compiled = torch.compile(functions(paths)[0], fullgraph=True, backend="aot_eager")
    harness.assert_same_gradients(compiled, functions(paths)[0], given)


@pytest.mark.parametrize("dims", [(0, 0, 0), (1, None, None), (None, 0, 1), (None, None, 0)])
@pytest.mark.parametrize("shared", [True, False])
def test_vmap(shared, dims):
    paths = product(*paths_of("uvw"))
    given = []
    for t, dim in zip(inputs(paths, shared, 5).values(), dims, strict=True):
        dim = min(dim, t.ndim) if dim is not None else None
        given.append(t if dim is None else torch.stack([t, 2 * t, t + 1], dim=dim))
    dims = tuple(min(d, 1 if shared and i == 2 else 2) if d is not None else None for i, d in enumerate(dims))
    actual, expected = (torch.vmap(f, in_dims=dims)(*given) for f in functions(paths))
    harness.assert_close(actual, expected)
    harness.assert_same_gradients(
        *(lambda f=f, **leaves: torch.vmap(f, in_dims=dims)(*leaves.values()) for f in functions(paths)),
        dict(zip("abc", given, strict=True)),
    )


@pytest.mark.parametrize("shared", [True, False])
def test_many_gradients_at_once(shared):
    paths = product(*paths_of("uvw"))
    given = {name: harness.leaf(t) for name, t in inputs(paths, shared, 5).items()}
    cotangents = harness.random(3, 5, paths.dims[2], seed=8)

    def gradients(function):
        out, leaves = function(**given), list(given.values())
        return torch.vmap(lambda grad: torch.autograd.grad(out, leaves, grad, retain_graph=True))(cotangents)

    for a, e in zip(*(gradients(f) for f in functions(paths)), strict=True):
        harness.assert_close(a, e)


def test_contract():
    paths = product(*paths_of("uvu"))
    given = inputs(paths, False)
    assert tensor_product(*(t[:0] for t in given.values()), paths).shape == (0, paths.irreps_out.dim)
    no_rows = {name: harness.leaf(t[:0]) for name, t in given.items()}
    assert torch.autograd.grad(tensor_product(**no_rows, product=paths).sum(), no_rows["x"])[0].shape == (
        0,
        paths.dims[0],
    )
    turned = {name: t.T.contiguous().T for name, t in given.items()}
    harness.assert_close(tensor_product(**turned, product=paths), tensor_product(**given, product=paths))
    torch.library.opcheck(torch.ops.nextham.tensor_product, (*(harness.leaf(t) for t in given.values()), paths.word))
    empty = product("0x0e+2x1o", "1x0e", "3x0o+2x1o+0x2e", [(1, 0, 1, "uvu", False)])
    out = tensor_product(harness.random(2, 6), harness.random(2, 1), None, empty)
    assert out.shape == (2, 9) and not out[:, :3].any() and out[:, 3:].all()
    none = product("0x0e", "0e", "", [])
    assert tensor_product(torch.zeros(2, 0), torch.zeros(2, 1), None, none).shape == (2, 0)
    zero = product("0x0e+1x0e", "1x0e", "1x0e", [(0, 0, 0, "uvw", True), (1, 0, 0, "uvw", True)])
    assert zero.n_weights == 1
    with harness.raises(ValueError, "y: expected 17 rows as x, got 16"):
        tensor_product(given["x"], given["y"][1:], given["weight"], paths)
    with harness.raises(ValueError, "weight: expected shape [104] or [e, 104] with e = 17, got [17, 103]"):
        tensor_product(given["x"], given["y"], given["weight"][:, 1:], paths)
    with harness.raises(ValueError, "x: expected shape [e, 37]"):
        tensor_product(given["x"][:, 1:], given["y"], given["weight"], paths)
    with harness.raises(TypeError, "y: expected dtype float64 as x, got float32"):
        tensor_product(given["x"], given["y"].float(), given["weight"], paths)


def test_contract_of_paths():
    def made(*path, irreps=("2x1o", "3x1o", "2x0e"), **options):
        return product(*irreps, [path], **options)

    with harness.raises(ValueError, "(0, 0, 0, 'uuu'): expected equal multiplicities of x and y, got 2 and 3"):
        made(0, 0, 0, "uuu", True)
    with harness.raises(ValueError, "(0, 0, 0, 'uvv'): expected multiplicity 3 of the result, got 2"):
        made(0, 0, 0, "uvv", True)
    with harness.raises(ValueError, "1o x 1o does not hold 0o"):
        made(0, 0, 0, "uvu", True, irreps=("2x1o", "3x1o", "2x0o"))
    with harness.raises(ValueError, "expected a block 0 <= i < 1, got 1"):
        made(0, 1, 0, "uvu", True)
    with harness.raises(ValueError, "expected a mode of uvw, uvu"):
        made(0, 0, 0, "vuv", True)
    with harness.raises(ValueError, "expected weights"):
        made(0, 0, 0, "uvw", False)
    with harness.raises(ValueError, "expected a factor of the path >= 0, got -1.0"):
        made(0, 0, 0, "uvu", True, -1)
    with harness.raises(ValueError, "irrep_normalization: expected component, norm or none, got 'integral'"):
        made(0, 0, 0, "uvu", True, irrep_normalization="integral")
    with harness.raises(ValueError, "path_normalization: expected element, path or none, got 'all'"):
        made(0, 0, 0, "uvu", True, path_normalization="all")
    with harness.raises(ValueError, "in2_var: expected 1 numbers, one per block, got 2"):
        made(0, 0, 0, "uvu", True, in2_var=[1, 2])
