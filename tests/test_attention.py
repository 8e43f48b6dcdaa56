"""attention against loops over nodes, edges and heads."""

import math

import harness
import pytest
import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.attention import attention, reference, segment_softmax

IRREPS, N_HEADS = "6x0e+3x1e+3x1o", 3


def inputs(n_edges=harness.EDGES):
    logits, value = harness.random(n_edges, N_HEADS), harness.random(n_edges, irreps_of(IRREPS).dim, seed=1)
    # node 3 has no edge
    dst = torch.tensor([0, 4, 1, 2])[torch.randint(4, (n_edges,), generator=torch.Generator().manual_seed(2))]
    return logits, value, dst


def definition(logits, value, dst, n_nodes):
    rows_edge, rows_node = [], [torch.zeros(value.shape[1], dtype=value.dtype) for _ in range(n_nodes)]
    for e in range(len(value)):
        into = [f for f in range(len(value)) if dst[f] == dst[e]]
        edge, message, start = [], [], 0
        for mul, ir in irreps_of(IRREPS):
            for channel in range(mul):
                head = channel // (mul // N_HEADS)
                vector = value[e, start : start + ir.dim]
                weight = logits[e, head].exp() / sum(logits[f, head].exp() for f in into)
                edge.append(logits[e, head] * vector)
                message.append(weight * vector)
                start += ir.dim
        rows_edge.append(torch.cat(edge))
        rows_node[int(dst[e])] = rows_node[int(dst[e])] + torch.cat(message)
    return torch.stack(rows_edge), torch.stack(rows_node)


def test_reference_is_the_definition():
    logits, value, dst = inputs()
    edge, node = attention(logits, value, dst, harness.NODES, IRREPS)
    expected_edge, expected_node = definition(logits, value, dst, harness.NODES)
    harness.assert_close(edge, expected_edge)
    harness.assert_close(node, expected_node)
    assert node[3].tolist() == [0.0] * 24


def softmax_inputs(n_edges=harness.EDGES):
    logits, _, segment = inputs(n_edges)
    return 30 * logits, segment  # from e^-60 to 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_edges", [1, harness.EDGES, 20_000])
def test_forward(n_edges, dtype):
    logits, segment = softmax_inputs(n_edges)
    harness.assert_as_exact_as_reference(
        lambda x: segment_softmax(x, segment, harness.NODES),
        lambda x: reference.segment_softmax(x, segment, harness.NODES),
        [logits.to(dtype)],
    )


@pytest.mark.triton
@pytest.mark.parametrize("n_edges", [7, 150])
@pytest.mark.parametrize("ascending", [False, True])
def test_gpu_kernel(ascending, n_edges):
    """With 150 edges a segment has more than one tile, and one has none."""
    logits, segment = softmax_inputs(n_edges)
    segment = segment.clamp(max=2)
    if ascending:
        segment = segment.sort().values
    harness.assert_gpu_kernel(
        "segment_softmax segment_softmax_backward",
        lambda x, segment: segment_softmax(x, segment, harness.NODES, ascending),
        lambda x, segment: reference.segment_softmax(x, segment, harness.NODES),
        {"x": logits / 5, "segment": segment},
    )


def test_instruction_sets_agree(instruction_set):
    logits, segment = softmax_inputs()
    kernel, plain = (
        lambda x: segment_softmax(x, segment, harness.NODES),
        lambda x: reference.segment_softmax(x, segment, harness.NODES),
    )
    harness.assert_close(kernel(logits), plain(logits))
    harness.assert_same_gradients(kernel, plain, {"x": logits})


def test_threads_change_nothing():
    logits, segment = softmax_inputs(20_000)

    def run():
        x = harness.leaf(logits)
        y = segment_softmax(x, segment, harness.NODES)
        return y.detach(), *torch.autograd.grad(y.square().sum(), x)

    harness.assert_threads_agree(run)


def test_double_backward():
    logits, segment = softmax_inputs()

    def derivative(function):
        def of(x):
            (grad,) = torch.autograd.grad(function(x, segment, harness.NODES).square().sum(), x, create_graph=True)
            return grad

        return of

    harness.assert_same_gradients(
        derivative(segment_softmax), derivative(reference.segment_softmax), {"x": logits / 30}
    )


def test_backward():
    logits, value, dst = inputs()
    harness.assert_same_gradients(
        lambda logits, value: attention(logits, value, dst, harness.NODES, IRREPS),
        lambda logits, value: definition(logits, value, dst, harness.NODES),
        {"logits": logits, "value": value},
    )


def test_gradcheck():
    logits, value, dst = inputs(5)
    harness.gradcheck(lambda a, v: attention(a, v, dst, harness.NODES, IRREPS), logits, value)


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    logits, value, dst = inputs()
    d = harness.representation(IRREPS, harness.random_rotation(1), inversion)
    turned = attention(logits, value @ d.T, dst, harness.NODES, IRREPS)
    for a, b in zip(turned, attention(logits, value, dst, harness.NODES, IRREPS), strict=True):
        harness.assert_close(a, b @ d.T)


def test_order_of_edges_and_nodes():
    logits, value, dst = inputs()
    edge, node = attention(logits, value, dst, harness.NODES, IRREPS)
    order = torch.randperm(len(dst), generator=torch.Generator().manual_seed(3))
    label = torch.tensor([2, 0, 3, 4, 1])
    edge_2, node_2 = attention(logits[order], value[order], label[dst[order]], harness.NODES, IRREPS)
    harness.assert_close(edge_2, edge[order])
    harness.assert_close(node_2[label], node)


def test_softmax_sums_to_one_and_does_not_overflow():
    segment = torch.tensor([0, 0, 2])
    weight = segment_softmax(torch.tensor([[1000.0], [999.0], [-1000.0]]), segment, 3)
    assert weight.flatten().tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e), 1.0])


def test_contract():
    logits, value, dst = inputs()
    edge, node = attention(logits[:0], value[:0], dst[:0], 2, IRREPS)
    assert edge.shape == (0, 24) and node.tolist() == [[0.0] * 24] * 2
    strided = attention(logits.T.contiguous().T, value.T.contiguous().T, dst, harness.NODES, IRREPS)
    harness.assert_close(strided[1], attention(logits, value, dst, harness.NODES, IRREPS)[1])
    assert segment_softmax(logits[:0], dst[:0], 0).shape == (0, 3)
    torch.library.opcheck(torch.ops.nextham.segment_softmax, (harness.leaf(logits), dst, harness.NODES, False))
    with harness.raises(ValueError, "value: expected shape [e, 24]"):
        attention(logits, value[:, 1:], dst, harness.NODES, IRREPS)
    with harness.raises(ValueError, "logits: expected shape [e, h] with e = 17, got [16, 3]"):
        attention(logits[1:], value, dst, harness.NODES, IRREPS)
    with harness.raises(ValueError, "dst: expected 0 <= index < 4, got 0 to 4"):
        attention(logits, value, dst, 4, IRREPS)
    with harness.raises(ValueError, "irreps: expected multiplicities that 2 heads divide, got 3x1e"):
        attention(logits[:, :2], value, dst, harness.NODES, IRREPS)
    with harness.raises(TypeError, "dst: expected dtype int64, got int32"):
        attention(logits, value, dst.int(), harness.NODES, IRREPS)
    with harness.raises(ValueError, "segment: expected 0 <= index < 4, got 0 to 4"):
        segment_softmax(logits, dst, 4)
    with harness.raises(ValueError, "segment: expected indices in ascending order, got 1 before 0"):
        segment_softmax(logits[:3], torch.tensor([0, 1, 0]), 4, ascending=True)
