"""gate against e3nn's Gate."""

import harness
import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from e3nn.math import normalize2mom

from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.gate import gate, gate_input_irreps, reference

CASES = {
    "plain": "4x0e+2x1o+3x1e+1x2e",
    "odd_scalar": "3x0e+2x0o+1x1o",
    "scalars": "5x0e",
    "production": "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e",
}


def inputs(case, n_edges=harness.EDGES):
    return harness.random(n_edges, gate_input_irreps(CASES[case]).dim)


def definition(x, case):
    """e3nn's Gate, whose input has the same blocks, sorted."""
    irreps = o3.Irreps(case)
    gated = o3.Irreps([block for block in irreps if block.ir != o3.Irrep("0e")])
    n_scalars = irreps.num_irreps - gated.num_irreps
    silu, sigmoid = torch.nn.functional.silu, torch.sigmoid
    gates = [f"{gated.num_irreps}x0e"] if gated.dim else []
    module = e3nn_nn.Gate(f"{n_scalars}x0e", [silu], "+".join(gates), [sigmoid] * len(gates), gated).double()
    ours = gate_input_irreps(case)
    blocks = {block.ir: x[:, s] for block, s in zip(ours, ours.slices(), strict=True)}
    return module(torch.cat([blocks[block.ir] for block in module.irreps_in], dim=1))


@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_definition(case):
    x = inputs(case)
    harness.assert_close(gate(x, CASES[case]), definition(x, CASES[case]))


def test_constants_are_e3nns():
    assert normalize2mom(torch.nn.functional.silu).cst == pytest.approx(reference.SILU_SCALE, abs=1e-15)
    assert normalize2mom(torch.sigmoid).cst == pytest.approx(reference.SIGMOID_SCALE, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_forward(case, edge, dtype):
    harness.assert_as_exact_as_reference(
        lambda x: gate(x, CASES[case], edge=edge),
        lambda x: reference.gate(x, CASES[case], edge, 0),
        [20 * inputs(case).to(dtype)],
    )


def test_edge_rows_are_the_flat_axis_reordered():
    irreps = CASES["production"]
    x, layout = inputs("production"), edge_layout(irreps)
    rows = gate(edge_layout(str(gate_input_irreps(irreps))).to_row(x), irreps, edge=True)
    harness.assert_close(layout.from_row(rows), gate(x, irreps))


def test_instruction_sets_agree(instruction_set):
    kernel, plain = (
        lambda x: gate(x, CASES["production"], edge=True),
        lambda x: reference.gate(x, CASES["production"], True, 0),
    )
    harness.assert_close(kernel(inputs("production")), plain(inputs("production")))
    harness.assert_same_gradients(kernel, plain, {"x": inputs("production")})


@pytest.mark.parametrize("case", CASES)
def test_backward(case):
    harness.assert_same_gradients(
        lambda x: gate(x, CASES[case]), lambda x: definition(x, CASES[case]), {"x": inputs(case)}
    )


@pytest.mark.parametrize("edge", [False, True])
def test_skip(edge):
    """Numbers at the head of a row change nothing, and their gradient is zero."""
    irreps, x = CASES["plain"], inputs("plain")
    wide = torch.cat([harness.random(len(x), 3, seed=5), x], dim=1)
    harness.assert_close(gate(wide, irreps, edge, skip=3), gate(x, irreps, edge))
    harness.assert_same_gradients(
        lambda x: gate(x, irreps, edge, skip=3), lambda x: reference.gate(x, irreps, edge, 3), {"x": wide}
    )


@pytest.mark.triton
@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gpu_kernel(case, edge):
    irreps = CASES[case]
    for skip in (0, 3):
        x = torch.cat([harness.random(5, skip, seed=1), inputs(case, 5)], dim=1)
        harness.assert_gpu_kernel(
            "gate gate_backward",
            lambda x, skip=skip: gate(x, irreps, edge, skip),
            lambda x, skip=skip: reference.gate(x, irreps, edge, skip),
            {"x": x},
        )


def test_gradcheck():
    harness.gradcheck(lambda x: gate(x, CASES["plain"]), inputs("plain", 2))


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    irreps, rotation = CASES["odd_scalar"], harness.random_rotation(1)
    d_in = harness.representation(gate_input_irreps(irreps), rotation, inversion)
    d_out = harness.representation(irreps, rotation, inversion)
    x = inputs("odd_scalar")
    harness.assert_close(gate(x @ d_in.T, irreps), gate(x, irreps) @ d_out.T)


def test_contract():
    x = inputs("plain")
    assert gate(x[:0], CASES["plain"]).shape == (0, 24)
    harness.assert_close(gate(x.T.contiguous().T, CASES["plain"]), gate(x, CASES["plain"]))
    torch.library.opcheck(torch.ops.nextham.gate, (harness.leaf(x), CASES["plain"], False, 0))
    with harness.raises(ValueError, "x: expected shape [e, 30]"):
        gate(x[:, 1:], CASES["plain"])
    with harness.raises(ValueError, "skip: expected 0 or a positive number, got -1"):
        gate(x, CASES["plain"], skip=-1)
    with harness.raises(ValueError, "irreps_out: expected its 0e blocks first, got 1x1o+2x0e"):
        gate(x, "1x1o+2x0e")
    with harness.raises(TypeError, "x: expected dtype float32 or float64, got float16"):
        gate(x.half(), CASES["plain"])
