"""edge_embedding: the composition against maps on e3nn's flat axis, the kernel against the composition."""

import harness
import pytest
import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.edge_embedding import EmbeddingWeights, edge_embedding, pack
from nextham_kernels.ops.rotation import edge_wigner, rotate_to_edges

CASES = {  # irreps that are read, irreps of the rows, maps, edges
    "small": ("5x0e+3x1o+2x2e", "4x0e+2x1o+3x1e+1x2e", 2, 5),  # nothing leads to 1e
    "nothing": ("2x0e", "2x0o", 1, 3),
    "production": (
        "40x0e+33x1o+7x1e+30x2e+18x2o+9x3e+16x3o+31x4e",
        "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e",
        4,
        77,
    ),
}


def problem(name, dtype=torch.float64, scattered=True):
    """x, D, weights and order; x has columns that nobody reads, and channels in any order."""
    irreps_in, irreps_out, n_maps, n_edges = CASES[name]
    generator = torch.Generator().manual_seed(0)
    there = {ir: mul for mul, ir in irreps_of(irreps_out)}
    matrices = {
        ir: harness.random(mul, n_maps * there[ir], seed=i).to(dtype)
        for i, (mul, ir) in enumerate(irreps_of(irreps_in))
        if ir in there
    }
    columns, width = None, None
    if scattered:
        channels = [ir.dim for mul, ir in irreps_of(irreps_in) for _ in range(mul)]
        starts = torch.zeros(len(channels), dtype=torch.int64)
        first = 1
        for i in torch.randperm(len(channels), generator=generator).tolist():
            starts[i], first = first, first + channels[i] + i % 2
        columns = torch.cat([s + torch.arange(n) for s, n in zip(starts, channels, strict=True)])
        width = first + 2
    weights = EmbeddingWeights(irreps_in, irreps_out, matrices, n_maps, columns, width)
    x = harness.random(n_edges + 2, weights.width, seed=20).to(dtype)
    wigner = edge_wigner(harness.random(n_edges, 3, seed=21).to(dtype), irreps_of(irreps_in).lmax + 1)
    return x, wigner, weights, torch.randperm(n_edges + 2, generator=generator)[:n_edges]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scattered", [True, False])
def test_reference_is_the_definition(name, scattered):
    x, wigner, weights, order = problem(name, scattered=scattered)
    irreps_in, irreps_out = irreps_of(weights.irreps_in), irreps_of(weights.irreps_out)
    x_own = x if weights.columns is None else x[:, weights.columns]
    parts = {
        ir: x_own[:, s].unflatten(1, (mul, ir.dim)) for (mul, ir), s in zip(irreps_in, irreps_in.slices(), strict=True)
    }
    expected = []
    for k in range(weights.n_maps):
        mapped = [
            torch.einsum("eui,uv->evi", parts[ir], weights.matrices[ir].unflatten(1, (-1, mul))[:, k]).flatten(1)
            if ir in weights.matrices
            else x.new_zeros(len(x), mul * ir.dim)
            for mul, ir in irreps_out
        ]
        expected.append(rotate_to_edges(torch.cat(mapped, dim=1), wigner, irreps_out, order))
    harness.assert_close(edge_embedding(x, wigner, weights, order), torch.stack(expected))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward(name, dtype, instruction_set):
    x, wigner, weights, order = problem(name, dtype)
    exact = problem(name)
    composed, expected = edge_embedding(x, wigner, weights, order), edge_embedding(*exact[:3], order)
    allowed = 2 * harness.relative_error(composed.double(), expected) + 8 * torch.finfo(dtype).eps
    harness.assert_close(edge_embedding(x, wigner, pack(weights), order).double(), expected, allowed)


def test_threads():
    x, wigner, weights, order = problem("production", torch.float32)
    packed = pack(weights)
    harness.assert_threads_agree(lambda: [edge_embedding(x, wigner, packed, order)])


def test_backward():
    x, wigner, weights, order = problem("small")
    names = list(weights.matrices)

    def run(x, *matrices):
        return edge_embedding(x, wigner, weights._replace(matrices=dict(zip(names, matrices, strict=True))), order)

    leaves = [harness.leaf(t) for t in (x, *weights.matrices.values())]
    assert torch.autograd.gradcheck(run, leaves)


def test_contract():
    x, wigner, weights, order = problem("small")
    packed = pack(weights)
    for w in (weights, packed):
        assert edge_embedding(x, wigner[:0], w, order[:0]).shape == (2, 0, irreps_of(weights.irreps_out).dim)
        strided = x.T.contiguous().T
        harness.assert_close(edge_embedding(strided, wigner, w, order), edge_embedding(x, wigner, w, order))
        own = edge_embedding(x[: len(order)], wigner, w)
        harness.assert_close(own, edge_embedding(x, wigner, w, torch.arange(len(order))))
        with harness.raises(ValueError, "x: expected"):
            edge_embedding(x[:, 1:], wigner, w, order)
        with harness.raises(ValueError, "wigner: expected"):
            edge_embedding(x, wigner[:, :9], w, order)
        with harness.raises(ValueError, "wigner: expected"):
            edge_embedding(x, wigner, w)
        with harness.raises(TypeError, "order: expected"):
            edge_embedding(x, wigner, w, order.int())
        with harness.raises(TypeError, "wigner"):
            edge_embedding(x, wigner.float(), w, order)
    with harness.raises(ValueError, "order: expected 0 <= index < 7"):
        edge_embedding(x, wigner, packed, order + 3)
    with harness.raises(ValueError, "neighbouring columns"):
        pack(weights._replace(columns=weights.columns.flip(0)))
