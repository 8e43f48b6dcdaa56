"""What the published network is made of: linear maps, norm, depthwise product, gate, heads."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from e3nn import o3
from e3nn.nn import Gate
from torch import Tensor, nn

__all__ = ["Depthwise", "Heads", "LayerNorm", "Linear", "even_first", "gate", "perceptron", "segment_softmax"]


def even_first(irreps: o3.Irreps) -> tuple[o3.Irreps, list[int]]:
    """Returns the blocks sorted by l, even parity first (stable), and the position of each block in that order."""
    order = sorted(range(len(irreps)), key=lambda i: (irreps[i].ir.l, -irreps[i].ir.p))
    position = [0] * len(order)
    for after, before in enumerate(order):
        position[before] = after
    return o3.Irreps([irreps[i] for i in order]), position


class Linear(nn.Module):
    """Irreps-wise linear map [e, irreps_in] → [e, irreps_out] without 1/√fan-in, a bias on each 0e block."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, bias: bool = True) -> None:
        super().__init__()
        instructions = [
            (i, 0, k, "uvw", True)
            for i, (_, ir_in) in enumerate(irreps_in)
            for k, (_, ir_out) in enumerate(irreps_out)
            if ir_in == ir_out
        ]
        self.tp = o3.TensorProduct(irreps_in, o3.Irreps("1x0e"), irreps_out, instructions, path_normalization="none")
        scalars = [s for s, (_, ir) in zip(irreps_out.slices(), irreps_out, strict=True) if ir.is_scalar()]
        self.scalars = scalars if bias else []
        self.bias = nn.ParameterList(torch.zeros(s.stop - s.start) for s in self.scalars)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [e, irreps_out]."""
        out = self.tp(x, torch.ones_like(x[:, :1]))
        for scalars, bias in zip(self.scalars, self.bias, strict=True):
            out[:, scalars] += bias
        return out


class LayerNorm(nn.Module):
    """Per-irrep layer norm: 0e centred, each block divided by its root mean square, affine per channel."""

    def __init__(self, irreps: o3.Irreps, eps: float = 1e-5) -> None:
        super().__init__()
        self.irreps, self.eps = irreps, eps
        self.affine_weight = nn.Parameter(torch.ones(irreps.num_irreps))
        self.affine_bias = nn.Parameter(torch.zeros(sum(mul for mul, ir in irreps if ir.is_scalar())))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [e, irreps]."""
        blocks, channel, scalar = [], 0, 0
        for where, (mul, ir) in zip(self.irreps.slices(), self.irreps, strict=True):
            block = x[:, where].reshape(-1, mul, ir.dim)
            if ir.is_scalar():
                block = block - block.mean(1, keepdim=True)
            scale = (block.square().mean(2).mean(1, keepdim=True) + self.eps).rsqrt()
            block = block * (scale * self.affine_weight[channel : channel + mul])[:, :, None]
            channel += mul
            if ir.is_scalar():
                block = block + self.affine_bias[scalar : scalar + mul, None]
                scalar += mul
            blocks.append(block.reshape(-1, mul * ir.dim))
        return torch.cat(blocks, 1)


class Depthwise(nn.Module):
    """Depthwise 'uvu' product of features with spherical harmonics; weights inside (shared) or one set per edge."""

    def __init__(self, irreps: o3.Irreps, harmonics: o3.Irreps, shared: bool) -> None:
        super().__init__()
        paths = [
            (i, j, mul, ir_out)
            for i, (mul, ir) in enumerate(irreps)
            for j, (_, ir_y) in enumerate(harmonics)
            for ir_out in ir * ir_y
            if ir_out in irreps
        ]
        stacked, position = even_first(o3.Irreps([(mul, ir) for _, _, mul, ir in paths]))
        self.tp = o3.TensorProduct(
            irreps,
            harmonics,
            stacked,
            [(i, j, position[p], "uvu", True) for p, (i, j, _, _) in enumerate(paths)],
            path_normalization="none",
            shared_weights=shared,
            internal_weights=shared,
        )
        self.irreps_out = stacked.simplify()

    def forward(self, x: Tensor, harmonics: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns [e, irreps_out]; weight [e, p u] where it is not inside."""
        return self.tp(x, harmonics, weight)


def perceptron(widths: Sequence[int], norm_eps: float | None, last_bias: bool = True) -> nn.Sequential:
    """Returns Linear, (LayerNorm,) SiLU, …, Linear."""
    parts: list[nn.Module] = []
    for n_in, n_out in pairwise(widths[:-1]):
        parts.append(nn.Linear(n_in, n_out))
        if norm_eps is not None:
            parts.append(nn.LayerNorm(n_out, eps=norm_eps))
        parts.append(nn.SiLU())
    return nn.Sequential(*parts, nn.Linear(widths[-2], widths[-1], bias=last_bias))


def gate(irreps: o3.Irreps) -> Gate:
    """Returns e3nn's gate with output `irreps`: SiLU on scalars, sigmoid of further scalars on all else."""
    scalars = o3.Irreps([block for block in irreps if block.ir.is_scalar()])
    gated = o3.Irreps([block for block in irreps if not block.ir.is_scalar()])
    gates = o3.Irreps([(gated.num_irreps, "0e")])
    return Gate(scalars, [torch.nn.functional.silu], gates, [torch.sigmoid], gated)


class Heads(nn.Module):
    """[e, irreps] ↔ [e, h, irreps / h]: each block is read as (head, channel)."""

    def __init__(self, irreps: o3.Irreps, n_heads: int) -> None:
        super().__init__()
        self.slices, self.n_heads = irreps.slices(), n_heads
        self.widths = [(s.stop - s.start) // n_heads for s in self.slices]

    def split(self, x: Tensor) -> Tensor:
        """Returns [e, h, irreps / h]."""
        return torch.cat([x[:, s].reshape(len(x), self.n_heads, -1) for s in self.slices], 2)

    def merge(self, x: Tensor) -> Tensor:
        """Returns [e, irreps]."""
        return torch.cat([part.reshape(len(x), -1) for part in x.split(self.widths, 2)], 1)


def segment_softmax(x: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Returns the softmax of x [e, h] over the edges of each segment."""
    largest = torch.full((n_segments, x.shape[1]), -torch.inf, dtype=x.dtype, device=x.device)
    largest = largest.scatter_reduce(0, segment[:, None].expand_as(x), x.detach(), "amax")
    weight = (x - largest[segment]).exp()
    total = weight.new_zeros(largest.shape).index_add(0, segment, weight)
    return weight / (total[segment] + 1e-16)
