"""Depthwise tensor product: the definition, path by path."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch

from nextham_kernels.clebsch_gordan import wigner_3j

if TYPE_CHECKING:
    from e3nn import o3


class Path(NamedTuple):
    """One coupling of a block of x with a block of y."""

    x: slice
    y: slice
    weight: slice
    mul_x: int
    mul_y: int
    l_x: int
    l_y: int
    ir: o3.Irrep


@functools.cache
def paths(irreps_x: o3.Irreps, irreps_y: o3.Irreps, irreps_keep: o3.Irreps) -> tuple[Path, ...]:
    """Returns the paths in the order of their weights."""
    keep = {ir for _, ir in irreps_keep}
    found, offset = [], 0
    for (mul_x, ir_x), slice_x in zip(irreps_x, irreps_x.slices(), strict=True):
        for (mul_y, ir_y), slice_y in zip(irreps_y, irreps_y.slices(), strict=True):
            for ir in ir_x * ir_y:
                if ir in keep:
                    weight = slice(offset, offset + mul_x * mul_y)
                    found.append(Path(slice_x, slice_y, weight, mul_x, mul_y, ir_x.l, ir_y.l, ir))
                    offset = weight.stop
    return tuple(found)


def output_order(found: tuple[Path, ...]) -> list[Path]:
    """Returns the paths in the order of the output: by l, even parity first, otherwise as they came."""
    return sorted(found, key=lambda path: (path.ir.l, -path.ir.p))


def depthwise_tensor_product(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    irreps_x: o3.Irreps,
    irreps_y: o3.Irreps,
    irreps_keep: o3.Irreps,
) -> torch.Tensor:
    """√(2l₃+1) Σ_v w_uv Σ_ij C_ijk x_ui y_vj, for each path."""
    weight = weight if weight.ndim == 2 else weight[None]
    out = [x.new_zeros(x.shape[0], 0)]
    for path in output_order(paths(irreps_x, irreps_y, irreps_keep)):
        x_ui = x[:, path.x].unflatten(1, (path.mul_x, -1))  # [e, u, i]
        y_vj = y[:, path.y].unflatten(1, (path.mul_y, -1))  # [e, v, j]
        w_uv = weight[:, path.weight].unflatten(1, (path.mul_x, path.mul_y))  # [e or 1, u, v]
        c_ijk = (2 * path.ir.l + 1) ** 0.5 * wigner_3j(path.l_x, path.l_y, path.ir.l, x.dtype, x.device)
        map_vik = torch.einsum("evj,ijk->evik", y_vj, c_ijk)
        if path.mul_y == 1:
            t_uk = (x_ui @ map_vik[:, 0]) * w_uv
        else:
            t_uk = torch.einsum("euv,eui,evik->euk", w_uv.expand(len(x), -1, -1), x_ui, map_vik)
        out.append(t_uk.flatten(1))
    return torch.cat(out, dim=1)
