"""Triton kernels compiled without a GPU: no spills, shared memory within the limit, offsets of 64 bit, costs."""

import pytest
import torch

from bench import offline, static
from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.coverage import coverage
from nextham_kernels.loading import gpu_kernel
from nextham_kernels.registration import GPU_KERNELS

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def kernels():
    """One target, the one that is in use most; `python -m bench --static` compiles for all, and for doubles."""
    return offline.compiled_kernels([90], doubles=False)


def test_every_triton_function_of_the_network_is_compiled(kernels):
    called = {GPU_KERNELS.get(call.op) for training in (False, True) for call in offline.network_calls(training)}
    assert {k.function for k in kernels} >= {name for name in called if name is not None and ".kernel." in name}


def test_every_triton_function_of_every_op_is_compiled(kernels):
    coverage()  # imports all ops
    own = {name for name in GPU_KERNELS.values() if ".kernel." in name} - set(offline.OF_OTHERS)
    assert {k.function for k in kernels} >= own


def test_no_spills_and_shared_memory_within_the_limit(kernels):
    assert kernels
    for k in kernels:
        assert k.registers > 0 and k.spills == 0, f"{k.function} {k.name}: {k.spills} bytes of local memory"
        assert k.shared <= offline.SHARED_MEMORY[k.capability], (
            f"{k.function} {k.name}: {k.shared} bytes of shared memory"
        )


def test_offsets_have_64_bits(kernels):
    for k in kernels:
        assert k.narrow == 0, f"{k.function} {k.name}: write tl.program_id(0).to(tl.int64)"


def test_a_kernel_that_does_not_compile_is_named(monkeypatch):
    monkeypatch.setattr(offline.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="kernels: they do not compile"):
        offline.compiled_kernels([90])


def test_costs_are_counted_per_edge():
    shares = static.prediction(training=False)
    gate = shares["gate.kernel.forward"]
    # 32 + 72 + 360 numbers in, 392 out, on every edge in three layers and four networks, in the range alone in the last
    per_call = 4 * (464 + 392)
    assert 12 * per_call < gate.cost.bytes < 16 * per_call
    assert gate.seconds["H100"] == pytest.approx(gate.cost.bytes / static.RATES["H100"].bytes, rel=1e-6)
    assert "edges/s" in static.prediction_table(shares)
    assert all(share.seconds["A100"] > 0 for name, share in shares.items() if ".kernel." in name)


def test_what_torch_does_is_counted():
    a, b = torch.ones(7, 5), torch.ones(5, 3)
    with offline.Recorder() as calls:
        (a @ b)[1:].exp()
    counted = [static.cost_of(call) for call in calls]
    assert counted == [
        ("aten::mm (torch)", Cost(nbytes(a, b) + 84, 2 * 7 * 5 * 3)),
        None,
        ("aten::exp (torch)", Cost(144, 18)),
    ]


def test_costs_work_without_data():
    x = torch.empty(10, 32 + 72 + 360, device="meta")
    irreps = "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"
    assert gpu_kernel("gate.kernel.forward_cost")(x, irreps, True, 0) == Cost(10 * 4 * (464 + 392), 10 * 6 * 392)
