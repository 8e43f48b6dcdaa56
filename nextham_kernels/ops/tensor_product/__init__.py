"""Tensor product of two irreps features with weighted paths.

A path p = (block of x, block of y, block of the result, mode) adds

    out_e,wk += c_p Σ_uv w_p,uvw Σ_ij C_ijk x_e,ui y_e,vj,    C = wigner_3j(l₁, l₂, l₃)

to its block of the result, with these channels and weights:

    mode     weights       result
    uvw      [u, v, w]     z_w = Σ_uv w_uvw x_u y_v
    uvu      [u, v]        z_u = Σ_v w_uv x_u y_v
    uvv      [u, v]        z_v = Σ_u w_uv x_u y_v
    uuw      [u, w]        z_w = Σ_u w_uw x_u y_u
    uuu      [u]           z_u = w_u x_u y_u
    uvuv     [u, v]        z_uv = w_uv x_u y_v
    uvu<v    [u<v]         z_uv = w_uv x_u y_v,  pairs u < v, row-major
    u<vw     [u<v, w]      z_w = Σ_u<v w_uvw x_u y_v

Weights are stored path after path, each row-major; paths without weights have w = 1. `product` makes the paths and
their coefficients c_p from e3nn's instructions and normalisations. Degrees go up to 11.

The product is linear in x, y and the weights; all its derivatives of any order are compositions of the same kernels.
`torch.vmap` turns the mapped axis into rows.
Source: e3nn, `o3.TensorProduct`; DESIGN E7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from nextham_kernels.checks import check_irreps_dim, check_tensors, check_weight
from nextham_kernels.clebsch_gordan import IrrepsLike, irreps_of
from nextham_kernels.ops.tensor_product import cpu, reference, vmap
from nextham_kernels.ops.tensor_product.reference import Path, Product
from nextham_kernels.registration import define

__all__ = ["Path", "Product", "check_path", "product", "tensor_product"]

_op = define(
    "tensor_product",
    "Tensor x, Tensor y, Tensor weight, str word",
    reference.tensor_product,
    cpu.forward,
    cpu.backward,
    lambda x, y, weight, word: x.new_empty(x.shape[0], reference.product_of(word).dims[2]),
    lambda i, word: (reference.weighted(word) if i == 2 else word,),
    vmap=(vmap.forward, vmap.backward),
    gpu=("tensor_product.kernel.forward", "tensor_product.kernel.backward"),
)


def tensor_product(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None, product: Product) -> torch.Tensor:
    """Multiplies two irreps features path by path; the formula is on the op's page.

    Args:
        x: [e, d₁] in the layout `product.irreps_1`, float32 or float64.
        y: [e, d₂] in the layout `product.irreps_2`, same dtype.
        weight: [product.n_weights] shared by all rows, or [e, product.n_weights], same dtype; None without weights.
        product: the paths, from `product(...)`.

    Returns:
        [e, d₃] in the layout `product.irreps_out`; blocks that no path leads to are zero.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> dot = product("1x1o", "1x1o", "1x0e", [(0, 0, 0, "uuu", False)], irrep_normalization="norm")
        >>> tensor_product(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 1.0, 1.0]]), None, dot)
        tensor([[10.3923]])
    """
    if weight is None:
        weight = x.new_zeros(0)
    check_tensors(x=x, y=y, weight=weight)
    check_irreps_dim("x", x, product.irreps_1, product.dims[0])
    check_irreps_dim("y", y, product.irreps_2, product.dims[1])
    if y.shape[0] != x.shape[0]:
        raise ValueError(f"y: expected {x.shape[0]} rows as x, got {y.shape[0]}")
    check_weight(weight, product.n_weights, x.shape[0])
    return _op(x, y, weight, product.word)


def product(
    irreps_1: IrrepsLike,
    irreps_2: IrrepsLike,
    irreps_out: IrrepsLike,
    instructions: Sequence[tuple],
    in1_var: Sequence[float] | None = None,
    in2_var: Sequence[float] | None = None,
    out_var: Sequence[float] | None = None,
    irrep_normalization: str = "component",
    path_normalization: str = "element",
) -> Product:
    """Makes the paths of a product and their coefficients, by e3nn's rules.

    c_p² = α β s₃ f_p / (s₁ s₂) with s the variances, f_p the path's own factor, α = 2l₃+1 ('component'),
    (2l₁+1)(2l₂+1) ('norm') or 1 ('none'), and 1/β the number of terms of an output summed over all paths to its block
    ('element'), the number of terms times that of paths ('path') or 1 ('none').

    Args:
        irreps_1: layout of x.
        irreps_2: layout of y.
        irreps_out: layout of the result.
        instructions: (block of x, block of y, block of the result, mode, has weights[, f_p]) for each path.
        in1_var: variance of each block of x, by default 1; likewise in2_var and out_var.
        in2_var: see in1_var.
        out_var: see in1_var.
        irrep_normalization: 'component', 'norm' or 'none'.
        path_normalization: 'element', 'path' or 'none'.

    Raises:
        ValueError: an instruction that couples nothing, does not fit its multiplicities, or an unknown word.
    """
    irreps = tuple(irreps_of(i) for i in (irreps_1, irreps_2, irreps_out))
    if irrep_normalization not in ("component", "norm", "none"):
        raise ValueError(f"irrep_normalization: expected component, norm or none, got {irrep_normalization!r}")
    if path_normalization not in ("element", "path", "none"):
        raise ValueError(f"path_normalization: expected element, path or none, got {path_normalization!r}")
    given = {"in1_var": in1_var, "in2_var": in2_var, "out_var": out_var}
    for (name, variance), blocks in zip(given.items(), irreps, strict=True):
        if variance is not None and len(variance) != len(blocks):
            raise ValueError(f"{name}: expected {len(blocks)} numbers, one per block, got {len(variance)}")
    var_1, var_2, var_out = (
        [1.0] * len(blocks) if variance is None else [float(v) for v in variance]
        for variance, blocks in zip(given.values(), irreps, strict=True)
    )
    paths = [(*map(int, i[:3]), i[3], bool(i[4]), float(i[5]) if len(i) > 5 else 1.0) for i in instructions]
    for path in paths:
        check_path(path, *irreps)
    terms = [_terms(path, *irreps) * var_1[path[0]] * var_2[path[1]] for path in paths]
    found = []
    for path, own_terms in zip(paths, terms, strict=True):
        i_1, i_2, i_out, _, _, factor = path
        to_same = [t for p, t in zip(paths, terms, strict=True) if p[2] == i_out]
        dims = irreps[0][i_1].ir.dim, irreps[1][i_2].ir.dim, irreps[2][i_out].ir.dim
        square = {"component": dims[2], "norm": dims[0] * dims[1], "none": 1}[irrep_normalization]
        count = {"element": sum(to_same), "path": own_terms * len(to_same), "none": 1}[path_normalization]
        square *= var_out[i_out] * factor / (count if count > 0 else 1)
        found.append(Path(*path[:5], math.sqrt(square)))
    return Product(*irreps, tuple(found))


def _terms(path: tuple, *irreps: object) -> int:
    """The number of products that an output of the path sums."""
    u, v = irreps[0][path[0]].mul, irreps[1][path[1]].mul
    sums = {"uvw": u * v, "uvu": v, "uvv": u, "uuw": u, "uuu": 1, "uvuv": 1, "uvu<v": 1, "u<vw": u * (v - 1) // 2}
    return sums[path[3]]


def check_path(path: tuple, *irreps: object) -> None:
    """Checks a path (block of x, block of y, block of the result, mode, has weights, f_p).

    Raises:
        ValueError: it couples nothing, or does not fit its multiplicities.
    """
    shown = f"instructions: {path[:4]}"
    for i, blocks in zip(path, irreps, strict=False):
        if not 0 <= i < len(blocks):
            raise ValueError(f"{shown}: expected a block 0 <= i < {len(blocks)}, got {i}")
    mode, has_weight = path[3:5]
    if mode not in reference.SUMS:
        raise ValueError(f"{shown}: expected a mode of {', '.join(reference.SUMS)}, got {mode!r}")
    (u, ir_1), (v, ir_2), (w, ir) = (blocks[i] for i, blocks in zip(path, irreps, strict=False))
    if ir not in ir_1 * ir_2:
        raise ValueError(f"{shown}: {ir_1} x {ir_2} does not hold {ir}")
    if path[5] < 0:
        raise ValueError(f"{shown}: expected a factor of the path >= 0, got {path[5]}")
    outputs = {"uvu": u, "uvv": v, "uuu": u, "uvuv": u * v, "uvu<v": u * (u - 1) // 2}.get(mode, w)
    if mode in ("uuw", "uuu", "uvu<v", "u<vw") and u != v:
        raise ValueError(f"{shown}: expected equal multiplicities of x and y, got {u} and {v}")
    if w != outputs:
        raise ValueError(f"{shown}: expected multiplicity {outputs} of the result, got {w}")
    if not has_weight and (mode in ("uvw", "u<vw") or (mode == "uuw" and w != 1)):
        raise ValueError(f"{shown}: expected weights (a mix of channels without weights is none)")
