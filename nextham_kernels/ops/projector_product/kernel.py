"""Products of projections on the GPU (Triton).

D leftᵀ is one product of torch for all rows of left, [n, d, k·a]. A program then makes one result for some of its rows
(k, a), a tile that stays in registers while it goes through the pairs and their projectors, an outer product each: no
atomics, since a result belongs to one program.

A pair reads c (k a + b) numbers, from the second-level cache (each is read by some thirty results), and costs
2 c k a b flops: 23,000 multiply-adds for two silicon atoms, which in double precision bounds it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nextham_kernels.cost import Cost, nbytes

ROWS = 64
"""Rows (k, a) of a program."""


@triton.jit(do_not_specialize=["c", "n_rows", "n_b"])
def _forward(left, right, pairs, starts, y, c, n_rows, n_b, ROWS: tl.constexpr, B2: tl.constexpr):
    e = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    b = tl.arange(0, B2)
    total = tl.zeros((ROWS, B2), dtype=y.dtype.element_ty)
    for t in range(tl.load(starts + e), tl.load(starts + e + 1)):
        i, j = tl.load(pairs + 2 * t), tl.load(pairs + 2 * t + 1)
        for d in range(c):
            x = tl.load(left + (i * c + d) * n_rows + r, mask=r < n_rows, other=0.0)
            z = tl.load(right + (j * c + d) * n_b + b, mask=b < n_b, other=0.0)
            total += x[:, None] * z[None, :]
    to = y + (e * n_rows + r[:, None]) * n_b + b[None, :]
    tl.store(to, total, mask=(r[:, None] < n_rows) & (b[None, :] < n_b))


def forward(
    left: torch.Tensor, right: torch.Tensor, strength: torch.Tensor, pairs: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    """Runs the products."""
    _, c, n_a = left.shape
    n_k, n_b, n_results = len(strength), right.shape[2], len(starts) - 1
    weighted = torch.einsum("kcd,nca->ndka", strength, left).contiguous()
    y = left.new_empty(n_results, n_k, n_a, n_b)
    grid = (n_results, triton.cdiv(n_k * n_a, ROWS))
    _forward[grid](weighted, right, pairs, starts, y, c, n_k * n_a, n_b, ROWS, triton.next_power_of_2(n_b), num_warps=4)
    return y


def forward_cost(
    left: torch.Tensor, right: torch.Tensor, strength: torch.Tensor, pairs: torch.Tensor, starts: torch.Tensor
) -> Cost:
    """Counts `forward`."""
    n_k, c, _ = strength.shape
    n_a, n_b = left.shape[2], right.shape[2]
    written = (len(starts) - 1) * n_k * n_a * n_b * left.element_size()
    return Cost(nbytes(left, right) + 2 * n_k * nbytes(left) + written, 2 * len(pairs) * n_k * c * n_a * n_b)
