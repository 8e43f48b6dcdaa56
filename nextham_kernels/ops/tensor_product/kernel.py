"""Tensor product on the GPU: calls of the Triton kernels generated for a product.

Parallel over rows × channels of the result (pairs.py), of an operand (pairs_backward.py) or over tiles of rows and
outputs (mixes.py); those pages say how. Coefficients are numbers in the source, zeros are left out.

Per row of MACE's medium product, float32: 19 kB and 20 kFLOP forward, 21 kB (without y's gradient) and 66 kFLOP
backward: 4.5 ns at an H200's 4.3 TB/s, 0.3 ns at its 67 TFLOP/s, so bound by memory; a product whose rows share
their weights by an 'uvw' mix (DeepH-E3's: 3 kB, 179 kFLOP) by its tensor cores. So a kernel must read and write each
number once, in whole sectors: hence lanes along channels, and results joined before they are written.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import torch
import triton
import triton.language as tl

from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.ops.tensor_product import programs
from nextham_kernels.ops.tensor_product.lanes import terms
from nextham_kernels.ops.tensor_product.programs import Program
from nextham_kernels.ops.tensor_product.reference import product_of
from nextham_kernels.ops.tensor_product.text import LANES, Kernel

RUNS = 1024
"""Runs of rows whose shared weights' gradients are summed one by one: eight programs for each of 132 processors."""
PARTS = 1 << 22
"""Numbers in the parts of the gradient of shared weights: 16 MB."""
LINEAR_ROWS = 1 << 14
"""Rows whose product is stored before a linear map that does not fuse with it."""
RADIAL_NUMBERS = 1 << 23
"""Weights that are stored at a time where a product does not make them itself: 32 MB, in the second-level cache."""
RADIAL_DTYPES = (torch.float32,)
"""Where kernels make weights from hidden features themselves; in double their operands do not stay in registers."""
RADIAL_PARTS = 1 << 24
"""Numbers in the parts of the gradient of a radial matrix: 64 MB, two hundred runs of rows for NextHAM's product."""


def _precision(x: torch.Tensor) -> str:
    if x.dtype == torch.float64:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


Call = tuple[Kernel, int, tuple]
"""A kernel, its tiles of rows, and its arguments."""
_compiled: set[tuple] = set()


def _run(program: Program, calls: list[Call], x: torch.Tensor) -> None:
    """Launches kernels in their order; the first time they are compiled side by side, which takes seconds."""
    launches = []
    for kernel, tiles, args in calls:
        sizes = {"R": kernel.rows, "C": kernel.width} if kernel.rows else {"N": LANES}
        if kernel.pairs:
            sizes["P"] = _precision(x)
        function = getattr(program.module, kernel.name)
        options = {**sizes, "num_warps": kernel.warps, "num_stages": kernel.stages}
        options |= {"maxnreg": kernel.registers} if kernel.registers else {}
        launches.append((function, (tiles * kernel.programs,), args, options))
    key = (id(program), x.dtype, x.device, _precision(x))
    if x.is_cuda and len(launches) > 1 and key not in _compiled:
        compile_all(launches, x.device)
        _compiled.add(key)
    for function, grid, args, options in launches:
        function[grid](*args, **options)


def compile_all(launches: list[tuple], device: torch.device) -> None:
    """Compiles the kernels of launches in threads: most of a compiler's time is outside Python."""

    def one(launch: tuple) -> None:
        function, grid, args, options = launch
        with torch.cuda.device(device):
            function.warmup(*args, grid=grid, **options)

    with ThreadPoolExecutor(min(len(launches), os.cpu_count() or 1, 16)) as threads:
        list(threads.map(one, launches))


def _forward(
    program: Program, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, mix: torch.Tensor, d: int
) -> torch.Tensor:
    n = len(x)
    out = x.new_empty(n, d) if program.covers[0] else x.new_zeros(n, d)
    calls: list[Call] = []
    for kernel in program.kernels if n else ():
        if kernel.pairs:
            calls.append((kernel, triton.cdiv(n, kernel.rows), (x, y, weight, mix, out, 1, n)))
        else:
            calls.append((kernel, triton.cdiv(n * kernel.lanes, LANES), (x, y, weight, out, n)))
    _run(program, calls, x)
    return out


def forward(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, word: str) -> torch.Tensor:
    """Multiplies."""
    return _forward(programs.forward(word, weight.ndim == 1), x, y, weight, weight, product_of(word).dims[2])


def forward_cost(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, word: str) -> Cost:
    """Counts `forward`."""
    plain, matrix = _flops(word, weight.ndim == 1)
    out = len(x) * product_of(word).dims[2] * x.element_size()
    return Cost(nbytes(x, y, weight) + out, len(x) * plain, 3 * len(x) * matrix)


def _backward(
    program: Program,
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    mix: torch.Tensor,
    needs: list[bool],
    graph: tuple[torch.Tensor, ...] = (),
) -> list[torch.Tensor]:
    """Gradients of x, y, weight and mix, where they are needed; mix may be weight. `graph`: others, edges, starts."""
    n, n_x = len(y), len(x)
    tensors = (x, y, weight, mix)
    empty = x.new_empty(0, 0)
    if n == 0:
        return [torch.zeros_like(t) if need else empty for t, need in zip(tensors, needs, strict=True)]
    direct, parts = [], []
    for i, rows in enumerate((n_x, n)):
        size = (rows, tensors[i].shape[1])
        make = x.new_empty if program.covers[i] else x.new_zeros
        direct.append(make(size) if needs[i] and program.lanes[i] else empty)
        parts.append(x.new_empty(program.parts[i], *size) if program.parts[i] else empty)
    own, of_mix = empty, empty
    least = min((kernel.rows for kernel in program.kernels if kernel.weights), default=1)
    numbers = max([1, *(len(t) for t in (weight, mix) if t.ndim == 1)])
    runs = n_x if graph else max(1, min(RUNS, triton.cdiv(n, least), PARTS // numbers))
    if needs[2]:
        own = torch.empty_like(weight) if weight.ndim == 2 else x.new_empty(runs, len(weight))
    if mix is weight:
        of_mix = own
    elif needs[3]:
        of_mix = x.new_empty(runs, len(mix))
    others, edges, starts = graph or (empty, empty, empty)
    calls: list[Call] = []
    for kernel in program.kernels:
        part = parts[kernel.other] if kernel.other >= 0 else empty
        per = triton.cdiv(triton.cdiv(n, kernel.rows), runs) if kernel.weights else 1
        tiles = n_x if graph else runs if kernel.weights else triton.cdiv(n, kernel.rows)
        if kernel.name.startswith("mix_weights"):
            args = (grad, x, y, weight, of_mix, per, 1, n)
        elif kernel.pairs:
            args = (grad, x, y, weight, mix, *direct, own, of_mix, part, 1, n)
        elif kernel.name.startswith("weights"):
            args = (grad, x, y, own, per, n)
        else:
            args = (grad, x, y, weight, *direct, own, part, others, edges, starts, per, n)
        calls.append((kernel, tiles, args))
    _run(program, calls, x)
    found = []
    for i in range(2):
        total = direct[i]
        if needs[i] and program.parts[i]:
            summed = parts[i].sum(0) if program.parts[i] > 1 else parts[i][0]
            total = total + summed if program.lanes[i] else summed
        elif needs[i] and not program.lanes[i]:
            total = torch.zeros_like(tensors[i])
        found.append(total)
    found.append(own.sum(0) if needs[2] and weight.ndim == 1 else own)
    found.append(of_mix.sum(0) if needs[3] and mix.ndim == 1 else of_mix)
    return found


def backward(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, word: str, needs: list[bool]
) -> list[torch.Tensor]:
    """Multiplies the gradient by each pair of the operands."""
    program = programs.backward(word, weight.ndim == 1, tuple(needs))
    return _backward(program, grad, x, y, weight, weight, [*needs, needs[2]])[:3]


def backward_cost(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, word: str, needs: list[bool]
) -> Cost:
    """Counts `backward`."""
    plain, matrix = _flops(word, weight.ndim == 1)
    outputs = (t for t, need in zip((x, y, weight), needs, strict=True) if need)
    return Cost(nbytes(grad, x, y, weight, *outputs), 3 * len(x) * plain, 6 * len(x) * matrix)


@functools.cache
def _flops(word: str, shared: bool, linear_word: str = "") -> tuple[int, int]:
    """Flops of a row: plain ones, and on tensor cores."""
    plain = matrix = 0
    for t in programs.fused_terms(word, linear_word) if linear_word else terms(product_of(word)):
        pairs = t.lanes * t.steps // (2 if t.triangle else 1)
        plain += pairs * (2 * len(t.entries) + t.dims[2] * (t.weight >= 0))
        mixing = 2 * pairs * t.outputs * t.dims[2]
        if shared or linear_word:
            matrix += mixing
        else:
            plain += mixing
    return plain, matrix


@triton.jit(do_not_specialize=["width"])
def _sum_segments(values, edges, starts, out, width, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(width, BLOCK)
    node = program // blocks
    column = program % blocks * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=values.dtype.element_ty)
    for position in range(tl.load(starts + node), tl.load(starts + node + 1)):
        row = tl.load(edges + position)
        total += tl.load(values + row * width + column, mask=column < width, other=0.0)
    tl.store(out + node * width + column, total, mask=column < width)


def _summed(values: torch.Tensor, edges: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Σ over the rows of each segment, in their order."""
    out = values.new_empty(len(starts) - 1, values.shape[1])
    if out.numel():
        block = min(256, triton.next_power_of_2(values.shape[1]))
        grid = (len(out) * triton.cdiv(values.shape[1], block),)
        _sum_segments[grid](values, edges, starts, out, values.shape[1], block, num_warps=max(1, block // 32))
    return out


def _starts(nodes: torch.Tensor, order: torch.Tensor, n: int) -> torch.Tensor:
    """Where the edges of each node begin in their order, [n + 1]."""
    return torch.searchsorted(nodes[order], torch.arange(n + 1, device=nodes.device))


def forward_conv(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    cols: torch.Tensor,
    by_row: torch.Tensor,
    by_col: torch.Tensor,
    n_rows: int,
    word: str,
) -> torch.Tensor:
    """Multiplies, and sums the edges of each row."""
    d = product_of(word).dims[2]
    starts = _starts(rows, by_row, n_rows)
    if not programs.conv_fuses(word):
        return _summed(forward(x[cols], y, weight, word), by_row, starts)
    program = programs.forward(word, weight.ndim == 1, conv=True)
    out = x.new_empty(n_rows, d) if program.covers[0] else x.new_zeros(n_rows, d)
    others = cols[by_row]
    args = (x, y, weight, out, others, by_row, starts, n_rows)
    _run(program, [(kernel, n_rows, args) for kernel in program.kernels if n_rows], x)
    return out


def forward_conv_cost(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    cols: torch.Tensor,
    by_row: torch.Tensor,
    by_col: torch.Tensor,
    n_rows: int,
    word: str,
) -> Cost:
    """Counts `forward_conv`; an edge reads its node again."""
    product, size = product_of(word), x.element_size()
    plain, matrix = _flops(word, weight.ndim == 1)
    moved = nbytes(y, weight, rows, cols) + (len(rows) * product.dims[0] + n_rows * product.dims[2]) * size
    if not programs.conv_fuses(word):
        moved += 2 * len(rows) * product.dims[2] * size
    return Cost(moved, len(rows) * plain, 3 * len(rows) * matrix)


def backward_conv(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    cols: torch.Tensor,
    by_row: torch.Tensor,
    by_col: torch.Tensor,
    n_rows: int,
    word: str,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Multiplies the gradient of each edge's row; the gradient of x sums the edges of each node."""
    indices = [torch.empty_like(t) for t in (rows, cols, by_row, by_col)]
    needs = list(needs[:3])
    starts = _starts(cols, by_col, len(x))
    if not programs.conv_fuses(word):
        found = backward(grad[rows], x[cols], y, weight, word, needs)
        if needs[0]:
            found[0] = _summed(found[0], by_col, starts)
        return [*found, *indices]
    program = programs.backward(word, weight.ndim == 1, tuple(needs), conv=True)
    graph = (rows[by_col], by_col, starts)
    return [*_backward(program, grad, x, y, weight, weight, [*needs, needs[2]], graph)[:3], *indices]


def backward_conv_cost(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    cols: torch.Tensor,
    by_row: torch.Tensor,
    by_col: torch.Tensor,
    n_rows: int,
    word: str,
    needs: list[bool],
) -> Cost:
    """Counts `backward_conv`; an edge reads its row of the gradient again."""
    plain, matrix = _flops(word, weight.ndim == 1)
    outputs = (t for t, need in zip((x, y, weight), needs, strict=False) if need)
    moved = nbytes(x, y, weight, rows, cols, *outputs) + len(rows) * grad.shape[1] * x.element_size()
    return Cost(moved, 3 * len(rows) * plain, 6 * len(rows) * matrix)


def forward_linear(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, linear_weight: torch.Tensor, word: str, linear_word: str
) -> torch.Tensor:
    """Multiplies and maps."""
    d = product_of(linear_word).dims[2]
    shared = weight.ndim == 1
    if programs.linear_fuses(word, linear_word, shared):
        program = programs.forward(word, shared, linear_word=linear_word)
        return _forward(program, x, y, weight, linear_weight, d)
    out = []
    for start in range(0, max(1, len(x)), LINEAR_ROWS):
        part = slice(start, start + LINEAR_ROWS)
        middle = forward(x[part], y[part], weight if shared else weight[part], word)
        out.append(forward(middle, middle.new_ones(len(middle), 1), linear_weight, linear_word))
    return torch.cat(out)


def forward_linear_cost(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, linear_weight: torch.Tensor, word: str, linear_word: str
) -> Cost:
    """Counts `forward_linear`."""
    shared = weight.ndim == 1
    if not programs.linear_fuses(word, linear_word, shared):
        middle = x.new_empty(len(x), product_of(word).dims[2])
        one = x.new_empty(len(x), 1)
        return forward_cost(x, y, weight, word) + forward_cost(middle, one, linear_weight, linear_word)
    plain, matrix = _flops(word, shared, linear_word)
    out = len(x) * product_of(linear_word).dims[2] * x.element_size()
    return Cost(nbytes(x, y, weight, linear_weight) + out, len(x) * plain, 3 * len(x) * matrix)


def backward_linear(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    linear_weight: torch.Tensor,
    word: str,
    linear_word: str,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Maps the gradient back and multiplies it by each pair of the operands."""
    shared = weight.ndim == 1
    if programs.linear_fuses(word, linear_word, shared):
        program = programs.backward(word, shared, tuple(needs), linear_word=linear_word)
        return _backward(program, grad, x, y, weight, linear_weight, list(needs))
    tensors = (x, y, weight, linear_weight)
    summed = [needs[i] and tensors[i].ndim == 1 for i in range(4)]
    parts: list[list[torch.Tensor]] = [[], [], [], []]
    for start in range(0, max(1, len(x)), LINEAR_ROWS):
        part = slice(start, start + LINEAR_ROWS)
        given = (x[part], y[part], weight if shared else weight[part])
        middle = forward(*given, word)
        wanted = [any(needs[:3]), False, needs[3]]
        one = middle.new_ones(len(middle), 1)
        pulled, _, own = backward(grad[part], middle, one, linear_weight, linear_word, wanted)
        found = backward(pulled, *given, word, needs[:3]) if wanted[0] else [pulled] * 3
        for i, gradient in enumerate((*found, own)):
            parts[i].append(gradient)
    return [torch.stack(p).sum(0) if s else torch.cat(p) for p, s in zip(parts, summed, strict=True)]


def backward_linear_cost(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    linear_weight: torch.Tensor,
    word: str,
    linear_word: str,
    needs: list[bool],
) -> Cost:
    """Counts `backward_linear`."""
    forward_ = forward_linear_cost(x, y, weight, linear_weight, word, linear_word)
    outputs = (t for t, need in zip((x, y, weight, linear_weight), needs, strict=True) if need)
    return Cost(forward_.bytes + nbytes(grad, *outputs), 3 * forward_.flops, 3 * forward_.matrix_flops)


def forward_radial(
    x: torch.Tensor,
    y: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    cols: torch.Tensor,
    by_row: torch.Tensor,
    by_col: torch.Tensor,
    n_rows: int,
    word: str,
) -> torch.Tensor:
    """Makes the weights from hidden features, multiplies, and over a graph (n_rows >= 0) sums the edges of each row."""
    graph, n, d = n_rows >= 0, len(y), product_of(word).dims[2]
    if not n:
        return x.new_zeros(max(0, n_rows), d)
    if not _makes_weights(word, hidden):
        blocks = _radial_blocks(n, weight)
        found = [forward(x[cols[b]] if graph else x[b], y[b], hidden[b] @ weight, word) for b in blocks]
        return _summed(torch.cat(found), by_row, _starts(rows, by_row, n_rows)) if graph else torch.cat(found)
    program = programs.radial_forward(word, hidden.shape[1], graph)
    size = n_rows if graph else n
    out = x.new_empty(size, d) if program.covers[0] else x.new_zeros(size, d)
    ends = (cols[by_row], by_row, _starts(rows, by_row, n_rows)) if graph else ()
    args = (x, y, hidden, weight, out, *ends, 1, size)
    _run(program, [(k, size if graph else triton.cdiv(n, k.rows), args) for k in program.kernels if size], x)
    return out


def forward_radial_cost(
    x: torch.Tensor,
    y: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    cols: torch.Tensor,
    by_row: torch.Tensor,
    by_col: torch.Tensor,
    n_rows: int,
    word: str,
) -> Cost:
    """Counts `forward_radial`; an edge reads its node again. Weights that are stored for a while do not count."""
    n, product, size = len(y), product_of(word), x.element_size()
    plain, matrix = _flops(word, False)
    out = (n_rows if n_rows >= 0 else n) * product.dims[2]
    moved = nbytes(y, hidden, weight, rows, cols) + (n * product.dims[0] + out) * size
    if n_rows >= 0 and not _makes_weights(word, hidden):
        moved += 2 * n * product.dims[2] * size
    return Cost(moved, n * plain, 3 * n * (matrix + 2 * weight.numel()))


def backward_radial(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    cols: torch.Tensor,
    by_row: torch.Tensor,
    by_col: torch.Tensor,
    n_rows: int,
    word: str,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Makes the weights anew; over a graph the gradient of x is made for each edge and summed by node."""
    graph, n, tensors = n_rows >= 0, len(y), (x, y, hidden, weight)
    indices = [torch.empty_like(t) for t in (rows, cols, by_row, by_col)]
    needs = list(needs[:4])
    if not n:
        return [*map(torch.zeros_like, tensors), *indices]
    if not _makes_weights(word, hidden):
        found = _radial_pulled(grad, x, y, hidden, weight, rows if graph else None, cols, word, needs)
    else:
        program = programs.radial_backward(word, hidden.shape[1], tuple(needs), graph)
        empty = x.new_empty(0, 0)
        gx = (x.new_empty if program.covers[0] else x.new_zeros)(n, x.shape[1]) if needs[0] else empty
        gy, gt = (torch.zeros_like(t) if need else empty for t, need in zip((y, hidden), needs[1:3], strict=True))
        least = min((k.rows for k in program.kernels if k.weights), default=1)
        runs = max(1, min(RUNS, triton.cdiv(n, least), RADIAL_PARTS // weight.numel()))
        gm = x.new_empty(runs, *weight.shape) if needs[3] else empty
        calls: list[Call] = []
        for k in program.kernels:
            tiles = triton.cdiv(n, k.rows)
            if k.weights:
                args = (grad, x, y, hidden, weight, gm, rows, cols, triton.cdiv(tiles, runs), 1, n)
                calls.append((k, runs, args))
            else:
                calls.append((k, tiles, (grad, x, y, hidden, weight, gx, gy, gt, rows, cols, 1, n)))
        _run(program, calls, x)
        found = [gx, gy, gt, gm.sum(0) if needs[3] else gm]
    if graph and needs[0]:
        found[0] = _summed(found[0], by_col, _starts(cols, by_col, len(x)))
    return [*found, *indices]


def backward_radial_cost(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor,
    cols: torch.Tensor,
    by_row: torch.Tensor,
    by_col: torch.Tensor,
    n_rows: int,
    word: str,
    needs: list[bool],
) -> Cost:
    """Counts `backward_radial`: the gradient of the matrix reads x, y and the result's gradient a second time."""
    n, product, size = len(y), product_of(word), x.element_size()
    plain, matrix = _flops(word, False)
    sweeps = any(needs[:3]) + needs[3]
    moved = sweeps * (nbytes(y, hidden, weight, rows, cols) + n * (product.dims[0] + product.dims[2]) * size)
    moved += sum(nbytes(t) for t, need in zip((y, hidden, weight), needs[1:4], strict=True) if need)
    moved += (n * product.dims[0] * (3 if n_rows >= 0 else 1) * size) if needs[0] else 0
    made = any(needs[:3]) + needs[2] + needs[3]
    return Cost(moved, n * plain * (3 * any(needs[:3]) + 2 * needs[3]), n * (6 * matrix + 6 * made * weight.numel()))


def _makes_weights(word: str, hidden: torch.Tensor) -> bool:
    return hidden.dtype in RADIAL_DTYPES and programs.radial_fuses(word, hidden.shape[1])


def _radial_blocks(n: int, weight: torch.Tensor) -> list[slice]:
    step = max(64, RADIAL_NUMBERS // weight.shape[1])
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _radial_pulled(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor | None,
    cols: torch.Tensor,
    word: str,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Gradients where weights are stored, a block of rows at a time; that of x for each row."""
    parts: list[list[torch.Tensor]] = [[], [], []]
    total = torch.zeros_like(weight) if needs[3] else weight.new_empty(0, 0)
    for b in _radial_blocks(len(y), weight):
        given = (grad[b], x[b]) if rows is None else (grad[rows[b]], x[cols[b]])
        found = backward(*given, y[b], hidden[b] @ weight, word, [needs[0], needs[1], needs[2] or needs[3]])
        own = found[2]
        found[2] = own @ weight.T if needs[2] else weight.new_empty(0, 0)
        if needs[3]:
            total.addmm_(hidden[b].T, own)
        for part, gradient in zip(parts, found, strict=True):
            part.append(gradient)
    return [*map(torch.cat, parts), total]
