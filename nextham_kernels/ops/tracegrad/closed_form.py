"""TraceGrad in closed form: the update of the features and the invariants, without a graph inside a graph.

With the packed Gram matrices G = gram(x, x) and the forms folded into the first Linear, A (DESIGN E2, E3), the MLP is

    h_0 = G A + b,  y_j = layer_norm_silu(h_j),  h_j+1 = y_j W_jᵀ + b_j,  z = h_k

and the gradient of Σ_c z_c is one sweep back, whose first vector is the constant a = Σ_c W_k−1,c:

    v_k−1 = a,  g_j = layer_norm_silu_vjp(v_j, h_j),  v_j−1 = g_j W_j−1,  C = g_0 Aᵀ,  g = 2 gram_apply(C, x)
    x′ = x + s g,  s = ρ ‖x‖/(‖g‖ + 1e-5)

The backward pass differentiates this sweep line by line, s being a constant. It keeps x, s, every h_j and every v_j but
the constant: 1673 numbers per edge in NextHAM, 6.7 kB in float32. G (980 numbers) is computed again for 2.5k
multiply-adds, y_j and g_j (1536) for six elementwise passes, and C (980) for 251k of the 2.7 million multiply-adds of a
forward and backward pass. On the CPU it is one kernel on tiles of edges, as the sweeps are; `backward` below says what
it does, and does it elsewhere.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch.autograd.function import FunctionCtx

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.loading import composed
from nextham_kernels.ops.gram import gram, gram_apply, gram_update
from nextham_kernels.ops.layer_norm_silu import (
    layer_norm_silu,
    layer_norm_silu_backward,
    layer_norm_silu_vjp,
    layer_norm_silu_vjp_backward,
)
from nextham_kernels.ops.tracegrad import cpu
from nextham_kernels.sparse_map import SparseMap

__all__ = ["FoldedTraceGrad", "Update", "fold", "invariants"]

EPS = 1e-6


class FoldedTraceGrad(NamedTuple):
    """TraceGrad's parameters with the quadratic forms folded into the first Linear; `fold_tracegrad` makes it.

    Args:
        irreps: layout of the features.
        forms: A [n_pairs(irreps), c].
        bias: b [c].
        last: a, ∂(Σ_c z_c)/∂y_k−1, or ∂(Σ_c z_c)/∂h_0 = 1 where there is but one Linear.
        layers: for each layer its LayerNorm's weight and bias and its Linear's weight [out, in] and bias.
    """

    irreps: str
    forms: torch.Tensor
    bias: torch.Tensor
    last: torch.Tensor
    layers: tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], ...]


@functools.cache
def _symmetric(irreps: str) -> SparseMap:
    """From the forms of uv and vu to (W_uv + W_vu)/2 /√(2l+1)/√N, an entry of `gram` each."""
    upper, lower, scale, start = [], [], [], 0
    for mul, ir in irreps_of(irreps):
        u, v = torch.triu_indices(mul, mul)
        upper.append(start + u * mul + v)
        lower.append(start + v * mul + u)
        scale.append(torch.where(u == v, 1.0, 0.5).double() / ir.dim**0.5)
        start += mul * mul
    upper, lower, scale = torch.cat(upper), torch.cat(lower), torch.cat(scale) / start**0.5
    rows, off = torch.arange(len(upper)), upper != lower
    rows, columns = torch.cat([rows, rows[off]]), torch.cat([upper, lower[off]])
    return SparseMap(rows, columns, torch.cat([scale, scale[off]]), len(upper), start)


def fold(weight: torch.Tensor, mlp: list[torch.Tensor], irreps: str) -> FoldedTraceGrad:
    """A = (W_uv + W_vu)/2 /√(2l+1)/√N · (first weight)ᵀ, and a."""
    symmetric = _symmetric(irreps)(weight.view(-1, mlp[0].shape[1]))
    layers = tuple(tuple(mlp[i : i + 4]) for i in range(2, len(mlp), 4))
    last = layers[-1][2].sum(0) if layers else torch.ones_like(mlp[1])
    return FoldedTraceGrad(irreps, symmetric @ mlp[0].T, mlp[1], last, layers)


def invariants(x: torch.Tensor, folded: FoldedTraceGrad, edge: bool) -> torch.Tensor:
    """Returns z."""
    z = torch.addmm(folded.bias, gram(x, x, folded.irreps, edge), folded.forms)
    for weight, bias, w, b in folded.layers:
        z = torch.addmm(b, layer_norm_silu(z, weight, bias, EPS), w.T)
    return z


class Update(torch.autograd.Function):
    """irreps, edge, ρ, whether z is wanted and a graph kept, x, A, b, a, then each layer's tensors → x′, z or None."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        irreps: str,
        edge: bool,
        residual: float,
        wanted: bool,
        keep: bool,
        x: torch.Tensor,
        forms: torch.Tensor,
        bias: torch.Tensor,
        last: torch.Tensor,
        *flat: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Runs the two sweeps."""
        layers = _layers(flat)
        x = x.contiguous()
        sweep = _sweep if composed(x.device) else cpu.update
        y, scale, z, h, v = sweep(x, forms, bias, last, layers, irreps, edge, EPS, residual, keep, wanted)
        ctx.settings = irreps, edge
        ctx.save_for_backward(x, scale, forms, last, *h, *v, *flat)
        ctx.set_materialize_grads(False)
        return y, z

    @staticmethod
    def backward(
        ctx: FunctionCtx, grad_y: torch.Tensor | None, grad_z: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """Differentiates the sweep back, then the sweep forward.

        Raises:
            RuntimeError: with `create_graph`, because nothing here can be differentiated again.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                "tracegrad_update has first derivatives only, and a graph of them was asked for (create_graph=True): "
                "use nextham_kernels.ops.tracegrad.tracegrad, which has all"
            )
        irreps, edge = ctx.settings
        x, scale, forms, last, *rest = ctx.saved_tensors
        k = len(rest) // 6
        h, v, layers = rest[:k], rest[k : 2 * k], _layers(rest[2 * k :])
        kernel = not composed(x.device)
        if kernel and grad_y is not None and layers:
            given = (x, scale, forms, last, layers, h, v, irreps, edge, EPS)
            return (None, None, None, None, None, *cpu.backward(grad_y, grad_z, *given))
        weights = any(ctx.needs_input_grad[6:])
        grad_x = grad_forms = grad_last = grad_bias = None
        grad_h: list[torch.Tensor | None] = [None] * k
        grads: list[list[torch.Tensor | None]] = [[None] * 4 for _ in layers]

        if grad_y is not None:
            g = [layer_norm_silu_vjp(v[j], h[j], *layers[j][:2], EPS) for j in range(k)]
            g = g or [last.expand(len(x), -1)]
            grad_g = 2 * scale * grad_y  # by C x
            grad_x = gram_apply(g[0] @ forms.T, grad_g, irreps, edge).add_(grad_y)
            grad_c = gram(grad_g, x, irreps, edge)
            if weights:
                grad_forms = grad_c.T @ g[0]
            pull = grad_c @ forms  # by g_0, and then on through g_j and v_j
            for j in range(k):
                pull, grad_h[j], *grads[j][:2] = layer_norm_silu_vjp_backward(
                    pull, v[j], h[j], *layers[j][:2], EPS, [True] * 4
                )
                if j + 1 < k:
                    if weights:
                        grads[j][2] = g[j + 1].T @ pull
                    pull = pull @ layers[j][2].T
            grad_last = pull.sum(0)

        pull = grad_z
        for j in reversed(range(k)):
            weight, shift, w, _ = layers[j]
            if pull is not None:
                if weights:
                    y = layer_norm_silu(h[j], weight, shift, EPS)
                    grads[j][2:] = _add_product(grads[j][2], pull, y), pull.sum(0)
                found = layer_norm_silu_backward(pull @ w, h[j], weight, shift, EPS, [True] * 3)
                grad_h[j], *grads[j][:2] = map(_add, (grad_h[j], *grads[j][:2]), found)
            pull = grad_h[j]
        if pull is not None:
            if weights:
                grad_bias = pull.sum(0)
                grad_forms = _add_product(grad_forms, gram(x, x, irreps, edge), pull)
            grad_x = _add(grad_x, gram_apply(pull @ forms.T, x, irreps, edge).mul_(2))
        flat = (grad for layer in grads for grad in layer)
        return (None, None, None, None, None, grad_x, grad_forms, grad_bias, grad_last, *flat)


def _add(total: torch.Tensor | None, term: torch.Tensor) -> torch.Tensor:
    return term if total is None else total.add_(term)


def _add_product(total: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns total + aᵀ b."""
    return a.T @ b if total is None else total.addmm_(a.T, b)


def _layers(flat: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, ...]]:
    return [flat[i : i + 4] for i in range(0, len(flat), 4)]


def _sweep(
    x: torch.Tensor,
    forms: torch.Tensor,
    bias: torch.Tensor,
    last: torch.Tensor,
    layers: list[tuple[torch.Tensor, ...]],
    irreps: str,
    edge: bool,
    eps: float,
    residual: float,
    keep: bool,
    wanted: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, list[torch.Tensor], list[torch.Tensor]]:
    """Returns x′, s [e, 1], z or None, every h_j and every v_j: the formulas of this page, line by line.

    Without `keep`, what the backward pass reads is not returned.
    """
    h = [torch.addmm(bias, gram(x, x, irreps, edge), forms)]
    for weight, shift, w, b in layers if wanted else layers[:-1]:
        h.append(torch.addmm(b, layer_norm_silu(h[-1], weight, shift, eps), w.T))
    z = h[-1] if wanted else None
    g = last.expand(len(x), -1)
    v = [g] * len(layers)
    if layers and not keep:
        v[-1] = last[None]  # the vjp takes one row for all
    for j in reversed(range(len(layers))):
        g = layer_norm_silu_vjp(v[j], h[j], *layers[j][:2], eps)
        if j:
            v[j - 1] = g @ layers[j - 1][2]
    if not keep:
        return gram_update(g @ forms.T, x, irreps, residual, edge), None, z, [], []
    g = gram_apply(g @ forms.T, x, irreps, edge)  # half of it
    scale = residual * x.norm(dim=1, keepdim=True) / (2 * g.norm(dim=1, keepdim=True) + 1e-5)
    return torch.addcmul(x, scale, g, value=2), scale, z, h[: len(layers)], v
