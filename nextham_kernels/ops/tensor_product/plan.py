"""Tensor product: the tables that a kernel reads, built once per product; they serve every device.

Each path has an operand b, turned into maps M_ik = Σ_j c_ijk b_j, one per channel of b, and an operand a, whose
channels are multiplied by them. b is the operand that has fewer channels: y for 'uvu', x for 'uvv'. The channel pairs
of a path come in groups, one per channel of b; within a group the channels of a, the pairs' weights and their outputs
progress by constant steps. Modes ending in w multiply the pairs' products by a matrix of weights [pairs, w]; in the
other modes each pair has one weight and one output.

Outputs are made chunk by chunk: neighbouring blocks of the result of up to `CHUNK` numbers.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from nextham_kernels.clebsch_gordan import wigner_3j
from nextham_kernels.ops.tensor_product.reference import Path, Product, product_of

__all__ = ["CHUNK", "Tables", "tables"]

CHUNK = 512
"""Numbers of the result made at a time: 32 kB for 16 rows of float32, a first-level cache."""

ZERO = 1e-9
"""Coefficients below are rounding noise: the smallest that is none, up to l = 11, is above 1e-6."""


class Tables(NamedTuple):
    """int32 arrays (float64 coefficients); the kernel's structures of the same names say what a row holds."""

    paths: (
        np.ndarray
    )  # [p, 17] a_second a da b db out dk weight n_weights n_w group n_groups nonzero n_nonzeros by_k by_i own
    groups: np.ndarray  # [g, 7] b a n q q_step out out_step
    nonzeros: np.ndarray  # [z, 3] i k end, sorted by k then i within a path
    entries: np.ndarray  # [c] j, sorted by nonzero
    coefficients: np.ndarray  # [c]
    pointers: np.ndarray  # per path [dk + 1] into its nonzeros by k, then [da + 1] into `order` by i
    order: np.ndarray  # [z] nonzeros of a path sorted by i then k
    chunks: np.ndarray  # [n, 4] path n_paths out d


@functools.cache
def coupling(l_1: int, l_2: int, l_out: int, a_second: bool) -> tuple[np.ndarray, ...]:
    """Nonzeros [z, 2] (i, k), how many entries each has, and the entries' j and C_ijk with i of a, j of b, k."""
    c = wigner_3j(l_1, l_2, l_out).numpy()
    c = c.transpose(1, 0, 2) if a_second else c
    k, i, j = np.nonzero(np.abs(c.transpose(2, 0, 1)) > ZERO)
    pairs, counts = np.unique(np.stack([k, i], axis=1), axis=0, return_counts=True)
    return pairs[:, ::-1], counts, j, c[i, j, k]


@functools.cache
def tables(word: str) -> Tables:
    """Returns the tables of a product."""
    product = product_of(word)
    slices = [i.slices() for i in (product.irreps_1, product.irreps_2, product.irreps_out)]
    numbered = [(n, p) for n, p in enumerate(product.paths) if _has_pairs(product, p)]
    chunks, own = [], 0
    rows, groups, nonzeros, entries, coefficients, pointers, order = [], [], [], [], [], [], []
    for first, last in _chunks(product):
        start = slices[2][first].start
        here = sorted((p.i_out, n) for n, p in numbered if first <= p.i_out < last)
        chunks.append((len(rows), len(here), start, slices[2][last - 1].stop - start))
        for i_out, n in here:
            path, place = product.paths[n], product.weight_slices[n]
            a_second = _a_is_second(product, path)
            i_a, i_b = (path.i_2, path.i_1) if a_second else (path.i_1, path.i_2)
            ir_1, ir_2 = product.irreps_1[path.i_1].ir, product.irreps_2[path.i_2].ir
            ir_a, ir_b = (ir_2, ir_1) if a_second else (ir_1, ir_2)
            ir = product.irreps_out[i_out].ir
            pairs, counts, j, c = coupling(ir_1.l, ir_2.l, ir.l, a_second)
            own_groups = _groups(product, path, a_second)
            by_k = len(pointers)
            pointers += [0, *np.cumsum(np.bincount(pairs[:, 1], minlength=ir.dim)).tolist()]
            by_i = len(pointers)
            pointers += [0, *np.cumsum(np.bincount(pairs[:, 0], minlength=ir_a.dim)).tolist()]
            mixes = path.mode.endswith("w") and path.has_weight
            n_weights = place.stop - place.start
            row = (a_second, slices[a_second][i_a].start, ir_a.dim, slices[1 - a_second][i_b].start, ir_b.dim)
            row += (slices[2][i_out].start - start, ir.dim, place.start if path.has_weight else -1, n_weights)
            row += (product.irreps_out[i_out].mul if mixes else 0, len(groups), len(own_groups))
            rows.append((*row, len(nonzeros), len(pairs), by_k, by_i, own))
            own += 0 if mixes else n_weights
            groups += own_groups
            ends = len(entries) + np.cumsum(counts)
            nonzeros += [(int(i), int(k), int(end)) for (i, k), end in zip(pairs, ends, strict=True)]
            entries += j.tolist()
            coefficients += (path.coefficient * c).tolist()
            order += np.lexsort((pairs[:, 1], pairs[:, 0])).tolist()
    integer = (
        np.array(a, dtype=np.int32).reshape(-1, n)
        for a, n in ((rows, 17), (groups, 7), (nonzeros, 3), (entries, 1), (pointers, 1), (order, 1), (chunks, 4))
    )
    paths, groups, nonzeros, entries, pointers, order, chunks = integer
    return Tables(paths, groups, nonzeros, entries, np.array(coefficients), pointers, order, chunks)


def _has_pairs(product: Product, path: Path) -> bool:
    return 0 not in (*product.shape(path), product.irreps_out[path.i_out].mul)


def _chunks(product: Product) -> list[tuple[int, int]]:
    """First and last block + 1 of each chunk."""
    bounds, size = [0], 0
    for b, block in enumerate(product.irreps_out):
        if size and size + block.dim > CHUNK:
            bounds.append(b)
            size = 0
        size += block.dim
    bounds.append(len(product.irreps_out))
    return [pair for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]


def _a_is_second(product: Product, path: Path) -> bool:
    u, v = product.irreps_1[path.i_1].mul, product.irreps_2[path.i_2].mul
    if path.mode in ("uvw", "uvuv"):
        return v > u
    return path.mode in ("uvv", "uvu<v", "u<vw")


def _groups(product: Product, path: Path, a_second: bool) -> list[tuple[int, ...]]:
    """(b, a, n, q, q_step, out, out_step) of each group; without a matrix of weights, outputs of the pairs."""
    n_u, n_v = product.irreps_1[path.i_1].mul, product.irreps_2[path.i_2].mul
    if path.mode == "uvu":
        return [(v, 0, n_u, v, n_v, 0, 1) for v in range(n_v)]
    if path.mode == "uvv":
        return [(u, 0, n_v, u * n_v, 1, 0, 1) for u in range(n_u)]
    if path.mode in ("uuu", "uuw"):
        return [(u, u, 1, u, 1, u if path.mode == "uuu" else 0, 1) for u in range(n_u)]
    if path.mode in ("uvw", "uvuv"):
        if a_second:
            return [(u, 0, n_v, u * n_v, 1, u * n_v, 1) for u in range(n_u)]
        return [(v, 0, n_u, v, n_v, v, n_v) for v in range(n_v)]
    first = [math.comb(n_u, 2) - math.comb(n_u - u, 2) for u in range(n_u)]
    return [(u, u + 1, n_u - 1 - u, first[u], 1, first[u], 1) for u in range(n_u - 1)]
