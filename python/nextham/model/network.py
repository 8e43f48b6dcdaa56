"""One network: H⁽⁰⁾ irreps and geometry in, ΔH irreps and trace head out."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from nextham.model.attention import Attention
from nextham.model.config import NextHAMConfig
from nextham.model.layers import Linear, Norm, mlp, parameter
from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.gate import gate, gate_input_irreps
from nextham_kernels.ops.radial_basis import radial_basis
from nextham_kernels.ops.spherical_harmonics import spherical_harmonics
from nextham_kernels.ops.tracegrad import trace_invariants, tracegrad

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["Geometry", "Layer", "Network", "TraceGrad", "last_edge_irreps"]


class Geometry(NamedTuple):
    """What all networks read of the structure: edges i→j with r = τ_j + R − τ_i."""

    src: torch.Tensor  # i of each edge [e]
    dst: torch.Tensor  # j of each edge [e]
    onsite: torch.Tensor  # the edge r = 0 of each node [n]
    distance: torch.Tensor  # |r| [e], Å
    harmonics: torch.Tensor  # spherical harmonics [e, (l_max + 1)²]
    radial: torch.Tensor  # radial basis [e, c]

    @classmethod
    def of(cls, src: torch.Tensor, dst: torch.Tensor, vector: torch.Tensor, config: NextHAMConfig) -> Geometry:
        """Computes it once for all networks.

        Raises:
            ValueError: a node without exactly one on-site edge.
        """
        distance = vector.norm(dim=1)
        n_nodes = int(torch.cat([src, dst]).max()) + 1 if len(src) else 0
        edges = torch.nonzero((src == dst) & (distance == 0))[:, 0]
        count = torch.bincount(src[edges], minlength=n_nodes)
        for node in torch.nonzero(count != 1)[:1, 0].tolist():
            raise ValueError(f"src, dst, vector: expected one on-site edge (r = 0) of node {node}, got {count[node]}")
        onsite = torch.empty_like(edges).index_copy(0, src[edges], edges)
        radial = radial_basis(distance, config.n_radial, config.radial_stop)
        return cls(src, dst, onsite, distance, spherical_harmonics(vector, config.l_max), radial)


@functools.cache
def last_edge_irreps(config: NextHAMConfig) -> o3.Irreps:
    """Returns the edge irreps of the last layer: hidden scalars, then the output's sorted (odd first) and merged."""
    return irreps_of(f"{config.n_scalars}x0e") + config.block_irreps.sort().irreps.simplify()


class Layer(nn.Module):
    """One layer: attention, then, except in the last layer, the node's norm and feed-forward."""

    def __init__(self, config: NextHAMConfig, last: bool) -> None:
        super().__init__()
        hidden = config.hidden_irreps
        self.hidden, self.last = hidden, last
        self.norm_node = Norm(hidden, config.floor)
        self.norm_edge = Norm(hidden, config.floor)
        self.attention = Attention(config, last_edge_irreps(config) if last else hidden, with_node=not last)
        if not last:
            self.norm_update = Norm(hidden, config.floor)
            self.rise = Linear(hidden, gate_input_irreps(hidden))
            self.fall = Linear(hidden, hidden)

    def forward(
        self, node: torch.Tensor, edge: torch.Tensor, geometry: Geometry
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Returns node [n, d], None in the last layer, and edge [e, d_edge]."""
        node = self.norm_node(node)
        edge, update = self.attention(node, self.norm_edge(edge), geometry)
        if self.last:
            return None, edge
        x = self.norm_update(update + node)
        return x + self.fall(gate(self.rise(x), self.hidden)), edge


class TraceGrad(nn.Module):
    """Invariants z of edge features from quadratic forms, and g = ∂(Σ z)/∂x."""

    def __init__(self, irreps: o3.Irreps, n_forms: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.irreps = irreps
        size = sum(mul * mul for mul, _ in irreps) * n_forms
        self.forms = parameter(lambda: torch.randn(size), size)
        self.mlp = mlp((n_forms, *widths), norm_eps=1e-6)

    def invariants(self, x: torch.Tensor) -> torch.Tensor:
        """Returns z [e, c] alone."""
        return trace_invariants(x, self.forms, list(self.mlp.parameters()), self.irreps)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns z [e, c] and g [e, d]."""
        return tracegrad(x, self.forms, list(self.mlp.parameters()), self.irreps)


class Network(nn.Module):
    """One network of the ensemble.

    Args:
        config: the configuration.
        span: distance range [lo, hi) of its output, Å.
    """

    def __init__(self, config: NextHAMConfig, span: tuple[float, float]) -> None:
        super().__init__()
        self.config, self.span = config, span
        n, widths = config.n_layers, config.tracegrad_widths
        scalars = irreps_of(f"{config.n_scalars}x0e")
        self.embed = Linear(config.block_irreps, config.hidden_irreps, bias=False)
        self.layers = nn.ModuleList(Layer(config, last=k == n - 1) for k in range(n))
        self.tracegrad = nn.ModuleList(
            [TraceGrad(config.hidden_irreps, config.tracegrad_forms, widths) for _ in range(n - 1)]
            + [TraceGrad(scalars, config.tracegrad_forms_last, widths)]
        )
        self.readout = Linear(last_edge_irreps(config), config.block_irreps)
        self.trace_head = mlp((n * widths[-1], *config.trace_widths, len(config.shells) ** 2), norm_eps=None)

    def forward(
        self,
        h0: torch.Tensor,
        geometry: Geometry,
        with_trace: bool = True,
        record: dict[str, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the output irreps [e, d] and the trace head [e, s²], both zero outside the range.

        Args:
            h0: irreps of H⁽⁰⁾ [e, d], eV.
            geometry: the edges.
            with_trace: compute the trace head, which inference does not read; None stands for it otherwise.
            record: a dictionary that takes the intermediates `layer{k}/node` (None in the last layer), `layer{k}/edge`
                (before the TraceGrad update), `tracegrad{k}/invariants` and, where it is computed, `/gradient`.
        """
        seen: dict[str, torch.Tensor] = {} if record is None else record
        edge = self.embed(h0)
        node = edge[geometry.onsite]
        for k, (layer, trace) in enumerate(zip(self.layers, self.tracegrad, strict=True)):
            node, edge = layer(node, edge, geometry)
            seen[f"layer{k}/node"], seen[f"layer{k}/edge"] = node, edge
            if self.config.tracegrad_residual and not layer.last:
                z, g = trace(edge)
                scale = (edge.norm(dim=1, keepdim=True) / (g.norm(dim=1, keepdim=True) + 1e-5)).detach()
                edge = edge + self.config.tracegrad_residual * scale * g
                seen[f"tracegrad{k}/invariants"], seen[f"tracegrad{k}/gradient"] = z, g
            elif with_trace:
                x = edge[:, : self.config.n_scalars] if layer.last else edge
                seen[f"tracegrad{k}/invariants"] = trace.invariants(x)
        lo, hi = self.span
        distance = geometry.distance[:, None]
        inside = (distance >= lo) & (distance < hi)
        output = self.readout(edge) * (inside * torch.exp(-self.config.decay * distance))
        if not with_trace:
            return output, None
        invariants = [seen[f"tracegrad{k}/invariants"] for k in range(len(self.layers))]
        return output, self.trace_head(torch.cat(invariants, dim=1)) * inside
