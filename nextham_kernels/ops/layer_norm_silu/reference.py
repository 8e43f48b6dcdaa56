"""Layer norm and SiLU: the definition, and its vector-Jacobian product written out."""

from __future__ import annotations

import torch
from torch.nn import functional


def unit(h: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns n and 1/√(variance + ε), written out because the third derivative of torch's own (2.13) is wrong."""
    centred = h - h.mean(1, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)
    return centred * inverse, inverse


def layer_norm_silu(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Returns silu(w n + b)."""
    return functional.silu(unit(h, eps)[0] * weight + bias)


def layer_norm_silu_vjp(
    v: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """(a − mean a − n mean(a n))/√(variance + ε) with a = v silu′(u) w."""
    n, inverse = unit(h, eps)
    u = n * weight + bias
    s = torch.sigmoid(u)
    a = v * s * (1 + u * (1 - s)) * weight
    return inverse * (a - a.mean(1, keepdim=True) - n * (a * n).mean(1, keepdim=True))
