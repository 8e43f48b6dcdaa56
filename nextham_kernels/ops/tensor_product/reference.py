"""Tensor product of irreps features: the definition, path by path, and the word that says which paths there are."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from nextham_kernels.clebsch_gordan import irreps_of, wigner_3j

if TYPE_CHECKING:
    from e3nn import o3

# Of x_ui y_vj, weights and C_ijk to the output's channels; z counts rows. '<' stands for pairs q = (u, v) with u < v.
SUMS = {
    "uvw": "zuvw,zui,zvj,ijk->zwk",
    "uvu": "zuv,zui,zvj,ijk->zuk",
    "uvv": "zuv,zui,zvj,ijk->zvk",
    "uuw": "zuw,zui,zuj,ijk->zwk",
    "uuu": "zu,zui,zuj,ijk->zuk",
    "uvuv": "zuv,zui,zvj,ijk->zuvk",
    "uvu<v": "zq,zqi,zqj,ijk->zqk",
    "u<vw": "zqw,zqi,zqj,ijk->zwk",
}


class Path(NamedTuple):
    """One coupling of a block of x with a block of y."""

    i_1: int
    i_2: int
    i_out: int
    mode: str
    has_weight: bool
    coefficient: float


@dataclass(frozen=True)
class Product:
    """All paths of a product; `word` says the same in one line, which is what the op is called with."""

    irreps_1: o3.Irreps
    irreps_2: o3.Irreps
    irreps_out: o3.Irreps
    paths: tuple[Path, ...]
    # What follows from them, once, so that calls and torch's compiler only read it:
    dims: tuple[int, int, int] = field(init=False, repr=False)  # of x, y and the result
    weight_slices: tuple[slice, ...] = field(init=False, repr=False)  # of each path; empty without weights
    n_weights: int = field(init=False, repr=False)
    word: str = field(init=False, repr=False)  # irreps|irreps|irreps|i_1 i_2 i_out mode has_weight coefficient;…

    def __post_init__(self) -> None:
        irreps = (self.irreps_1, self.irreps_2, self.irreps_out)
        ends = list(itertools.accumulate((math.prod(self.shape(p)) * p.has_weight for p in self.paths), initial=0))
        paths = (f"{p.i_1} {p.i_2} {p.i_out} {p.mode} {int(p.has_weight)} {p.coefficient!r}" for p in self.paths)
        derived = {
            "dims": tuple(i.dim for i in irreps),
            "weight_slices": tuple(slice(*ends) for ends in itertools.pairwise(ends)),
            "n_weights": ends[-1],
            "word": "|".join([*map(str, irreps), ";".join(paths)]),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def shape(self, path: Path) -> tuple[int, ...]:
        """Returns the shape of the weights of a path (also of one without weights)."""
        u, v, w = self.irreps_1[path.i_1].mul, self.irreps_2[path.i_2].mul, self.irreps_out[path.i_out].mul
        pairs = u * (v - 1) // 2
        return {
            "uvw": (u, v, w),
            "uvu": (u, v),
            "uvv": (u, v),
            "uuw": (u, w),
            "uuu": (u,),
            "uvuv": (u, v),
            "uvu<v": (pairs,),
            "u<vw": (pairs, w),
        }[path.mode]


@functools.cache
def product_of(word: str) -> Product:
    """Reads the word of a product."""
    *irreps, paths = word.split("|")
    found = []
    for path in filter(None, paths.split(";")):
        i_1, i_2, i_out, mode, has_weight, coefficient = path.split(" ")
        found.append(Path(int(i_1), int(i_2), int(i_out), mode, bool(int(has_weight)), float(coefficient)))
    return Product(*(irreps_of(i) for i in irreps), tuple(found))


@functools.cache
def weighted(word: str) -> str:
    """Returns the word of the product's paths that have weights: the part that is linear in them."""
    product = product_of(word)
    return Product(
        product.irreps_1, product.irreps_2, product.irreps_out, tuple(path for path in product.paths if path.has_weight)
    ).word


def tensor_product(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, word: str) -> torch.Tensor:
    """out_wk = Σ_paths coefficient Σ_uvij w_uvw C_ijk x_ui y_vj, the sum over channels being that of the mode."""
    product = product_of(word)
    weight = weight if weight.ndim == 2 else weight[None]
    blocks = [x.new_zeros(x.shape[0], mul, ir.dim) for mul, ir in product.irreps_out]
    slices_1, slices_2 = product.irreps_1.slices(), product.irreps_2.slices()
    for path, place in zip(product.paths, product.weight_slices, strict=True):
        shape = product.shape(path)
        (u, ir_1), (v, ir_2), (mul, ir) = (
            product.irreps_1[path.i_1],
            product.irreps_2[path.i_2],
            product.irreps_out[path.i_out],
        )
        if 0 in (*shape, u, v, mul):
            continue
        x_ui, y_vj = x[:, slices_1[path.i_1]].unflatten(1, (u, -1)), y[:, slices_2[path.i_2]].unflatten(1, (v, -1))
        if "<" in path.mode:
            first, second = torch.triu_indices(u, v, 1, device=x.device)
            x_ui, y_vj = x_ui[:, first], y_vj[:, second]
        w = weight[:, place].unflatten(1, shape) if path.has_weight else x.new_ones(1, *shape)
        c_ijk = path.coefficient * wigner_3j(ir_1.l, ir_2.l, ir.l, x.dtype, x.device)
        block = torch.einsum(SUMS[path.mode], w.expand(x.shape[0], *shape), x_ui, y_vj, c_ijk)
        blocks[path.i_out] = blocks[path.i_out] + block.reshape(x.shape[0], mul, ir.dim)
    return torch.cat([x.new_zeros(x.shape[0], 0), *(block.flatten(1) for block in blocks)], dim=1)


def tensor_product_conv(
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
    """Σ over the edges of each row of the tensor product; the orders do not matter."""
    edges = tensor_product(x[cols], y, weight, word)
    return x.new_zeros(n_rows, product_of(word).dims[2]).index_add(0, rows, edges)
