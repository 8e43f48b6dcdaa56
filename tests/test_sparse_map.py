"""SparseMap: constant sparse matrices, against dense ones."""

import harness
import pytest
import torch

from nextham_kernels.sparse_map import SparseMap

SHAPES = {
    "some": (7, 5, 12),
    "one each": (4, 4, 4),
    "nothing": (3, 2, 0),
    "no rows": (0, 3, 0),
    "no columns": (3, 0, 0),
}


def map_of(shape, ones=False):
    n_rows, n_columns, n = SHAPES[shape]
    if shape == "one each":
        rows, columns = torch.arange(4), torch.tensor([2, 0, 3, 1])
    else:
        places = torch.randperm(n_rows * n_columns, generator=torch.Generator().manual_seed(1))[:n]
        rows, columns = places // max(n_columns, 1), places % max(n_columns, 1)
    coefficients = torch.ones(n).double() if ones else harness.random(n, seed=2)
    dense = torch.zeros(n_rows, n_columns).double().index_put((rows, columns), coefficients)
    return SparseMap(rows, columns, coefficients, n_rows, n_columns), dense


@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_dense_matrix(shape, ones):
    ours, dense = map_of(shape, ones)
    for tail in ((), (3,), (2, 2)):
        x = harness.random(dense.shape[1], *tail, seed=3)
        harness.assert_close(ours(x), torch.tensordot(dense, x, 1))
    harness.assert_close(ours(x.float()), torch.tensordot(dense.float(), x.float(), 1), 1e-6)


@pytest.mark.parametrize("shape", ["some", "one each"])
def test_derivatives(shape):
    ours, dense = map_of(shape)
    x = harness.random(dense.shape[1], 2, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(ours, x) and torch.autograd.gradgradcheck(ours, x)
    (grad,) = torch.autograd.grad(ours(x).sum(), x)
    harness.assert_close(grad, dense.sum(0)[:, None].expand(-1, 2))
