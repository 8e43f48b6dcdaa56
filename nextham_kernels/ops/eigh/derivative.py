"""The derivative of a spectrum with respect to H and S; the formula is on the op's page."""

from __future__ import annotations

import torch
from torch.autograd.function import FunctionCtx

# Levels closer than this, in units of the largest, are one degenerate group.
_DEGENERATE = {torch.float32: 1e-5, torch.float64: 1e-10}
# How far M∘D may be from Hermitian, in units of its largest element, before it depends on the choice of vectors.
_INVARIANT = {torch.float32: 1e-3, torch.float64: 1e-6}


class Spectrum(torch.autograd.Function):
    """Puts levels and vectors that are already there into the graph of H and S."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, h: torch.Tensor, s: torch.Tensor | None, values: torch.Tensor, vectors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (values, vectors)."""
        values, vectors = values.clone(), vectors.clone()
        ctx.save_for_backward(values, vectors)
        ctx.overlap = s is not None
        ctx.set_materialize_grads(False)
        return values, vectors

    @staticmethod
    def backward(ctx: FunctionCtx, grad_values: torch.Tensor | None, grad_vectors: torch.Tensor | None) -> tuple:
        """Returns the gradients of H and S, in differentiable steps."""
        values, c = ctx.saved_tensors
        grad_values = torch.zeros_like(values) if grad_values is None else grad_values
        of_h = torch.diag_embed(grad_values.to(c.dtype))
        of_s = of_h * values[:, None, :]
        if grad_vectors is not None:
            inner, half = _of_vectors(values, c, grad_vectors)
            of_h, of_s = of_h + inner, of_s + inner * values[:, None, :] + half
        grad_h = _hermitian(c @ of_h @ c.mH)
        return grad_h, -_hermitian(c @ of_s @ c.mH) if ctx.overlap else None, None, None


def _of_vectors(values: torch.Tensor, c: torch.Tensor, grad_vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """F∘M and ½ M∘D."""
    gap = values[:, None, :] - values[:, :, None]  # E_s − E_t at [q, t, s]
    scale = values.detach().abs().amax(1, keepdim=True)[:, :, None] if values.shape[1] else gap
    group = gap.detach().abs() <= _DEGENERATE[values.dtype] * scale
    m = c.mH @ grad_vectors
    _check_invariance(m.detach() * group, m.detach())
    return torch.where(group, 0, m / torch.where(group, 1, gap)), torch.where(group, m / 2, 0)


def _hermitian(x: torch.Tensor) -> torch.Tensor:
    return (x + x.mH) / 2


def _check_invariance(inside: torch.Tensor, m: torch.Tensor) -> None:
    """Raises where the result depends on the choice of vectors inside a degenerate group."""
    wrong = (inside - inside.mH).abs()
    allowed = _INVARIANT[wrong.dtype] * m.abs().amax((1, 2), keepdim=True) if m.numel() else wrong
    if (wrong > allowed).any():
        k, t, s = ((wrong > allowed).nonzero()[0]).tolist()
        which = f"of level {t}" if t == s else f"among the degenerate levels {t} and {s}"
        reason = "its phase" if t == s else "a window may cut them"
        raise RuntimeError(
            f"vectors: the result depends on the choice of vectors {which} at k-point {k} ({reason}), so it has no "
            "derivative; use what is invariant inside degenerate groups, such as projectors on whole groups"
        )
