import pytest
import torch
from e3nn import o3

from nextham_kernels.clebsch_gordan import wigner_d
from nextham_kernels.edge_layout import edge_coefficient, edge_layout, edge_rotation

F = "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"
YZX = [1, 2, 0]
VECTORS = torch.tensor(
    [
        [0.3, -1.2, 0.7],
        [0, 0, 2.0],
        [0, 0, -2.0],
        [0, 3.0, 0],
        [0, -3.0, 0],
        [1.0, 0, 0],
        [1e-9, -2e-9, -1.0],
        [0, 0, 0],
    ],
    dtype=torch.float64,
)


def test_blocks_of_the_published_features():
    layout = edge_layout(F)
    assert [(b.m, b.sigma) for b in layout.blocks] == [(0, 1), (0, -1), (1, 0), (2, 0), (3, 0), (4, 0)]
    assert [(b.n, b.c) for b in layout.blocks] == [(1, 72), (1, 32), (2, 72), (2, 40), (2, 24), (2, 8)]
    assert layout.blocks[-1].columns(1) == slice(384, 392)
    assert layout.find(0, -1) == layout.blocks[1]
    assert layout.find(5, 0) is None


@pytest.mark.parametrize("irreps", [F, "3x0o", "2x5o+1x0e+3x5e", "1x10e", "0x1o+2x2e"])
def test_round_trip(irreps):
    layout = edge_layout(irreps)
    x = torch.randn(5, o3.Irreps(irreps).dim, dtype=torch.float64)
    torch.testing.assert_close(layout.from_row(layout.to_row(x)), x, rtol=0, atol=0)
    assert layout.index.sort().values.tolist() == list(range(x.shape[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotation_takes_edges_to_the_pole(dtype):
    vectors = VECTORS.to(dtype)
    turn = edge_rotation(vectors)
    eps = torch.finfo(dtype).eps
    pole = torch.zeros_like(vectors)
    pole[:, 2] = vectors.norm(dim=1)
    torch.testing.assert_close((turn @ vectors[:, :, None])[..., 0], pole, rtol=0, atol=10 * eps)
    torch.testing.assert_close(turn @ turn.mT, torch.eye(3, dtype=dtype).expand_as(turn), rtol=0, atol=10 * eps)
    torch.testing.assert_close(torch.linalg.det(turn), torch.ones(len(turn), dtype=dtype), rtol=0, atol=20 * eps)
    assert torch.equal(turn[-1], torch.eye(3, dtype=dtype))


@pytest.mark.parametrize("l", range(11))
def test_harmonics_have_one_component(l):
    vectors = VECTORS[:-1]
    d = wigner_d(edge_rotation(vectors), l)[l]
    y = o3.spherical_harmonics(l, vectors[:, YZX], normalize=True, normalization="component")
    pole = torch.zeros_like(y)
    pole[:, l] = (2 * l + 1) ** 0.5
    torch.testing.assert_close((d @ y[:, :, None])[..., 0], pole, rtol=0, atol=1e-6)


def test_rotation_has_a_finite_gradient_everywhere():
    vectors = VECTORS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((edge_rotation(vectors) * torch.randn(3, 3, dtype=torch.float64)).sum(), vectors)
    assert torch.isfinite(gradient).all()
    assert torch.autograd.gradcheck(edge_rotation, VECTORS[[0, 1, 2]].clone().requires_grad_())


@pytest.mark.parametrize("p1", [1, -1])
@pytest.mark.parametrize(
    ("l1", "l2", "l3"), [(0, 0, 0), (1, 1, 1), (2, 1, 2), (2, 3, 4), (3, 2, 1), (4, 5, 4), (1, 0, 1)]
)
def test_coefficient_is_the_tensor_product(l1, p1, l2, l3):
    """The path in e3nn, rotated into the edge frame, against one number per |m|."""
    ir1, ir2 = o3.Irrep(l1, p1), o3.Irrep(l2, (-1) ** l2)
    ir3 = o3.Irrep(l3, p1 * (-1) ** l2)
    product = o3.TensorProduct(
        [(1, ir1)], [(1, ir2)], [(1, ir3)], [(0, 0, 0, "uuu", False)], irrep_normalization="component"
    ).to(torch.float64)
    vector = VECTORS[:1]
    x = torch.randn(1, ir1.dim, dtype=torch.float64)
    y = o3.spherical_harmonics(l2, vector[:, YZX], normalize=True, normalization="component")
    d = wigner_d(edge_rotation(vector), max(l1, l3))
    before, after = edge_layout(f"{ir1}"), edge_layout(f"{ir3}")
    row_in, row_out = before.to_row(x @ d[l1][0].T), after.to_row(product(x, y) @ d[l3][0].T)
    for block in after.blocks:
        same = [b for b in before.blocks if b.m == block.m]  # one channel, so at most one block of each |m|
        for component in range(block.n):
            found = row_out[:, block.columns(component)]
            expected = torch.zeros_like(found)
            if same:
                expected = edge_coefficient(l1, p1, l2, l3, block.m) * row_in[:, same[0].columns(component)]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_bad_input_says_what_is_wrong():
    with pytest.raises(ValueError, match="m: expected 0 <= m <= 1, got 2"):
        edge_coefficient(1, -1, 1, 2, 2)
    with pytest.raises(ValueError, match="l3: expected"):
        edge_coefficient(1, -1, 1, 3, 0)
