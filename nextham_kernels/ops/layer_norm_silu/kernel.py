"""Layer norm and SiLU over rows, their pullback, and its derivative, on the GPU (Triton).

A program takes NUMBERS / c rows (four of NextHAM's 256 numbers), a warp each, and keeps them in registers from the sums
to the result: sums go by shuffles alone. With gradients of weight and bias, a program takes every PROGRAMS-th tile, so
these grow in its registers; it writes them once, and torch adds them up in a fixed order.

Numbers per row: 2 c forward, 3 c back, 5 c in the derivative of the pullback. Some 20, 30 and 70 flops per number, of
which an exponential and a division take most. Bound by memory: 0.5 ns, 0.7 ns and 1.2 ns for 256 numbers at 4.3 TB/s.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nextham_kernels.cost import Cost, nbytes

NUMBERS = 1024
"""Numbers of a tile: 8 for each of 128 threads and tensor, so that the 5 tensors of the longest kernel stay there."""

PROGRAMS = 2048
"""Programs that sum over rows, 15 for each multiprocessor of an H100."""


@triton.jit
def _unit(h, there, C: tl.constexpr, EPS: tl.constexpr):
    """The normalised rows and 1/√(variance + ε); zero where nothing is there."""
    centred = tl.where(there, h - (tl.sum(h, 1) / C)[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / C + EPS)[:, None]
    return centred * inverse, inverse


@triton.jit(do_not_specialize=["n"])
def _forward(h, weight, bias, y, n, C: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, C2: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, C2)
    there = (row < n)[:, None] & (j < C)[None, :]
    at = row[:, None] * C + j[None, :]
    x, _ = _unit(tl.load(h + at, mask=there, other=0.0), there, C, EPS)
    w, b = tl.load(weight + j, mask=j < C, other=0.0), tl.load(bias + j, mask=j < C, other=0.0)
    u = x * w[None, :] + b[None, :]
    tl.store(y + at, u * tl.sigmoid(u), mask=there)


@triton.jit(do_not_specialize=["n"])
def _pull(
    grad, h, weight, bias, grad_h, partial, n,
    C: tl.constexpr, EPS: tl.constexpr, SUMS: tl.constexpr, ONE: tl.constexpr, ROWS: tl.constexpr, C2: tl.constexpr,
):  # fmt: skip
    """ONE: the same row of `grad` for all rows."""
    first = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, C2)
    w, b = tl.load(weight + j, mask=j < C, other=0.0), tl.load(bias + j, mask=j < C, other=0.0)
    of_weight, of_bias = tl.zeros_like(w), tl.zeros_like(w)
    for tile in range(first, (n + ROWS - 1) // ROWS, tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        there = (row < n)[:, None] & (j < C)[None, :]
        at = row[:, None] * C + j[None, :]
        x, inverse = _unit(tl.load(h + at, mask=there, other=0.0), there, C, EPS)
        u = x * w[None, :] + b[None, :]
        s = tl.sigmoid(u)
        if ONE:
            pulled = tl.load(grad + j, mask=j < C, other=0.0)[None, :] * s * (1 + u * (1 - s))
        else:
            pulled = tl.load(grad + at, mask=there, other=0.0) * s * (1 + u * (1 - s))
        if SUMS:
            of_weight += tl.sum(pulled * x, 0)
            of_bias += tl.sum(pulled, 0)
        a = pulled * w[None, :]
        mean, along = tl.sum(a, 1) / C, tl.sum(a * x, 1) / C
        tl.store(grad_h + at, inverse * (a - mean[:, None] - x * along[:, None]), mask=there)
    if SUMS:
        to = partial + first * 2 * C + j
        tl.store(to, of_weight, mask=j < C)
        tl.store(to + C, of_bias, mask=j < C)


@triton.jit(do_not_specialize=["n"])
def _vjp_backward(
    grad, v, h, weight, bias, grad_v, grad_h, partial, n,
    C: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, C2: tl.constexpr,
):  # fmt: skip
    """The derivative of <t, vjp(v, h)> = <v, ẏ>, ẏ being the derivative of y along t = grad.

    ṅ = inverse (t − mean t − n mean nt), u̇ = w ṅ, ẏ = silu′ u̇ = grad_v.
    """
    first = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, C2)
    w = tl.load(weight + j, mask=j < C, other=0.0)
    b = tl.load(bias + j, mask=j < C, other=0.0)
    of_weight, of_bias = tl.zeros_like(w), tl.zeros_like(w)
    for tile in range(first, (n + ROWS - 1) // ROWS, tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        there = (row < n)[:, None] & (j < C)[None, :]
        at = row[:, None] * C + j[None, :]
        x, r = _unit(tl.load(h + at, mask=there, other=0.0), there, C, EPS)
        t = tl.load(grad + at, mask=there, other=0.0)
        pull = tl.load(v + at, mask=there, other=0.0)
        u = x * w[None, :] + b[None, :]
        s = tl.sigmoid(u)
        slope, bend = s * (1 + u * (1 - s)), s * (1 - s) * (2 + u * (1 - 2 * s))
        a = pull * slope * w[None, :]  # ∂<v, y>/∂n
        mean_t, mean_nt = (tl.sum(t, 1) / C)[:, None], (tl.sum(x * t, 1) / C)[:, None]
        mean_a, mean_an = (tl.sum(a, 1) / C)[:, None], (tl.sum(a * x, 1) / C)[:, None]
        mean_at = (tl.sum(a * t, 1) / C)[:, None]
        along = tl.where(there, r * (t - mean_t - x * mean_nt), 0.0)
        pulled = pull * bend * along * w[None, :]
        of_weight += tl.sum(pulled * x + pull * slope * along, 0)
        of_bias += tl.sum(pulled, 0)
        c = pulled * w[None, :] - r * (a * mean_nt + t * mean_an)  # ∂<v, ẏ>/∂n
        mean_c, mean_cn = (tl.sum(c, 1) / C)[:, None], (tl.sum(c * x, 1) / C)[:, None]
        # The second term is the derivative by `inverse` where it stands in front of ṅ.
        whole = mean_cn + r * (mean_at - mean_a * mean_t - mean_an * mean_nt)
        tl.store(grad_v + at, slope * along * w[None, :], mask=there)
        tl.store(grad_h + at, r * (c - mean_c - x * whole), mask=there)
    to = partial + first * 2 * C + j
    tl.store(to, of_weight, mask=j < C)
    tl.store(to + C, of_bias, mask=j < C)


def _shape(h: torch.Tensor) -> dict[str, int]:
    c2 = triton.next_power_of_2(max(1, h.shape[1]))
    return {"C": h.shape[1], "ROWS": max(1, NUMBERS // c2), "C2": c2}


def forward(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Runs `_forward`."""
    y, shape = torch.empty_like(h), _shape(h)
    _forward[(triton.cdiv(len(h), shape["ROWS"]),)](h, weight, bias, y, len(h), EPS=eps, **shape, num_warps=4)
    return y


def forward_cost(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> Cost:
    """Counts `forward`."""
    return Cost(nbytes(h, h, weight, bias), 20 * h.numel())


def _pulled(
    grad: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, sums: bool
) -> list[torch.Tensor]:
    shape = _shape(h)
    tiles = triton.cdiv(len(h), shape["ROWS"])
    programs = min(PROGRAMS, tiles) if sums else tiles
    grad_h, partial = torch.empty_like(h), h.new_empty(programs if sums else 0, 2, h.shape[1])
    settings = {"EPS": eps, "SUMS": sums, "ONE": len(grad) < len(h), **shape, "num_warps": 4}
    _pull[(programs,)](grad, h, weight, bias, grad_h, partial, len(h), **settings)
    return [grad_h, *partial.sum(0)]


def backward(
    grad: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, needs: list[bool]
) -> list[torch.Tensor]:
    """Runs `_pull`; without its sums where only h needs a gradient."""
    return _pulled(grad, h, weight, bias, eps, any(needs[1:]))


def backward_cost(
    grad: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, needs: list[bool]
) -> Cost:
    """Counts `backward`."""
    return Cost(nbytes(grad, h, h, weight, bias), 30 * h.numel())


def vjp(v: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Runs `_pull` without its sums; v may be one row for all rows of h."""
    return _pulled(v, h, weight, bias, eps, False)[0]


def vjp_cost(v: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> Cost:
    """Counts `vjp`."""
    return Cost(nbytes(v, h, h, weight, bias), 30 * h.numel())


def vjp_backward(
    grad: torch.Tensor,
    v: torch.Tensor,
    h: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs `_vjp_backward`, which makes all gradients whatever `needs` says: they share their sums."""
    shape = _shape(h)
    programs = min(PROGRAMS, triton.cdiv(len(h), shape["ROWS"]))
    grad_v, grad_h, partial = torch.empty_like(v), torch.empty_like(h), h.new_empty(programs, 2, h.shape[1])
    _vjp_backward[(programs,)](grad, v, h, weight, bias, grad_v, grad_h, partial, len(h), EPS=eps, **shape, num_warps=4)
    return [grad_v, grad_h, *partial.sum(0)]


def vjp_backward_cost(
    grad: torch.Tensor,
    v: torch.Tensor,
    h: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    needs: list[bool],
) -> Cost:
    """Counts `vjp_backward`."""
    return Cost(nbytes(grad, v, h, v, h, weight, bias), 70 * h.numel())
