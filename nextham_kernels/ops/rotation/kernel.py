"""Rotation into the frame of each edge and back on the GPU (Triton).

Each number of a row is a sum of at most 2 l_max + 1 products of a number of D and one of a node, whose places and sign
are tables of the layout. So one kernel serves every layout, forth, back without a sum, and the gradient of D: a program
takes a tile [numbers, edges] and loops over the products. Numbers are the first axis, along which Triton lays the lanes
of a gather, so neighbouring lanes read neighbouring numbers. Back with a sum, a program takes a node and a few of its
numbers and walks over its edges in tiles, which are added up in registers: no atomics, the same bits every time.

Bytes per edge for the published features: 0.7 kB of D, 1.6 kB of its row, 1.6 kB of each node it reads (nodes stay in
the second-level cache); 2,152 multiply-adds, 6 bytes of first-level cache for each. Bound by that cache and by memory
alike.

Wigner matrices in double, one launch for each degree: 25 products at most for each number of D^l, all in one buffer.
Their derivative is left to cuBLAS: batched products of 9 × 9 matrices at most.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import triton
import triton.language as tl

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.attention.kernel import segments
from nextham_kernels.ops.rotation.cpu import entries
from nextham_kernels.ops.rotation.derivative import vector_gradient

EDGES, NUMBERS = 16, 128
"""A tile: one number of 16 edges for each of 128 threads, which so read the tables once for 16 edges."""
NODE_EDGES = 8
"""Edges of a tile when they are summed: a node has some hundred, and four programs of a node share them."""


def _start(l: int) -> int:
    """Where D^l begins among the numbers of an edge."""
    return l * (4 * l * l - 1) // 3


@functools.cache
def _products(irreps: str, node_rows: bool, what: str, device: torch.device) -> torch.Tensor:
    """The products that each number of a result is the sum of, int32 [2, products, numbers].

    The first is twice the place of the first factor, plus one where the sign is negative, or −1 for nothing; the second
    is the place of the other factor. Results and factors are, for `there`, a row of D and of the node; for `back`, a
    node of D and of the row; for `wigner`, a number of D of the row and of the node.
    """
    layout = edge_layout(irreps)
    place, sign = layout.index.argsort().tolist(), np.ones(len(layout.index))
    sign[layout.index.numpy()] = layout.sign.numpy()  # of a number on the flat axis
    lists: dict[int, list[tuple[int, int, float]]] = {}
    for (mul, ir), s in zip(irreps_of(irreps), irreps_of(irreps).slices(), strict=True):
        n = 2 * ir.l + 1
        for u in range(mul):
            first = s.start + u * n
            for k in range(n):
                row, at = first + k, _start(ir.l) + k * n
                for i in range(n):
                    node = place[first + i] if node_rows else first + i
                    product_sign = sign[row] * (sign[first + i] if node_rows else 1)
                    three = {"row": place[row], "wigner": at + i, "node": node}
                    result, a, b = {
                        "there": ("row", "wigner", "node"),
                        "back": ("node", "wigner", "row"),
                        "wigner": ("wigner", "row", "node"),
                    }[what]
                    lists.setdefault(three[result], []).append((three[a], three[b], product_sign))
    numbers = max(lists, default=-1) + 1
    table = np.zeros((2, max(map(len, lists.values()), default=0), numbers), dtype=np.int32)
    table[0] = -1
    for result, products in lists.items():
        for t, (a, b, product_sign) in enumerate(products):
            table[:, t, result] = 2 * a + (product_sign < 0), b
    return torch.from_numpy(table).to(device)


@triton.jit
def _product(table, t, j, a, b, c, here, T: tl.constexpr, J: tl.constexpr, THIRD: tl.constexpr):
    """Product t of numbers j [numbers, 1]: pointers a and b (with c added to what b gives) are those of [1, edges]."""
    code = tl.load(table + t * J + j, mask=j < J, other=-1)
    other = tl.load(table + (T + t) * J + j, mask=j < J, other=0)
    mask = here & (code >= 0)
    x = tl.load(b + other, mask=mask, other=0.0)
    if THIRD:
        x += tl.load(c + other, mask=mask, other=0.0)
    factor = tl.load(a + (code >> 1), mask=mask, other=0.0)
    return tl.where((code & 1) == 1, -factor, factor) * x


@triton.jit(do_not_specialize=["n"])
def _edges(
    a,
    b,
    c,
    b_of,
    c_of,
    table,
    y,
    n,
    width_a,
    width_b,
    width_y,
    T: tl.constexpr,
    J: tl.constexpr,
    THIRD: tl.constexpr,
    EDGES: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    parts = tl.cdiv(width_y, NUMBERS)
    e = ((program // parts) * EDGES + tl.arange(0, EDGES))[None, :]
    j = ((program % parts) * NUMBERS + tl.arange(0, NUMBERS))[:, None]
    here = e < n
    row_b = b + tl.load(b_of + e, mask=here, other=0) * width_b
    row_c = row_b
    if THIRD:
        row_c = c + tl.load(c_of + e, mask=here, other=0) * width_b
    total = tl.zeros((NUMBERS, EDGES), y.dtype.element_ty)
    for t in range(T):
        total += _product(table, t, j, a + e * width_a, row_b, row_c, here, T, J, THIRD)
    tl.store(y + e * width_y + j, total, mask=here & (j < width_y))


@triton.jit
def _nodes(
    wigner,
    rows,
    first,
    order,
    table,
    y,
    width_wigner,
    T: tl.constexpr,
    J: tl.constexpr,
    SORTED: tl.constexpr,
    EDGES: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    parts: tl.constexpr = (J + NUMBERS - 1) // NUMBERS
    node = program // parts
    j = ((program % parts) * NUMBERS + tl.arange(0, NUMBERS))[:, None]
    start = tl.load(first + node)
    stop = tl.load(first + node + 1)
    total = tl.zeros((NUMBERS, EDGES), y.dtype.element_ty)
    for place in range(start, stop, EDGES):
        at = place + tl.arange(0, EDGES)
        e = at.to(tl.int64)
        if not SORTED:
            e = tl.load(order + at, mask=at < stop, other=0)
        here = (at < stop)[None, :]
        row = rows + e[None, :] * J
        for t in range(T):
            total += _product(table, t, j, wigner + e[None, :] * width_wigner, row, row, here, T, J, False)
    j = (program % parts) * NUMBERS + tl.arange(0, NUMBERS)
    tl.store(y + node * J + j, tl.sum(total, 1), mask=j < J)


@triton.jit(do_not_specialize=["n"])
def _first_degrees(vector, buffer, n, width, ROWS: tl.constexpr):
    """D⁰ and D¹, which is the rotation of `edge_rotation` in the order (y, z, x)."""
    e = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = e < n
    x = tl.load(vector + 3 * e, mask=here, other=0.0).to(tl.float64)
    y = tl.load(vector + 3 * e + 1, mask=here, other=0.0).to(tl.float64)
    z = tl.load(vector + 3 * e + 2, mask=here, other=1.0).to(tl.float64)
    length = tl.sqrt(x * x + y * y + z * z)
    scale = 1 / tl.where(length > 0, length, 1.0)
    flip = tl.where(z < 0, -1.0, 1.0).to(tl.float64)
    x = x * scale
    y = flip * y * scale
    z = tl.where(length > 0, flip * z * scale, 1.0)
    k = 1 / (1 + z)
    out = buffer + e * width
    tl.store(out, k * 0 + 1, mask=here)
    if width > 1:
        tl.store(out + 1, (1 - k * y * y) * flip, mask=here)
        tl.store(out + 2, -y * flip, mask=here)
        tl.store(out + 3, -k * x * y, mask=here)
        tl.store(out + 4, y * flip, mask=here)
        tl.store(out + 5, z * flip, mask=here)
        tl.store(out + 6, x, mask=here)
        tl.store(out + 7, -k * x * y * flip, mask=here)
        tl.store(out + 8, -x * flip, mask=here)
        tl.store(out + 9, 1 - k * x * x, mask=here)


@triton.jit(do_not_specialize=["n"])
def _next_degree(
    buffer, places, values, n, width, start, T: tl.constexpr, J: tl.constexpr, ROWS: tl.constexpr, J2: tl.constexpr
):
    e = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[None, :]
    j = tl.arange(0, J2)[:, None]
    mask = (e < n) & (j < J)
    total = tl.zeros((J2, ROWS), tl.float64)
    for t in range(T):
        below = tl.load(buffer + e * width + tl.load(places + t * J + j, mask=j < J, other=0), mask=mask, other=0.0)
        one = tl.load(buffer + e * width + tl.load(places + (T + t) * J + j, mask=j < J, other=0), mask=mask, other=0.0)
        total += tl.load(values + t * J + j, mask=j < J, other=0.0) * below * one
    tl.store(buffer + e * width + start + j, total, mask=mask)


@functools.cache
def _recursion(l: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The products of D^l: places of D^{l−1} and D¹ among the numbers of an edge, int32 [2, products, n²]; factors."""
    at, value = entries(l)
    n, m = 2 * l + 1, 2 * l - 1
    own = [[(i, j, v) for (d, r, i, j), v in zip(at, value, strict=True) if (d, r) == (l, k)] for k in range(n)]
    most = max(map(len, own)) ** 2
    places, values = np.zeros((2, most, n * n), dtype=np.int32), np.zeros((most, n * n))
    for k in range(n):
        for c in range(n):
            pairs = [(p, q) for p in own[k] for q in own[c]]
            for t, ((i, j, v), (a, b, w)) in enumerate(pairs):
                places[:, t, k * n + c] = _start(l - 1) + i * m + a, 1 + 3 * j + b
                values[t, k * n + c] = v * w
    return torch.from_numpy(places).to(device), torch.from_numpy(values).to(device)


def edge_wigner(vector: torch.Tensor, l_max: int) -> torch.Tensor:
    """Makes D of all degrees."""
    n, width = len(vector), _start(l_max + 1)
    buffer = vector.new_empty(n, width, dtype=torch.float64)
    _first_degrees[(triton.cdiv(n, 128),)](vector, buffer, n, width, 128, num_warps=4)
    for l in range(2, l_max + 1):
        places, values = _recursion(l, vector.device)
        most, numbers = values.shape
        columns = triton.next_power_of_2(numbers)
        rows = max(1, 1024 // columns)
        _next_degree[(triton.cdiv(n, rows),)](
            buffer, places, values, n, width, _start(l), most, numbers, rows, columns, num_warps=4
        )
    return buffer.to(vector.dtype)


def edge_wigner_cost(vector: torch.Tensor, l_max: int) -> Cost:
    """Counts `edge_wigner`: each degree reads the one below and writes its own in double, and the result is rounded."""
    size = _start(l_max + 1)
    numbers = sum((2 * l + 1) ** 2 * min(25, (2 * l - 1) ** 2) for l in range(2, l_max + 1))
    return Cost(nbytes(vector) + (3 * 8 + vector.element_size()) * size * len(vector), 6 * numbers * len(vector))


def edge_wigner_backward(grad: torch.Tensor, vector: torch.Tensor, l_max: int, needs: list[bool]) -> list[torch.Tensor]:
    """Makes D again in double; its derivative is batched products of matrices (`derivative`)."""
    return [vector_gradient(grad, edge_wigner(vector.double(), l_max), vector, l_max)]


def edge_wigner_backward_cost(grad: torch.Tensor, vector: torch.Tensor, l_max: int, needs: list[bool]) -> Cost:
    """Counts `edge_wigner_backward`: D in double once more, read with its gradient, and the products between."""
    size = 8 * _start(l_max + 1) * len(vector)
    products = sum((2 * l + 1) ** 3 + 3 * (2 * l + 1) ** 2 for l in range(1, l_max + 1))
    return edge_wigner_cost(vector, l_max) + Cost(nbytes(grad, vector) + 5 * size, 2 * products * len(vector))


def _launch_edges(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    b_of: torch.Tensor,
    c_of: torch.Tensor,
    table: torch.Tensor,
    y: torch.Tensor,
) -> None:
    _, products, numbers = table.shape
    n, width = y.shape
    parts = triton.cdiv(width, NUMBERS)
    third = len(c) > 0
    _edges[(triton.cdiv(n, EDGES) * parts,)](
        a,
        b,
        c,
        b_of,
        c_of,
        table,
        y,
        n,
        a.shape[1],
        b.shape[1],
        width,
        products,
        numbers,
        third,
        EDGES,
        NUMBERS,
        num_warps=4,
    )


def to_edges_forward(
    source: torch.Tensor,
    target: torch.Tensor,
    wigner: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    irreps: str,
    node_rows: bool,
) -> torch.Tensor:
    """Gathers and rotates."""
    rows = source.new_empty(len(src), source.shape[1])
    table = _products(irreps, node_rows, "there", rows.device)
    _launch_edges(wigner, source, target, src, dst, table, rows)
    return rows


def to_edges_forward_cost(
    source: torch.Tensor,
    target: torch.Tensor,
    wigner: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    irreps: str,
    node_rows: bool,
) -> Cost:
    """Counts `to_edges_forward`: every edge reads its nodes."""
    rows = (3 if len(target) else 2) * len(src) * source.shape[1] * source.element_size()
    return Cost(rows + nbytes(wigner, src, dst), 2 * _multiply_adds(irreps) * len(src))


@functools.cache
def _multiply_adds(irreps: str) -> int:
    return sum(mul * ir.dim**2 for mul, ir in irreps_of(irreps))


def to_nodes_forward(
    rows: torch.Tensor,
    wigner: torch.Tensor,
    dst: torch.Tensor,
    n_nodes: int,
    irreps: str,
    node_rows: bool,
    ascending: bool,
) -> torch.Tensor:
    """Rotates back and sums."""
    nodes = rows.new_empty(n_nodes, rows.shape[1])
    table = _products(irreps, node_rows, "back", rows.device)
    if len(dst) < len(rows):  # every row is a node of its own
        _launch_edges(wigner, rows, rows[:0], _every(len(rows), rows.device), dst, table, nodes)
        return nodes
    first, order = segments(dst, n_nodes, ascending)
    _, products, numbers = table.shape
    _nodes[(n_nodes * triton.cdiv(numbers, NUMBERS),)](
        wigner,
        rows,
        first,
        order,
        table,
        nodes,
        wigner.shape[1],
        products,
        numbers,
        ascending,
        NODE_EDGES,
        NUMBERS,
        num_warps=4,
    )
    return nodes


def _every(n: int, device: torch.device) -> torch.Tensor:
    return torch.arange(n, device=device)


def to_nodes_forward_cost(
    rows: torch.Tensor,
    wigner: torch.Tensor,
    dst: torch.Tensor,
    n_nodes: int,
    irreps: str,
    node_rows: bool,
    ascending: bool,
) -> Cost:
    """Counts `to_nodes_forward`, without the sort that an unsorted list needs."""
    nodes = n_nodes * rows.shape[1] * rows.element_size()
    return Cost(nbytes(rows, wigner, dst) + nodes, 2 * _multiply_adds(irreps) * len(rows))


def _grad_wigner(
    rows: torch.Tensor,
    source: torch.Tensor,
    target: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    irreps: str,
    node_rows: bool,
    result: torch.Tensor,
) -> None:
    table = _products(irreps, node_rows, "wigner", rows.device)
    _launch_edges(rows, source, target, src, dst, table, result)


def to_edges_backward(
    grad: torch.Tensor,
    source: torch.Tensor,
    target: torch.Tensor,
    wigner: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    irreps: str,
    node_rows: bool,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs `to_nodes_forward` for each input that wants a gradient, and the product with the nodes for D."""
    grads = [torch.empty_like(t) for t in (source, target, wigner, src, dst)]
    for i, index in enumerate((src, dst)):
        if needs[i] and len(grads[i]):
            grads[i] = to_nodes_forward(grad, wigner, index, len(grads[i]), irreps, node_rows, False)
    if needs[2]:
        _grad_wigner(grad, source, target, src, dst, irreps, node_rows, grads[2])
    return grads


def to_edges_backward_cost(
    grad: torch.Tensor,
    source: torch.Tensor,
    target: torch.Tensor,
    wigner: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    irreps: str,
    node_rows: bool,
    needs: list[bool],
) -> Cost:
    """Counts `to_edges_backward`, without sorting."""
    total = Cost(0)
    for need, node, index in zip(needs, (source, target), (src, dst), strict=False):
        if need and len(node):
            total += to_nodes_forward_cost(grad, wigner, index, len(node), irreps, node_rows, False)
    if needs[2]:
        total += to_edges_forward_cost(source, target, wigner, src, dst, irreps, node_rows)
    return total


def to_nodes_backward(
    grad: torch.Tensor,
    rows: torch.Tensor,
    wigner: torch.Tensor,
    dst: torch.Tensor,
    n_nodes: int,
    irreps: str,
    node_rows: bool,
    ascending: bool,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs `to_edges_forward`, and the product with the nodes for D."""
    grads = [torch.empty_like(t) for t in (rows, wigner, dst)]
    of = dst if len(dst) == len(rows) else _every(len(rows), rows.device)
    if needs[0]:
        grads[0] = to_edges_forward(grad, grad[:0], wigner, of, of, irreps, node_rows)
    if needs[1]:
        _grad_wigner(rows, grad, grad[:0], of, of, irreps, node_rows, grads[1])
    return grads


def to_nodes_backward_cost(
    grad: torch.Tensor,
    rows: torch.Tensor,
    wigner: torch.Tensor,
    dst: torch.Tensor,
    n_nodes: int,
    irreps: str,
    node_rows: bool,
    ascending: bool,
    needs: list[bool],
) -> Cost:
    """Counts `to_nodes_backward`."""
    one = to_edges_forward_cost(rows, grad[:0], wigner, dst, dst, irreps, node_rows)
    total = Cost(0)
    for need in needs[:2]:
        total += one if need else Cost(0)
    return total
