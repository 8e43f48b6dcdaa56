"""edge_wigner against spherical harmonics, rotation into the edge frame and back against loops over edges."""

import harness
import pytest
import torch
from e3nn import o3

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout, edge_rotation
from nextham_kernels.ops.rotation import edge_wigner, reference, rotate_to_edges, rotate_to_nodes

CASES = {
    "plain": "4x0e+2x1o+3x1e+1x2e",
    "odd": "5x0e+3x0o+7x1o+29x1e+0x9e+6x2e+1x2o+11x3o",
    "high": "2x10e+3x5o+1x6e+1x7o",
    "production": "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e",
}
SPECIAL = [
    [0, 0, 2.0],
    [0, 0, -2.0],
    [0, 3.0, 0],
    [0, -3.0, 0],
    [1.0, 0, 0],
    [1e-9, -2e-9, -1.0],
    [1e-30, 0, 0],
    [0, 0, 0],
]


def vectors(n_edges=harness.EDGES):
    """Random edges, the last ones along axes or without length."""
    v = harness.random(n_edges, 3, seed=4)
    v[-len(SPECIAL) :] = torch.tensor(SPECIAL, dtype=v.dtype)[-n_edges:]
    return v


def inputs(case, n_edges=harness.EDGES, n_nodes=harness.NODES):
    """Everything that the ops take, the tensors that have gradients and the indices; node 1 has no edge."""
    irreps = irreps_of(CASES[case])
    generator = torch.Generator().manual_seed(5)
    src, dst = (torch.randint(n_nodes - 1, (n_edges,), generator=generator) for _ in range(2))
    tensors = {
        "source": harness.random(n_nodes, irreps.dim, seed=1),
        "target": harness.random(n_nodes, irreps.dim, seed=2),
        "wigner": edge_wigner(vectors(n_edges), min(irreps.lmax + 1, 10)),
    }
    return tensors, harness.random(n_edges, irreps.dim, seed=3), *(index + (index > 0) for index in (src, dst))


@pytest.mark.parametrize("l", range(11))
def test_edge_wigner_is_the_definition(l):
    """D^l(Q) Y^l(p) = Y^l(Q p), for any p."""
    v, p = vectors(), harness.random(4, 3, seed=6)
    d = edge_wigner(v, 10)[:, sum((2 * k + 1) ** 2 for k in range(l)) :][:, : (2 * l + 1) ** 2]
    before, after = (
        o3.spherical_harmonics(l, q[..., [1, 2, 0]], normalize=True)
        for q in (p.expand(len(v), 4, 3), p @ edge_rotation(v).mT)
    )
    harness.assert_close(before @ d.unflatten(1, (2 * l + 1, -1)).mT, after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("l_max", [0, 1, 2, 4, 10])
def test_edge_wigner_forward(l_max, dtype):
    v = vectors().to(dtype)
    d = edge_wigner(v, l_max)
    exact, atol = reference.edge_wigner(v.double(), l_max), 6e-8 if dtype == torch.float32 else 5e-15
    torch.testing.assert_close(d, exact.to(dtype), rtol=0, atol=atol)
    unit = torch.cat([torch.eye(2 * l + 1, dtype=dtype).flatten() for l in range(l_max + 1)])
    torch.testing.assert_close(d[-1], unit, rtol=0, atol=5e-15)
    torch.testing.assert_close(d[3], edge_wigner(v[3:4], l_max)[0], rtol=0, atol=atol)


@pytest.mark.triton
@pytest.mark.parametrize("l_max", [0, 1, 4, 10])
def test_edge_wigner_gpu_kernel(l_max):
    with harness.on_gpu() as device:
        double = edge_wigner(vectors().to(device), l_max).cpu()
        single = edge_wigner(vectors().float().to(device), l_max).cpu()
    torch.testing.assert_close(double, reference.edge_wigner(vectors(), l_max), rtol=0, atol=5e-15)
    rounded = reference.edge_wigner(vectors().float().double(), l_max).float()
    torch.testing.assert_close(single, rounded, rtol=0, atol=6e-8)


@pytest.mark.triton
def test_edge_wigner_gradient_on_a_gpu():
    harness.assert_gpu_kernel(
        "edge_wigner edge_wigner_backward",
        lambda vector: edge_wigner(vector, 4),
        lambda vector: reference.edge_wigner(vector, 4),
        {"vector": vectors()},
    )


def test_edge_wigner_gradient():
    for l_max in (1, 4):
        functions = (lambda vector, f=f, l=l_max: f(vector, l) for f in (edge_wigner, reference.edge_wigner))
        harness.assert_same_gradients(*functions, {"vector": vectors()})
    harness.gradcheck(lambda v: edge_wigner(v, 2), vectors()[[0, 9]])
    v = harness.leaf(vectors())
    (gradient,) = torch.autograd.grad((edge_wigner(v, 4) * harness.random(len(v), 165)).sum(), v)
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient[-1], torch.zeros(3, dtype=v.dtype))


@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_definition(case):
    tensors, rows, src, dst = inputs(case)
    irreps, layout = CASES[case], edge_layout(CASES[case])
    source, target, wigner = tensors.values()
    expected, nodes = [], torch.zeros_like(source)
    for e, turn in enumerate(edge_rotation(vectors())):
        d = harness.representation(irreps, turn)
        expected.append(layout.to_row((d @ (source[src[e]] + target[dst[e]]))[None])[0])
        nodes[dst[e]] += d.T @ layout.from_row(rows[e : e + 1])[0]
    harness.assert_close(rotate_to_edges(source, wigner, irreps, src, target, dst), torch.stack(expected))
    harness.assert_close(rotate_to_nodes(rows, wigner, irreps, dst, len(source)), nodes)


def functions(case, node_rows, sort=False):
    """(op, its reference, its inputs) for both ops, and for each without an index."""
    tensors, rows, src, dst = inputs(case)
    dst = dst.sort().values if sort else dst
    irreps, n, every = CASES[case], harness.NODES, torch.arange(harness.EDGES)

    def to_edges(source, target, wigner):
        return rotate_to_edges(source, wigner, irreps, src, target, dst, node_rows)

    def plain_to_edges(source, target, wigner):
        return reference.rotate_to_edges(source, target, wigner, src, dst, irreps, node_rows)

    def rotate(rows, wigner):
        return rotate_to_edges(rows, wigner, irreps, node_rows=node_rows)

    def plain_rotate(rows, wigner):
        return reference.rotate_to_edges(rows, rows[:0], wigner, every, every, irreps, node_rows)

    def to_nodes(rows, wigner):
        return rotate_to_nodes(rows, wigner, irreps, dst, n, node_rows)

    def plain_to_nodes(rows, wigner):
        return reference.rotate_to_nodes(rows, wigner, dst, n, irreps, node_rows)

    def back(rows, wigner):
        return rotate_to_nodes(rows, wigner, irreps, node_rows=node_rows)

    def plain_back(rows, wigner):
        return reference.rotate_to_nodes(rows, wigner, every, len(every), irreps, node_rows)

    of_edges = {"rows": rows, "wigner": tensors["wigner"]}
    return [
        (to_edges, plain_to_edges, tensors),
        (rotate, plain_rotate, of_edges),
        (to_nodes, plain_to_nodes, of_edges),
        (back, plain_back, of_edges),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("node_rows", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_forward(case, node_rows, dtype):
    for op, plain, tensors in [*functions(case, node_rows), *functions(case, node_rows, sort=True)]:
        harness.assert_as_exact_as_reference(op, plain, [t.to(dtype) for t in tensors.values()], op.__name__)


@pytest.mark.parametrize("node_rows", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_backward(case, node_rows):
    for op, plain, tensors in functions(case, node_rows):
        harness.assert_same_gradients(op, plain, tensors)


@pytest.mark.triton
@pytest.mark.parametrize("node_rows", [False, True])
@pytest.mark.parametrize("case", ["plain", "odd", "high"])
def test_gpu_kernel(case, node_rows):
    irreps, n = CASES[case], harness.NODES
    tensors, rows, src, dst = inputs(case, n_edges=6)
    every = torch.arange(6)

    def plain_there(source, target, wigner, src, dst):
        return reference.rotate_to_edges(source, target, wigner, src, dst, irreps, node_rows)

    def plain_back(rows, wigner, dst):
        return reference.rotate_to_nodes(rows, wigner, dst, n, irreps, node_rows)

    harness.assert_gpu_kernel(
        "rotate_to_edges rotate_to_edges_backward",
        lambda source, target, wigner, src, dst: rotate_to_edges(source, wigner, irreps, src, target, dst, node_rows),
        plain_there,
        {**tensors, "src": src, "dst": dst},
    )
    harness.assert_gpu_kernel(
        "rotate_to_edges",
        lambda rows, wigner: rotate_to_edges(rows, wigner, irreps, node_rows=node_rows),
        lambda rows, wigner: plain_there(rows, rows[:0], wigner, every, every),
        {"rows": rows, "wigner": tensors["wigner"]},
    )
    for index, ascending in ((src, False), (dst.sort().values, True)):
        harness.assert_gpu_kernel(
            "rotate_to_nodes rotate_to_nodes_backward",
            lambda rows, wigner, dst, ascending=ascending: rotate_to_nodes(
                rows, wigner, irreps, dst, n, node_rows, ascending
            ),
            plain_back,
            {"rows": rows, "wigner": tensors["wigner"], "dst": index},
        )
    harness.assert_gpu_kernel(
        "rotate_to_nodes rotate_to_nodes_backward",
        lambda rows, wigner: rotate_to_nodes(rows, wigner, irreps, node_rows=node_rows),
        lambda rows, wigner: reference.rotate_to_nodes(rows, wigner, every[:0], 6, irreps, node_rows),
        {"rows": rows, "wigner": tensors["wigner"]},
    )


def test_instruction_sets_agree(instruction_set):
    harness.assert_close(edge_wigner(vectors(), 10), reference.edge_wigner(vectors(), 10))
    for case in ("odd", "production"):
        for op, plain, tensors in functions(case, False):
            harness.assert_as_exact_as_reference(op, plain, [t.float() for t in tensors.values()], op.__name__)
            harness.assert_same_gradients(op, plain, tensors)


@pytest.mark.parametrize("node_rows", [False, True])
@pytest.mark.parametrize("n_edges", [7, 400])
def test_few_and_many_edges_per_node(n_edges, node_rows):
    """With few, nodes on e3nn's axis are permuted for each edge, with many for all edges at once."""
    tensors, rows, src, dst = inputs("odd", n_edges)
    source, target, wigner = tensors.values()
    irreps = CASES["odd"]
    there = rotate_to_edges(source, wigner, irreps, src, target, dst, node_rows)
    harness.assert_close(there, reference.rotate_to_edges(source, target, wigner, src, dst, irreps, node_rows))
    back = rotate_to_nodes(rows, wigner, irreps, src, len(source), node_rows)
    harness.assert_close(back, reference.rotate_to_nodes(rows, wigner, src, len(source), irreps, node_rows))
    assert not back[1].any()


def test_threads_do_not_matter():
    tensors, rows, src, dst = inputs("production", n_edges=300)
    source, target, wigner = tensors.values()

    def run():
        there = rotate_to_edges(source, wigner, CASES["production"], src, target, dst)
        return there, rotate_to_nodes(rows, wigner, CASES["production"], dst, len(source))

    harness.assert_threads_agree(run)


def test_adjoint():
    """⟨row, to_edges(x)⟩ = ⟨to_nodes(row), x⟩, and back after forth is the identity."""
    tensors, rows, src, _ = inputs("odd")
    source, _, wigner = tensors.values()
    there = rotate_to_edges(source, wigner, CASES["odd"], src)
    harness.assert_close((rows * there).sum(), (rotate_to_nodes(rows, wigner, CASES["odd"], src, 5) * source).sum())
    harness.assert_close(rotate_to_nodes(there, wigner, CASES["odd"]), source[src])


def test_gradcheck():
    """First and second derivatives, the edges' vectors among them."""
    irreps = "1x0e+2x1o+1x1e"
    src, dst = torch.tensor([1, 0, 1]), torch.tensor([0, 2, 0])
    source, target, rows = (harness.random(3, 10, seed=s) for s in range(3))

    def there(source, target, vector):
        return rotate_to_edges(source, edge_wigner(vector, 1), irreps, src, target, dst)

    def back(rows, vector):
        return rotate_to_nodes(rows, edge_wigner(vector, 2), irreps, dst, 3, node_rows=True)

    harness.gradcheck(there, source, target, vectors()[:3])
    harness.gradcheck(back, rows, vectors()[:3])


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    """A weight for each |m| in the frame of each edge keeps the symmetry of the whole."""
    tensors, _, src, dst = inputs("odd")
    source, target, _ = tensors.values()
    irreps, v, turn = CASES["odd"], harness.random(harness.EDGES, 3), harness.random_rotation(1)
    d = harness.representation(irreps, turn, inversion)
    weight = torch.cat([torch.full((b.n * b.c,), 1.0 + b.m, dtype=v.dtype) for b in edge_layout(irreps).blocks])

    def message(source, target, v):
        wigner = edge_wigner(v, irreps_of(irreps).lmax)
        rows = rotate_to_edges(source, wigner, irreps, src, target, dst) * weight
        return rotate_to_nodes(rows, wigner, irreps, dst, len(source))

    turned = message(source @ d.T, target @ d.T, v @ turn.T * (-1 if inversion else 1))
    harness.assert_close(turned, message(source, target, v) @ d.T)


def test_contract():
    tensors, rows, src, dst = inputs("plain")
    source, target, wigner = tensors.values()
    irreps = CASES["plain"]
    assert edge_wigner(vectors()[:0], 2).shape == (0, 35)
    assert rotate_to_edges(source, wigner[:0], irreps, src[:0], target, dst[:0]).shape == (0, 24)
    assert rotate_to_edges(source[:0], wigner[:0], irreps).shape == (0, 24)
    assert rotate_to_edges(source[:, :0], wigner[:5], "").shape == (5, 0)
    assert torch.equal(rotate_to_nodes(rows[:0], wigner[:0], irreps, dst[:0], 3), source.new_zeros(3, 24))
    expected = rotate_to_edges(source, wigner, irreps, src, target, dst)
    source_t, wigner_t, target_t = (t.T.contiguous().T for t in (source, wigner, target))
    harness.assert_close(rotate_to_edges(source_t, wigner_t, irreps, src, target_t, dst), expected)

    floating = [*map(harness.leaf, (source, target, wigner))]
    torch.library.opcheck(torch.ops.nextham.edge_wigner, (harness.leaf(vectors()), 2))
    torch.library.opcheck(torch.ops.nextham.rotate_to_edges, (*floating, src, dst, irreps, False))
    torch.library.opcheck(
        torch.ops.nextham.rotate_to_nodes, (harness.leaf(rows), floating[2], dst, 5, irreps, False, False)
    )


def test_bad_arguments():
    tensors, rows, src, dst = inputs("plain")
    source, target, wigner = tensors.values()
    irreps = CASES["plain"]
    with harness.raises(ValueError, "vector: expected shape [e, 3], got [17, 2]"):
        edge_wigner(vectors()[:, :2], 1)
    with harness.raises(ValueError, "l_max: expected 0 to 10, got 11"):
        edge_wigner(vectors(), 11)
    with harness.raises(ValueError, "target, dst: expected both or neither, got one"):
        rotate_to_edges(source, wigner, irreps, src, target)
    with harness.raises(ValueError, "target: expected shape [e, 24]"):
        rotate_to_edges(source, wigner, irreps, src, target[:, 1:], dst)
    with harness.raises(ValueError, "wigner: expected at least 35 columns for irreps 4x0e+2x1o+3x1e+1x2e, got 34"):
        rotate_to_edges(source, wigner[:, :34], irreps, src)
    with harness.raises(ValueError, "src: expected shape [e] with e = 17, got [16]"):
        rotate_to_edges(source, wigner, irreps, src[1:])
    with harness.raises(ValueError, "src: expected 0 <= index < 4, got 0 to 4"):
        rotate_to_edges(source[:4], wigner, irreps, src, target, dst)
    with harness.raises(ValueError, "dst: expected 0 <= index < 5, got -1 to 3"):
        rotate_to_edges(source, wigner, irreps, src, target, dst - 1)
    with harness.raises(ValueError, "dst: expected 0 <= index < 0, got 0 to 4"):
        rotate_to_edges(source, wigner, irreps, src, target[:0], dst)
    with harness.raises(ValueError, "irreps: expected degrees of at most 10, got 1x11e"):
        rotate_to_edges(source, wigner, "1x11e", src)
    with harness.raises(ValueError, "dst, n_nodes: expected both or neither, got one"):
        rotate_to_nodes(rows, wigner, irreps, dst)
    with harness.raises(ValueError, "dst: expected 0 <= index < 2, got 0 to 4"):
        rotate_to_nodes(rows, wigner, irreps, dst, 2)
    with harness.raises(ValueError, "n_nodes: expected 0 or more, got -1"):
        rotate_to_nodes(rows, wigner, irreps, dst, -1)
    with harness.raises(TypeError, "src: expected dtype int64, got int32"):
        rotate_to_edges(source, wigner, irreps, src.int())
    with harness.raises(TypeError, "wigner: expected dtype float64 as rows, got float32"):
        rotate_to_nodes(rows, wigner.float(), irreps)
