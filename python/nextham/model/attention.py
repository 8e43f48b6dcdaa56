"""The attention of one layer: messages on edges, their values and logits, and what nodes and edges get of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from nextham.model.config import NextHAMConfig
from nextham.model.layers import Linear, mlp, parameter
from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.attention import attention
from nextham_kernels.ops.depthwise_tensor_product import depthwise_irreps, depthwise_tensor_product
from nextham_kernels.ops.gate import gate, gate_input_irreps

if TYPE_CHECKING:
    from e3nn import o3

    from nextham.model.network import Geometry

__all__ = ["Attention", "head_irreps"]


def head_irreps(hidden: o3.Irreps, n_heads: int) -> o3.Irreps:
    """Returns the layout of all heads' values: n_heads times each block, by l, even parity first."""
    ordered = sorted(hidden, key=lambda block: (block.ir.l, -block.ir.p))
    return irreps_of("+".join(f"{n_heads * mul}x{ir}" for mul, ir in ordered))


class Attention(nn.Module):
    """Attention over the edges into each node.

    m = merge([source(n̂)_src, target(n̂)_dst, ê]); t = m ⊗ Y with radial weights; α = logits([rbf, scalars of t]);
    v = heads(gate(value(t)) ⊗ Y); edge' = to_edge(α v); node' = to_node(Σ_{into n} softmax(α) v).

    Args:
        config: the configuration.
        edge_irreps: irreps of the edge output.
        with_node: whether there is a node output; the last layer has none.
    """

    def __init__(self, config: NextHAMConfig, edge_irreps: o3.Irreps, with_node: bool) -> None:
        super().__init__()
        hidden, self.harmonics = config.hidden_irreps, config.harmonics_irreps
        self.hidden, self.n_alpha = hidden, config.alpha_scalars
        product, n_paths = depthwise_irreps(hidden, self.harmonics, hidden)
        self.values = head_irreps(hidden, config.n_heads)

        self.source = Linear(hidden, hidden)
        self.target = Linear(hidden, hidden, bias=False)
        self.merge = Linear(hidden + hidden + hidden, hidden)
        self.radial = mlp((config.n_radial, *config.radial_widths, n_paths), norm_eps=1e-5, last_bias=False)
        self.radial_offset = parameter(lambda: (2 * torch.rand(n_paths) - 1) / config.radial_widths[-1] ** 0.5, n_paths)
        self.alpha = Linear(product, irreps_of(f"{config.n_heads * config.alpha_scalars}x0e"))
        self.logits = mlp((config.n_radial + self.n_alpha, *config.alpha_widths, config.n_heads), norm_eps=1e-6)
        self.value = Linear(product, gate_input_irreps(hidden))
        self.path_weight = parameter(lambda: torch.randn(n_paths), n_paths)
        self.heads = Linear(product, self.values)
        self.to_edge = Linear(self.values, edge_irreps)
        self.to_node = Linear(self.values, hidden) if with_node else None

    def forward(
        self, node: torch.Tensor, edge: torch.Tensor, geometry: Geometry
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the edge output [e, d_edge] and the node output [n, d], or None, of normalised features."""
        source, target = self.source(node)[geometry.src], self.target(node)[geometry.dst]
        message = self.merge(torch.cat([source, target, edge], dim=1))
        weight = self.radial(geometry.radial) + self.radial_offset
        product = self._product(message, geometry.harmonics, weight)
        scalars = self.alpha(product)[:, : self.n_alpha]
        logits = self.logits(torch.cat([geometry.radial, scalars], dim=1))
        value = gate(self.value(product), self.hidden)
        value = self.heads(self._product(value, geometry.harmonics, self.path_weight))
        on_edge, on_node = attention(logits, value, geometry.dst, len(node), self.values)
        return self.to_edge(on_edge), None if self.to_node is None else self.to_node(on_node)

    def _product(self, x: torch.Tensor, harmonics: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return depthwise_tensor_product(x, harmonics, weight, self.hidden, self.harmonics, self.hidden)
