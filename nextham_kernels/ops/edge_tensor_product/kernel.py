"""Tensor product with the harmonics of the edge and a linear map on the GPU (Triton).

Forward: a program takes ROWS edges and one block mul x ir of the result with all its 2 l + 1 components. It walks over
the block's (path, channel) pairs k, CHUNK at a time. The radial weights of a step, t V^T + v, are one small product in
registers; they serve all components, whose products x c r then go straight into the matrix product with the step's
weights. So neither the radial weights (4.6 kB per edge in NextHAM, float32) nor the depthwise product (6,408
components, 25.6 kB) are ever written, and nothing is computed twice but the radial weights of the scalars, which the
two scalar blocks need.

NextHAM, hidden features to attention scalars and gate input, per edge: 392 + 64 numbers in, 496 out, 3.8 kB; 79 k
multiply-adds for the radial weights and 47 k for the map (the 6,408 components are 4,144 in the edge frame). Programs
read again, from the caches, x for every path that uses it (16.6 kB per edge), t for every step (18.6 kB), and for every
ROWS edges the weights (0.4 MB: 6 kB per edge). At the data sheet's rates of an H200 the memory takes 0.8 ns, the
arithmetic 3.8 ns in float32 and 0.5 ns in tf32. Written out, as three products, 3.8 + 2 (4.6 + 16.6) kB would take
10 ns. The matrices are narrow (8, 16, 32 and 104 columns): cuBLAS would take a call for each component of each irrep.

Backward: for x and r, a program takes ROWS edges and one block of x with all its components; per path it pulls the
gradient of the result through W once, P = W g, which gives both grad_x = sum over paths c r P and grad_r = sum over
components c x P. The radial gradient is written for SLICE edges at a time, because three matrix products, which cuBLAS
does well, carry it on to t, V and v. For W, a program takes PAIRS (path, channel) pairs of one block and a share of the
edges; the shares are added in order, so the result is the same in every run.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from nextham_kernels.clebsch_gordan import dim_of
from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.edge_linear.kernel import matrix_precision
from nextham_kernels.ops.edge_tensor_product.reference import plan
from nextham_kernels.ops.edge_tensor_product.tables import PAIRS, forward_tables, pull_tables, weight_works

ROWS = 64
"""Edges of a tile: the sums of 9 components of 8 channels are 36 registers of each of 128 threads."""

CHUNK = 16
"""Pairs (path, channel) of a step, and channels of the result of a step back: the least that a matrix product takes."""

SLICE = 32768
"""Edges whose radial gradient is written at a time: 152 MB in NextHAM, float32."""

SHARE = 4096
"""Edges of one share of a weight gradient, at least; there are at most SHARES of them."""

SHARES = 64


@triton.jit
def _runs(places, ALIGN: tl.constexpr):
    """Tells the compiler that places come in runs of consecutive ones, so that it loads 16 bytes at once."""
    return tl.max_contiguous(tl.multiple_of(places, ALIGN), ALIGN)


@triton.jit
def _radial(
    t, radial_weight, radial_bias, e, live, place, there, n_features,
    FUSED: tl.constexpr, C: tl.constexpr, P: tl.constexpr, FEATURES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The radial weights at these places, [rows, places]."""
    if FUSED:
        bias = tl.load(radial_bias + place, mask=there, other=0.0)
        r = tl.zeros_like(live.to(bias.dtype))[:, None] + bias[None, :]
        start = 0
        while start < n_features:  # its length unknown to the compiler: unrolled, it holds all of t in registers
            c = tl.multiple_of(start, FEATURES) + tl.arange(0, FEATURES)
            tv = tl.load(t + e[:, None] * C + c[None, :], mask=live[:, None] & (c < C)[None, :], other=0.0)
            v = tl.load(
                radial_weight + place[None, :] * C + c[:, None], mask=there[None, :] & (c < C)[:, None], other=0.0
            )
            r = tl.dot(tv, v, r, input_precision=PRECISION, out_dtype=bias.dtype)
            start += FEATURES
        return r
    return tl.load(t + e[:, None] * P + place[None, :], mask=live[:, None] & there[None, :], other=0.0)


@triton.jit
def _block(
    x, t, weight, onsite, radial_weight, radial_bias, bias, row, places, coefficients, y, e, live, n_features,
    J: tl.constexpr, N: tl.constexpr, BIASED: tl.constexpr, FUSED: tl.constexpr, C: tl.constexpr,
    FEATURES: tl.constexpr, P: tl.constexpr, ALIGN: tl.constexpr, D_X: tl.constexpr, D_OUT: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of the result of the edges e."""
    dtype: tl.constexpr = x.dtype.element_ty
    n_pairs, place, value, components = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 6)
    channels, column = tl.multiple_of(tl.load(row + 4), ALIGN), tl.multiple_of(tl.load(row + 5), ALIGN)
    w = tl.arange(0, N)
    near = tl.load(onsite + e, mask=live, other=1) != 0
    acc = ()
    for _ in tl.static_range(J):
        acc = acc + (tl.zeros((ROWS, N), dtype),)  # noqa: RUF005 (Triton has no star)
    start = 0
    while start < n_pairs:
        k = start + tl.arange(0, CHUNK)
        there = k < n_pairs
        at = places + place + k
        r_place = _runs(tl.load(at, mask=there, other=0), ALIGN)
        directed = tl.load(at + n_pairs, mask=there, other=0) != 0
        r = _radial(
            t, radial_weight, radial_bias, e, live, r_place, there, n_features, FUSED, C, P, FEATURES, PRECISION
        )
        r = tl.where(near[:, None] & directed[None, :], 0.0, r)
        w_place = tl.multiple_of(tl.load(at + 2 * n_pairs, mask=there, other=0), ALIGN)
        matrix = tl.load(
            weight + w_place[:, None] + (column + w)[None, :], mask=there[:, None] & (w < channels)[None, :], other=0.0
        )
        found = ()
        for j in tl.static_range(J):
            total = acc[j]
            if j < components:  # always; but the compiler does not know, and does not load for all components at once
                x_place = _runs(tl.load(at + (3 + j) * n_pairs, mask=there, other=-1), ALIGN)
                c = tl.load(coefficients + value + j * n_pairs + k, mask=there, other=0.0)
                used = live[:, None] & (x_place >= 0)[None, :]
                z = tl.load(x + e[:, None] * D_X + x_place[None, :], mask=used, other=0.0) * (r * c[None, :])
                total = tl.dot(z, matrix, total, input_precision=PRECISION, out_dtype=dtype)
            found = found + (total,)  # noqa: RUF005
        acc = found
        start += CHUNK
    to = places + place + (3 + J) * n_pairs
    mask = live[:, None] & (w < channels)[None, :]
    for j in tl.static_range(J):
        result = acc[j]
        if BIASED:
            b = tl.multiple_of(tl.load(row + 7), ALIGN)
            result += tl.load(bias + b + w, mask=w < channels, other=0.0)[None, :]
        y_column = tl.multiple_of(tl.load(to + j), ALIGN)
        tl.store(y + e[:, None] * D_OUT + (y_column + w)[None, :], result, mask=mask)


@triton.jit(do_not_specialize=["n"])
def _forward(
    x, t, weight, onsite, radial_weight, radial_bias, bias, units, places, coefficients, y, n, n_features,
    UNITS: tl.constexpr, CLASSES: tl.constexpr, BIASES: tl.constexpr, FUSED: tl.constexpr, C: tl.constexpr,
    FEATURES: tl.constexpr, P: tl.constexpr, ALIGN: tl.constexpr, D_X: tl.constexpr, D_OUT: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All blocks; those of the same edges are neighbours in the grid."""
    program = tl.program_id(0).to(tl.int64)
    row = units + program % UNITS * 8
    e = program // UNITS * ROWS + tl.arange(0, ROWS)
    kind = tl.load(row)
    for i in tl.static_range(len(CLASSES)):
        if kind == i:
            _block(
                x, t, weight, onsite, radial_weight, radial_bias, bias, row, places, coefficients, y, e,
                e < n, n_features, CLASSES[i][0], CLASSES[i][1], CLASSES[i][2] * BIASES, FUSED, C, FEATURES, P, ALIGN,
                D_X, D_OUT, ROWS, CHUNK, PRECISION,
            )  # fmt: skip


@triton.jit
def _pulled_block(
    grad, x, t, weight, onsite, radial_weight, radial_bias, row, places, coefficients, grad_x, grad_r, e, live,
    n_features, J: tl.constexpr, N: tl.constexpr, FUSED: tl.constexpr, C: tl.constexpr, FEATURES: tl.constexpr,
    P: tl.constexpr, ALIGN: tl.constexpr, D_X: tl.constexpr, D_OUT: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of one block of x, and of the radial weights of its paths, of the edges e."""
    dtype: tl.constexpr = x.dtype.element_ty
    items, place, value = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    channels = tl.multiple_of(tl.load(row + 4), ALIGN)
    u = tl.arange(0, N)
    there, mask = u < channels, live[:, None] & (u < channels)[None, :]
    near = tl.load(onsite + e, mask=live, other=1) != 0
    at_x = x + e[:, None] * D_X + u[None, :]
    acc = ()
    for _ in tl.static_range(J):
        acc = acc + (tl.zeros((ROWS, N), dtype),)  # noqa: RUF005 (Triton has no star)
    pulled = tl.zeros((ROWS, N), dtype)
    item = 0
    while item < items:
        at = places + place + J + item * (6 + J)
        r_place, directed = tl.multiple_of(tl.load(at), ALIGN), tl.load(at + 1)
        first, last = tl.load(at + 2), tl.load(at + 3)
        w_place, width = tl.multiple_of(tl.load(at + 4), ALIGN), tl.multiple_of(tl.load(at + 5), ALIGN)
        r = _radial(
            t, radial_weight, radial_bias, e, live, r_place + u, there, n_features, FUSED, C, P, FEATURES, PRECISION
        )
        zero = near[:, None] & (directed != 0)
        r = tl.where(zero, 0.0, r)
        pulled = tl.where(first != 0, 0.0, pulled)
        found = ()
        for j in tl.static_range(J):
            column = tl.load(at + 6 + j)
            product = tl.zeros((ROWS, N), dtype)
            start, stop = 0, tl.where(column >= 0, width, 0)
            column = tl.multiple_of(column, ALIGN)
            while start < stop:
                w = tl.multiple_of(start, CHUNK) + tl.arange(0, CHUNK)
                inside = w < width
                g = tl.load(
                    grad + e[:, None] * D_OUT + (column + w)[None, :], mask=live[:, None] & inside[None, :], other=0.0
                )
                matrix = tl.load(
                    weight + w_place + u[None, :] * width + w[:, None], mask=inside[:, None] & there[None, :], other=0.0
                )
                product = tl.dot(g, matrix, product, input_precision=PRECISION, out_dtype=dtype)
                start += CHUNK
            product *= tl.load(coefficients + value + item * J + j)
            x_column = tl.multiple_of(tl.load(places + place + j), ALIGN)
            pulled += product * tl.load(at_x + x_column, mask=mask, other=0.0)
            found = found + (acc[j] + r * product,)  # noqa: RUF005
        acc = found
        tl.store(
            grad_r + e[:, None] * P + (r_place + u)[None, :],
            tl.where(zero, 0.0, pulled),
            mask=tl.where(last != 0, mask, False),
        )
        item += 1
    for j in tl.static_range(J):
        x_column = tl.multiple_of(tl.load(places + place + j), ALIGN)
        tl.store(grad_x + e[:, None] * D_X + (x_column + u)[None, :], acc[j], mask=mask)


@triton.jit(do_not_specialize=["n"])
def _pull(
    grad, x, t, weight, onsite, radial_weight, radial_bias, units, places, coefficients, grad_x, grad_r, n, n_features,
    UNITS: tl.constexpr, CLASSES: tl.constexpr, FUSED: tl.constexpr, C: tl.constexpr, FEATURES: tl.constexpr,
    P: tl.constexpr, ALIGN: tl.constexpr, D_X: tl.constexpr, D_OUT: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All blocks of x; those of the same edges are neighbours in the grid."""
    program = tl.program_id(0).to(tl.int64)
    row = units + program % UNITS * 6
    e = program // UNITS * ROWS + tl.arange(0, ROWS)
    kind = tl.load(row)
    for i in tl.static_range(len(CLASSES)):
        if kind == i:
            _pulled_block(
                grad, x, t, weight, onsite, radial_weight, radial_bias, row, places, coefficients, grad_x, grad_r,
                e, e < n, n_features, CLASSES[i][0], CLASSES[i][1], FUSED, C, FEATURES, P, ALIGN, D_X, D_OUT,
                ROWS, CHUNK, PRECISION,
            )  # fmt: skip


@triton.jit
def _outer_block(
    grad, x, t, onsite, radial_weight, radial_bias, row, first_pair, places, coefficients, part, n, tile, tiles,
    n_features, N: tl.constexpr, FUSED: tl.constexpr, C: tl.constexpr, FEATURES: tl.constexpr, P: tl.constexpr,
    ALIGN: tl.constexpr, D_X: tl.constexpr, D_OUT: tl.constexpr,
    ROWS: tl.constexpr, PAIRS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The weight gradient of some pairs of one block of the result, from some tiles of edges."""
    dtype: tl.constexpr = x.dtype.element_ty
    n_pairs, place, value, components = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 6)
    channels, column = tl.multiple_of(tl.load(row + 4), ALIGN), tl.multiple_of(tl.load(row + 5), ALIGN)
    k, w = first_pair + tl.arange(0, PAIRS), tl.arange(0, N)
    there = k < n_pairs
    at = places + place + k
    r_place = _runs(tl.load(at, mask=there, other=0), ALIGN)
    directed = tl.load(at + n_pairs, mask=there, other=0) != 0
    to = places + place + (3 + components) * n_pairs
    acc = tl.zeros((PAIRS, N), dtype)
    while tile < tiles:
        e = tile * ROWS + tl.arange(0, ROWS)
        live = e < n
        near = tl.load(onsite + e, mask=live, other=1) != 0
        r = _radial(
            t, radial_weight, radial_bias, e, live, r_place, there, n_features, FUSED, C, P, FEATURES, PRECISION
        )
        r = tl.where(near[:, None] & directed[None, :], 0.0, r)
        j = 0
        while j < components:
            x_place = _runs(tl.load(at + (3 + j) * n_pairs, mask=there, other=-1), ALIGN)
            c = tl.load(coefficients + value + j * n_pairs + k, mask=there, other=0.0)
            used = live[:, None] & (x_place >= 0)[None, :]
            z = tl.load(x + e[:, None] * D_X + x_place[None, :], mask=used, other=0.0)
            y_column = tl.multiple_of(tl.load(to + j), ALIGN)
            g = tl.load(
                grad + e[:, None] * D_OUT + (y_column + w)[None, :],
                mask=live[:, None] & (w < channels)[None, :],
                other=0.0,
            )
            acc = tl.dot(tl.trans(z * (r * c[None, :])), g, acc, input_precision=PRECISION, out_dtype=dtype)
            j += 1
        tile += 1
    w_place = tl.multiple_of(tl.load(at + 2 * n_pairs, mask=there, other=0), ALIGN)
    tl.store(part + w_place[:, None] + (column + w)[None, :], acc, mask=there[:, None] & (w < channels)[None, :])


@triton.jit(do_not_specialize=["n", "share_tiles"])
def _weights(
    grad, x, t, onsite, radial_weight, radial_bias, units, works, places, coefficients, part, n, n_features,
    share_tiles, size, WORKS: tl.constexpr, CLASSES: tl.constexpr, FUSED: tl.constexpr, C: tl.constexpr,
    FEATURES: tl.constexpr, P: tl.constexpr, ALIGN: tl.constexpr, D_X: tl.constexpr, D_OUT: tl.constexpr,
    ROWS: tl.constexpr, PAIRS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The weight gradients; works are the units and first pairs of the programs of a share."""
    program = tl.program_id(0).to(tl.int64)
    work, share = works + program % WORKS * 2, program // WORKS
    row, first_pair = units + tl.load(work) * 8, tl.load(work + 1)
    tile = share * share_tiles
    tiles = tl.minimum(tile + share_tiles, (n + ROWS - 1) // ROWS)
    kind = tl.load(row)
    for i in tl.static_range(len(CLASSES)):
        if kind == i:
            _outer_block(
                grad, x, t, onsite, radial_weight, radial_bias, row, first_pair, places, coefficients,
                part + share * size, n, tile, tiles, n_features, CLASSES[i], FUSED, C, FEATURES, P, ALIGN, D_X, D_OUT,
                ROWS, PAIRS, PRECISION,
            )  # fmt: skip


def _settings(radial: torch.Tensor, radial_weight: torch.Tensor, n_radial: int) -> dict[str, object]:
    """What all kernels are told of the radial weights, and how they make products."""
    fused, precision = radial_weight.numel() > 0, matrix_precision(radial)
    return {
        "FUSED": fused,
        "C": radial.shape[1] if fused else 1,
        "P": n_radial,
        "FEATURES": 16 if precision == "ieee" else 32,
        "PRECISION": precision,
        "num_warps": 8 if precision == "ieee" else 4,  # exact products hold both operands of a step in registers
        "num_stages": 1,
        "maxnreg": 255,
    }


def _flags(onsite: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Flags as numbers: wide ones for doubles, whose products Triton cannot compile where a narrow load decides."""
    return onsite.long() if x.dtype == torch.float64 else onsite.view(torch.uint8)


def _rows_of(x: torch.Tensor) -> int:
    return ROWS if x.element_size() == 4 else ROWS // 2


def forward(
    x: torch.Tensor,
    radial: torch.Tensor,
    linear_weight: torch.Tensor,
    onsite: torch.Tensor,
    radial_weight: torch.Tensor,
    radial_bias: torch.Tensor,
    bias: torch.Tensor,
    irreps_x: str,
    l_max: int,
    irreps_out: str,
) -> torch.Tensor:
    """Runs the product and the map."""
    n, rows = len(x), _rows_of(x)
    y = x.new_empty(n, dim_of(irreps_out))
    tables = forward_tables(irreps_x, l_max, irreps_out, x.dtype, x.device)
    _forward[(triton.cdiv(n, rows) * len(tables.units),)](
        x,
        radial,
        linear_weight,
        _flags(onsite, x),
        radial_weight,
        radial_bias,
        bias,
        tables.units,
        tables.places,
        tables.coefficients,
        y,
        n,
        radial.shape[1],
        UNITS=len(tables.units),
        CLASSES=tables.classes,
        BIASES=int(len(bias) > 0),
        ALIGN=tables.align,
        D_X=x.shape[1],
        D_OUT=y.shape[1],
        ROWS=rows,
        CHUNK=CHUNK,
        **_settings(radial, radial_weight, len(plan(irreps_x, l_max, irreps_out).directed)),
    )
    return y


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    radial: torch.Tensor,
    linear_weight: torch.Tensor,
    onsite: torch.Tensor,
    radial_weight: torch.Tensor,
    radial_bias: torch.Tensor,
    bias: torch.Tensor,
    irreps_x: str,
    l_max: int,
    irreps_out: str,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs the derivatives; the gradients of x and of the radial weights come together."""
    nothing = x.new_empty(0)
    grad_x = grad_radial = grad_weight = grad_radial_weight = grad_radial_bias = nothing
    of_product = (grad, x, radial, linear_weight, _flags(onsite, x), radial_weight, radial_bias)
    settings = irreps_x, l_max, irreps_out
    if any(needs[i] for i in (0, 1, 4, 5)):
        grad_x, grad_radial = torch.empty_like(x), torch.empty_like(radial)
        if radial_weight.numel():
            # cuBLAS carries the gradient of r on; r's gradient is written for some edges at a time.
            grad_radial_weight, grad_radial_bias = torch.zeros_like(radial_weight), torch.zeros_like(radial_bias)
            grad_r = x.new_empty(min(SLICE, len(x)), len(radial_bias))
            for start in range(0, len(x), SLICE):
                part = slice(start, start + SLICE)
                own = grad_r[: len(x[part])]
                _pulled(*(t[part] for t in of_product[:3]), *of_product[3:], grad_x[part], own, part, *settings)
                torch.mm(own, radial_weight, out=grad_radial[part])
                grad_radial_weight.addmm_(own.T, radial[part])
                grad_radial_bias += own.sum(0)
        else:
            _pulled(*of_product, grad_x, grad_radial, slice(None), *settings)
    if needs[2]:
        grad_weight = _weight_gradient(*of_product, *settings)
    grad_bias = grad[:, _scalars(irreps_out, x.device)].sum(0) if len(bias) and needs[6] else nothing
    onsite = torch.empty_like(onsite)
    return [grad_x, grad_radial, grad_weight, onsite, grad_radial_weight, grad_radial_bias, grad_bias]


def _pulled(
    grad: torch.Tensor,
    x: torch.Tensor,
    radial: torch.Tensor,
    linear_weight: torch.Tensor,
    near: torch.Tensor,
    radial_weight: torch.Tensor,
    radial_bias: torch.Tensor,
    grad_x: torch.Tensor,
    grad_r: torch.Tensor,
    part: slice,
    irreps_x: str,
    l_max: int,
    irreps_out: str,
) -> None:
    """Writes the gradients of x and of r of some edges."""
    n, rows = len(x), _rows_of(x)
    tables = pull_tables(irreps_x, l_max, irreps_out, x.dtype, x.device)
    _pull[(triton.cdiv(n, rows) * len(tables.units),)](
        grad,
        x,
        radial,
        linear_weight,
        near[part],
        radial_weight,
        radial_bias,
        tables.units,
        tables.places,
        tables.coefficients,
        grad_x,
        grad_r,
        n,
        radial.shape[1],
        UNITS=len(tables.units),
        CLASSES=tables.classes,
        ALIGN=tables.align,
        D_X=x.shape[1],
        D_OUT=grad.shape[1],
        ROWS=rows,
        CHUNK=CHUNK,
        **_settings(radial, radial_weight, grad_r.shape[1]),
    )


def _weight_gradient(
    grad: torch.Tensor,
    x: torch.Tensor,
    radial: torch.Tensor,
    linear_weight: torch.Tensor,
    near: torch.Tensor,
    radial_weight: torch.Tensor,
    radial_bias: torch.Tensor,
    irreps_x: str,
    l_max: int,
    irreps_out: str,
) -> torch.Tensor:
    tables = forward_tables(irreps_x, l_max, irreps_out, x.dtype, x.device)
    works = weight_works(irreps_x, l_max, irreps_out, x.dtype, x.device)
    shares, rows = min(SHARES, max(1, len(x) // SHARE)), 2 * CHUNK
    part = x.new_empty(shares, len(linear_weight))
    _weights[(shares * len(works),)](
        grad,
        x,
        radial,
        near,
        radial_weight,
        radial_bias,
        tables.units,
        works,
        tables.places,
        tables.coefficients,
        part,
        len(x),
        radial.shape[1],
        triton.cdiv(triton.cdiv(len(x), rows), shares),
        len(linear_weight),
        WORKS=len(works),
        CLASSES=tuple(width for _, width, _ in tables.classes),
        ALIGN=tables.align,
        D_X=x.shape[1],
        D_OUT=grad.shape[1],
        ROWS=rows,
        PAIRS=PAIRS,
        **{**_settings(radial, radial_weight, len(plan(irreps_x, l_max, irreps_out).directed)), "num_warps": 8},
    )
    return part.sum(0)


@functools.cache
def _scalars(irreps: str, device: torch.device) -> torch.Tensor:
    return edge_layout(irreps).scalars.to(device)


def forward_cost(
    x: torch.Tensor,
    radial: torch.Tensor,
    linear_weight: torch.Tensor,
    onsite: torch.Tensor,
    radial_weight: torch.Tensor,
    radial_bias: torch.Tensor,
    bias: torch.Tensor,
    irreps_x: str,
    l_max: int,
    irreps_out: str,
) -> Cost:
    """Counts `forward`."""
    moved = nbytes(x, radial, linear_weight, onsite, radial_weight, radial_bias, bias)
    moved += len(x) * dim_of(irreps_out) * x.element_size()
    made, product = _operations(radial_weight, irreps_x, l_max, irreps_out)
    return Cost(moved) + _count(x, made + product)


def backward_cost(
    grad: torch.Tensor,
    x: torch.Tensor,
    radial: torch.Tensor,
    linear_weight: torch.Tensor,
    onsite: torch.Tensor,
    radial_weight: torch.Tensor,
    radial_bias: torch.Tensor,
    bias: torch.Tensor,
    irreps_x: str,
    l_max: int,
    irreps_out: str,
    needs: list[bool],
) -> Cost:
    """Counts `backward`."""
    inputs = any(needs[i] for i in (0, 1, 4, 5))
    made, product = _operations(radial_weight, irreps_x, l_max, irreps_out)
    times = inputs + needs[2]
    moved = nbytes(grad, x, radial, linear_weight, radial_weight) * times + nbytes(x, radial) * inputs
    if radial_weight.numel() and inputs:  # the gradient of r is written once and read three times
        moved += 4 * len(x) * len(radial_weight) * x.element_size()
    return Cost(moved) + _count(x, times * (made + product) + 2 * made * inputs)


def _operations(radial_weight: torch.Tensor, irreps_x: str, l_max: int, irreps_out: str) -> tuple[int, int]:
    """Multiply-adds of the radial weights of an edge, and of the map."""
    parts = plan(irreps_x, l_max, irreps_out).parts
    return radial_weight.numel(), sum(len(p.x) * p.weight.numel() for p in parts)


def _count(x: torch.Tensor, operations: int) -> Cost:
    """The cost of so many multiply-adds per edge."""
    pieces = {"tf32": 1, "tf32x3": 3}.get(matrix_precision(x), 0)
    return Cost(0, 0, 2 * pieces * operations * len(x)) if pieces else Cost(0, 2 * operations * len(x))
