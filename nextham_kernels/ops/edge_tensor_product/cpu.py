"""Tensor product with the harmonics of the edge and a linear map: the C++ kernel's tables and calls."""

from __future__ import annotations

import functools

import numpy as np
import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.loading import kernels
from nextham_kernels.ops.edge_tensor_product.reference import plan


@functools.cache
def tables(irreps_x: str, l_max: int, irreps_out: str, dtype: torch.dtype, n_outputs: int) -> tuple[np.ndarray, ...]:
    """What a kernel that sums `n_outputs` outputs at once asks of a plan.

    parts [n, 7] (first term, terms, outputs, first output, distance of −m from +m in the output, the same in x,
    components); terms [k, 2] (place in x, in radial); the coefficient and the place in `linear_weight` of each weight,
    part by part, `n_outputs` columns at a time, row-major; the places in `radial` of the paths with l₂ > 0.
    """
    parts, directed, _ = plan(irreps_x, l_max, irreps_out)
    rows, first_term = [], 0
    for part in parts:
        n_terms, n_columns = part.weight.shape
        y_stride = int(part.y[-1, 0] - part.y[0, 0])
        x_stride = int(part.x[-1, 0] - part.x[0, 0]) if n_terms else 0
        rows.append((first_term, n_terms, n_columns, int(part.y[0, 0]), y_stride, x_stride, len(part.y)))
        first_term += n_terms
    columns = [
        (part.coefficient[:, None].expand_as(weight).flatten(), weight.flatten())
        for part in parts
        for weight in part.weight.split(n_outputs, dim=1)
    ]
    return (
        np.array(rows, dtype=np.int32).reshape(-1, 7),
        _joined([torch.stack([part.x[0], part.radial], dim=1) for part in parts], torch.int32).reshape(-1, 2),
        _joined([coefficient for coefficient, _ in columns], dtype),
        _joined([places for _, places in columns], torch.int32),
        directed.nonzero()[:, 0].to(torch.int32).numpy(),
    )


def _joined(tensors: list[torch.Tensor], dtype: torch.dtype) -> np.ndarray:
    return torch.cat([torch.empty(0, dtype=dtype), *(t.to(dtype) for t in tensors)]).numpy()


def forward(
    x: torch.Tensor,
    radial: torch.Tensor,
    linear_weight: torch.Tensor,
    onsite: torch.Tensor,
    irreps_x: str,
    l_max: int,
    irreps_out: str,
) -> torch.Tensor:
    """Runs `edge_tensor_product_forward`."""
    y = x.new_empty(len(x), irreps_of(irreps_out).dim)
    arrays = (t.numpy() for t in (x, radial, linear_weight, onsite))
    module = kernels()
    settings = tables(irreps_x, l_max, irreps_out, x.dtype, module.edge_tensor_product_outputs)
    module.edge_tensor_product_forward(*arrays, *settings, y.numpy())
    return y


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    radial: torch.Tensor,
    linear_weight: torch.Tensor,
    onsite: torch.Tensor,
    irreps_x: str,
    l_max: int,
    irreps_out: str,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs `edge_tensor_product_backward`; the gradients of x and of radial come together."""
    inputs, weights = needs[0] or needs[1], needs[2]
    grad_x, grad_radial = (torch.empty_like(t) if inputs else t.new_empty(0) for t in (x, radial))
    grad_weight = torch.zeros_like(linear_weight)
    arrays = (t.numpy() for t in (grad, x, radial, linear_weight, onsite))
    grads = (t.numpy() for t in (grad_x, grad_radial, grad_weight))
    module = kernels()
    settings = tables(irreps_x, l_max, irreps_out, x.dtype, module.edge_tensor_product_outputs)
    module.edge_tensor_product_backward(*arrays, *settings, inputs, weights, *grads)
    return [grad_x, grad_radial, grad_weight, torch.empty_like(onsite)]
