"""Tensor product with the harmonics of the edge and a linear map: the C++ kernel's tables and calls."""

from __future__ import annotations

import functools

import numpy as np
import torch

from nextham_kernels.clebsch_gordan import dim_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.loading import kernels
from nextham_kernels.ops.edge_tensor_product.reference import plan
from nextham_kernels.result_memory import empty


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


@functools.cache
def bias_columns(irreps: str) -> np.ndarray:
    """The columns of the result that the bias is added to."""
    return edge_layout(irreps).scalars.to(torch.int32).numpy()


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
    """Runs `edge_tensor_product_forward`."""
    y = empty(x, (len(x), dim_of(irreps_out)))
    arrays = (t.numpy() for t in (x, radial, linear_weight, onsite, radial_weight, radial_bias, bias))
    module = kernels()
    settings = tables(irreps_x, l_max, irreps_out, x.dtype, module.edge_tensor_product_outputs)
    module.edge_tensor_product_forward(*arrays, *settings, bias_columns(irreps_out), y.numpy())
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
    """Runs `edge_tensor_product_backward`; the gradients of x and of radial come together.

    Where r = radial @ radial_weightᵀ + radial_bias, it is made again, and two matrix products carry its gradient on.
    """
    inputs, weights = any(needs[i] for i in (0, 1, 4, 5)), needs[2]
    fused = radial_weight.numel() > 0
    r = torch.addmm(radial_bias, radial, radial_weight.T) if fused else radial
    grad_x, grad_r = (torch.empty_like(t) if inputs else t.new_empty(0, t.shape[1]) for t in (x, r))
    grad_weight = torch.zeros_like(linear_weight)
    arrays = (t.numpy() for t in (grad, x, r, linear_weight, onsite))
    grads = (t.numpy() for t in (grad_x, grad_r, grad_weight))
    module = kernels()
    settings = tables(irreps_x, l_max, irreps_out, x.dtype, module.edge_tensor_product_outputs)
    module.edge_tensor_product_backward(*arrays, *settings, inputs, weights, *grads)
    grad_bias = grad[:, edge_layout(irreps_out).scalars].sum(0) if len(bias) else torch.empty_like(bias)
    nothing = torch.empty_like(onsite)
    if fused and inputs:
        rest = [grad_r @ radial_weight, grad_r.T @ radial, grad_r.sum(0)]
    else:
        rest = [grad_r, torch.empty_like(radial_weight), torch.empty_like(radial_bias)]
    return [grad_x, rest[0], grad_weight, nothing, *rest[1:], grad_bias]
