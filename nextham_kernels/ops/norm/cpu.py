"""Layer norm per irrep: the C++ kernel's tables and calls."""

from __future__ import annotations

import functools

import numpy as np
import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.loading import kernels


@functools.cache
def tables(
    irreps: str, edge: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, torch.Tensor, torch.Tensor]:
    """What the kernel asks of a layout.

    runs [n, 3] (start, stop, group), numbers per group, the group's share of the channels, whether it is centred, the
    channel of each number [d] and its place among the biases (or one past the last).
    """
    layout = irreps_of(irreps)
    flat = np.concatenate([np.repeat(np.arange(mul), ir.dim) for mul, ir in layout] or [np.empty(0, int)])
    group = np.repeat(np.arange(len(layout)), [mul * ir.dim for mul, ir in layout])
    first = np.cumsum([0, *(mul for mul, _ in layout)])
    channel = flat + first[group]
    scalar = np.array([ir.is_scalar() for _, ir in layout], dtype=bool)
    n_bias = sum(mul for mul, ir in layout if ir.is_scalar())
    bias = np.full(len(flat), n_bias)
    bias[scalar[group]] = np.arange(n_bias)
    if edge:
        index = edge_layout(layout).index.numpy()
        group, channel, bias = group[index], channel[index], bias[index]
    cuts = np.flatnonzero(np.diff(group, prepend=-1, append=-1))
    runs = np.stack([cuts[:-1], cuts[1:], group[cuts[:-1]]], axis=1).astype(np.int32)
    count = np.array([mul * ir.dim for mul, ir in layout], dtype=np.float64)
    share = np.array([mul for mul, _ in layout]) / max(layout.num_irreps, 1)
    return runs, count, share, scalar.astype(np.int32), torch.from_numpy(channel), torch.from_numpy(bias)


def _arguments(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, irreps: str, edge: bool, eps: float, floor: float
) -> list[object]:
    runs, count, share, centred, channel, place = tables(irreps, edge)
    kind = x.numpy().dtype
    full_bias = torch.cat([bias, bias.new_zeros(1)])[place]
    arrays = (x.numpy(), weight[channel].numpy(), full_bias.numpy(), runs, count.astype(kind), share.astype(kind))
    return [*arrays, centred, eps, floor]


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, irreps: str, edge: bool, eps: float, floor: float
) -> torch.Tensor:
    """Runs `norm_forward`."""
    y = torch.empty_like(x)
    kernels().norm_forward(*_arguments(x, weight, bias, irreps, edge, eps, floor), y.numpy())
    return y


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    irreps: str,
    edge: bool,
    eps: float,
    floor: float,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs `norm_backward`, and sums over the numbers of each channel; makes all gradients whatever `needs` says."""
    grad_x, full_weight, full_bias = torch.empty_like(x), x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    arguments = _arguments(x, weight, bias, irreps, edge, eps, floor)
    kernels().norm_backward(
        grad.numpy(), *_without_bias(arguments), grad_x.numpy(), full_weight.numpy(), full_bias.numpy()
    )
    channel, place = tables(irreps, edge)[4:]
    grad_weight = torch.zeros_like(weight).index_add_(0, channel, full_weight)
    grad_bias = bias.new_zeros(len(bias) + 1).index_add_(0, place, full_bias)[:-1].clone()
    return [grad_x, grad_weight, grad_bias]


def _without_bias(arguments: list[object]) -> list[object]:
    return [*arguments[:2], *arguments[3:]]
