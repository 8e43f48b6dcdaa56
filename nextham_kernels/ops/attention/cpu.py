"""Softmax over segments: the C++ kernel's calls."""

from __future__ import annotations

import torch

from nextham_kernels.loading import kernels


def forward(logits: torch.Tensor, segment: torch.Tensor, n_segments: int, ascending: bool) -> torch.Tensor:
    """Runs `segment_softmax_forward`."""
    y = torch.empty_like(logits)
    kernels().segment_softmax_forward(logits.numpy(), segment.numpy(), n_segments, y.numpy())
    return y


def backward(
    grad: torch.Tensor, logits: torch.Tensor, segment: torch.Tensor, n_segments: int, ascending: bool, needs: list[bool]
) -> list[torch.Tensor]:
    """Runs `segment_softmax_backward`; `needs` says true of the logits."""
    grad_logits = torch.empty_like(logits)
    kernels().segment_softmax_backward(grad.numpy(), logits.numpy(), segment.numpy(), n_segments, grad_logits.numpy())
    return [grad_logits, torch.zeros_like(segment)]
