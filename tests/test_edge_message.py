"""edge_message: the reference against the ops that it is made of, and the kernels against the reference."""

import functools

import harness
import pytest
import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.edge_linear import edge_linear
from nextham_kernels.ops.edge_linear.reference import pieces
from nextham_kernels.ops.edge_message import edge_message, reference
from nextham_kernels.ops.norm import norm
from nextham_kernels.ops.rotation import edge_wigner, rotate_to_edges, rotate_to_nodes

CASES = {
    "plain": ("3x0e+2x1o+1x2e", 0.0),
    "repeated": ("2x1e+5x0e+3x0o+2x0e+3x1o", 0.3),  # two blocks of 0e, multiplicities that nothing aligns
    "production": ("32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e", 0.0),
}


def inputs(case, n_edges=harness.EDGES, n_nodes=harness.NODES):
    irreps = irreps_of(CASES[case][0])
    name, generator = str(irreps), torch.Generator().manual_seed(0)
    node, index = (n_nodes, irreps.dim), {"generator": generator, "dtype": torch.int64}
    vector = harness.random(n_edges, 3, seed=4)
    vector[0] = 0
    return {
        "source": harness.random(*node, seed=1),
        "target": harness.random(*node, seed=2),
        "edge": harness.random(n_edges, irreps.dim, seed=3),
        "wigner": edge_wigner(vector, irreps.lmax + 1),  # more than the irreps need
        "src": torch.randint(0, n_nodes, (n_edges,), **index),
        "dst": torch.randint(0, n_nodes, (n_edges,), **index),
        "weight": harness.random(irreps.num_irreps, seed=5),
        "bias": harness.random(sum(mul for mul, ir in irreps if ir.is_scalar()), seed=6),
        "matrix": harness.random(sum(p.c_in * p.c_out for p in pieces(name, name)), seed=7) / 3,
    }


def settings(case):
    return str(irreps_of(CASES[case][0])), 1e-5, CASES[case][1]


def composed(source, target, edge, wigner, src, dst, weight, bias, matrix, irreps, eps, floor):
    sent = rotate_to_edges(source, wigner, irreps, src, target, dst, node_rows=True)
    return sent + edge_linear(norm(edge, weight, bias, irreps, eps, floor, edge=True), matrix, irreps, irreps)


@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_definition(case):
    given = inputs(case)
    found = reference.edge_message(*given.values(), *settings(case))
    harness.assert_close(found, composed(*given.values(), *settings(case)))
    harness.assert_close(edge_message(*given.values(), *settings(case)), found)


def test_backward():
    given = inputs("repeated")
    index = {name: given.pop(name) for name in ("src", "dst")}
    order = list(inputs("repeated"))

    def of(function):
        return lambda **leaves: function(*({**leaves, **index}[name] for name in order), *settings("repeated"))

    harness.assert_same_gradients(of(edge_message), of(composed), given)


def test_gradcheck():
    given = inputs("plain", 3, 2)
    moving = ("source", "edge", "matrix")
    harness.gradcheck(
        lambda *leaves: edge_message(
            *({**given, **dict(zip(moving, leaves, strict=True))}).values(), *settings("plain")
        ).sum(1),
        *(given[name] for name in moving),
    )


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    """Nodes and edges of a structure that is turned: messages turn with it, seen in the frame that every edge has."""
    case = "production"
    given, (name, *rest) = inputs(case), settings(case)
    irreps, layout = irreps_of(name), edge_layout(name)
    vector = harness.random(harness.EDGES, 3, seed=9)
    rotation = harness.random_rotation(3)
    d = harness.representation(irreps, rotation, inversion)
    turned = vector @ rotation.T * (-1 if inversion else 1)

    def message(vector, matrix):
        wigner = edge_wigner(vector, irreps.lmax)
        edge = rotate_to_edges(layout.from_row(given["edge"]) @ matrix.T, wigner, name)
        nodes = {key: layout.to_row(layout.from_row(given[key]) @ matrix.T) for key in ("source", "target")}
        made = edge_message(*({**given, **nodes, "edge": edge, "wigner": wigner}).values(), name, *rest)
        return rotate_to_nodes(made, wigner, name)

    harness.assert_close(message(turned, d), message(vector, torch.eye(irreps.dim, dtype=d.dtype)) @ d.T, 1e-10)


@pytest.mark.triton
@pytest.mark.parametrize("case", CASES)
def test_gpu_kernel(case):
    harness.assert_gpu_kernel(
        "edge_message",
        lambda **tensors: edge_message(*tensors.values(), *settings(case)),
        lambda **tensors: reference.edge_message(*tensors.values(), *settings(case)),
        inputs(case, 3 if case == "production" else 67),
    )


def test_contract():
    given, sizes = inputs("plain"), settings("plain")
    call = functools.partial(lambda **changed: edge_message(*{**given, **changed}.values(), *sizes))
    nothing = {name: given[name][:0] for name in ("edge", "wigner", "src", "dst")}
    assert call(**nothing).shape == (0, 14)
    strided = {name: given[name].T.contiguous().T for name in ("edge", "source", "wigner")}
    harness.assert_close(call(**strided), call())
    with harness.raises(ValueError, "edge: expected shape [e, 14]"):
        call(edge=given["edge"][:, 1:])
    with harness.raises(ValueError, "matrix: expected"):
        call(matrix=given["matrix"][1:])
    with harness.raises(ValueError, "wigner: expected at least 35 columns"):
        call(wigner=given["wigner"][:, :34])
    with harness.raises(TypeError, "target"):
        call(target=given["target"].float())
