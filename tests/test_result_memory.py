"""Memory of large results: kept, bounded, never shared by two tensors that live."""

import copy
import io
import sys
from concurrent.futures import ThreadPoolExecutor

import harness
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nextham_kernels import result_memory
from nextham_kernels.ops.tensor_product import product, reference, tensor_product

N = result_memory.SMALLEST // 8
LIKE = torch.zeros(1, dtype=torch.float64)
WIDE = product("2x0e+1x1o", "1x0e+1x1o", "2x0e+1x1o", [(0, 0, 0, "uvu", True), (1, 1, 0, "uvw", True)])

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="blocks of our own exist on Linux alone")


@pytest.fixture(autouse=True)
def nothing_kept():
    result_memory.release()
    yield
    result_memory.release()


def test_a_freed_block_serves_the_next_result():
    first = result_memory.empty(LIKE, (N, 2))
    place = first.data_ptr()
    second = result_memory.empty(LIKE, (N, 2))
    assert second.data_ptr() != place
    part = first[N // 2 :, 1]
    del first
    third = result_memory.empty(LIKE, (N, 2))
    assert third.data_ptr() not in (place, second.data_ptr())  # a view keeps the block
    del part
    fourth = result_memory.empty(LIKE.float(), (2, 2 * N - 7))  # a little smaller, of another dtype
    assert fourth.data_ptr() == place and fourth.dtype == torch.float32
    assert result_memory.release() == 0


def test_small_results_and_other_sizes():
    assert result_memory.empty(LIKE, (N - 1,)).untyped_storage().resizable()
    large = result_memory.empty(LIKE, (4 * N,))
    assert large.shape == (4 * N,) and not large.untyped_storage().resizable()
    del large
    small = result_memory.empty(LIKE, (N,))  # not from a block four times as large
    assert result_memory.release() >= 4 * N * 8
    assert result_memory.empty_like(small.view(2, -1).T).is_contiguous()


def test_zeros_on_used_memory_and_other_devices():
    used = result_memory.empty(LIKE, (N,)).fill_(1.0)
    place = used.data_ptr()
    del used
    zeros = result_memory.zeros(LIKE, (N,))
    assert zeros.data_ptr() == place and not zeros.any()
    assert result_memory.empty(LIKE.to("meta"), (N,)).device.type == "meta"
    with FakeTensorMode() as mode:
        assert type(result_memory.empty(mode.from_tensor(LIKE), (N,))) is not torch.Tensor


def test_rounding():
    for n in [*range(result_memory.SMALLEST, 200 << 20, 7_654_321), 64 << 20, (64 << 20) + 1]:
        rounded = result_memory._rounded(n)
        assert n <= rounded <= n * 1.125 + (2 << 20) and rounded % (2 << 20) == 0


def test_no_more_is_kept_than_allowed(monkeypatch):
    monkeypatch.setattr(result_memory, "SHARE", 0)
    del_me = result_memory.empty(LIKE, (N,))
    del del_me
    assert result_memory.release() == 0


def test_tensors_are_ordinary():
    tensor = result_memory.empty(LIKE, (N,)).fill_(2.0)
    stored = io.BytesIO()
    torch.save(tensor, stored)
    stored.seek(0)
    for other in (copy.deepcopy(tensor), torch.load(stored), tensor.clone(), tensor.float()):
        assert other.data_ptr() != tensor.data_ptr() and bool((other == 2).all())
    assert not tensor._is_view()  # else autograd copies the gradient of whatever writes to it in place
    assert (tensor.requires_grad_() * 3).sum().item() == 6 * N


def test_results_on_used_blocks():
    """What the block held before never shows, in results and gradients, from several threads at once."""
    rows = 3 * N // WIDE.dims[2]
    x, y = harness.random(rows, WIDE.dims[0]), harness.random(rows, WIDE.dims[1], seed=1)
    weight, grad = harness.random(WIDE.n_weights, seed=2), harness.random(rows, WIDE.dims[2], seed=3)
    expected = reference.tensor_product(x, y, weight, WIDE.word)

    def run(_):
        garbage = [result_memory.empty(LIKE, (rows, WIDE.dims[2])).fill_(float("nan")) for _ in range(2)]
        del garbage
        leaf = harness.leaf(x)
        out = tensor_product(leaf, y, weight, WIDE)
        (pulled,) = torch.autograd.grad(out, leaf, grad)
        return out.detach(), pulled

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(6)))
    for out, pulled in results:
        harness.assert_close(out, expected)
        assert torch.equal(pulled, results[0][1]) and bool(pulled.isfinite().all())
