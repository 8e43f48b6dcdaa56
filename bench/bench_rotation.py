"""Rotation of the published features into the frame of each edge and back, and the Wigner D matrices for it.

`wigner` makes D of the edges, `to_edges` gathers two nodes for each edge and rotates, `to_nodes` rotates back and sums.
The backward directions ask for the gradients of the features, `to_edges_backward_all` for that of D as well; they
include the forward pass. Nodes are laid out as rows.

`gb_per_s` counts every array once: nodes, rows, D and indices. `gflop_per_s` counts the products with D, 2,152
multiply-adds per edge.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.rotation import edge_wigner, reference, rotate_to_edges, rotate_to_nodes

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

IRREPS = "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"
# Edges and nodes: a piece that the second-level cache holds, and a crystal of 200 atoms.
CASES = {"piece": (512, 6), "crystal": (20_000, 200)}
DIRECTIONS = ("to_edges", "to_nodes", "wigner", "to_edges_backward", "to_edges_backward_all", "to_nodes_backward")

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """Random features on a random graph.

    Args:
        vector: [e, 3].
        source: [n, d].
        target: [n, d].
        rows: [e, d].
        src: [e], in no order.
        dst: [e], ascending.
        wigner: D of the edges [e, w].
    """

    vector: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    rows: torch.Tensor
    src: torch.Tensor
    dst: torch.Tensor
    wigner: torch.Tensor

    def gflop(self, direction: str) -> float | None:
        """Returns the products with D, or None."""
        times = {"to_edges": 1, "to_nodes": 1, "to_edges_backward": 3, "to_edges_backward_all": 4}
        times["to_nodes_backward"] = 2
        per_edge = 2 * sum(mul * ir.dim**2 for mul, ir in irreps_of(IRREPS))
        return times[direction] * per_edge * len(self.rows) / 1e9 if direction in times else None

    def gbytes(self, direction: str) -> float | None:
        """Returns the bytes of inputs and outputs of the forward directions, or None."""
        arrays = {
            "wigner": (self.vector, self.wigner),
            "to_edges": (self.source, self.target, self.src, self.dst, self.wigner, self.rows),
            "to_nodes": (self.rows, self.dst, self.wigner, self.target),
        }
        return sum(a.nbytes for a in arrays[direction]) / 1e9 if direction in arrays else None


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes the features and the graph."""
    n_edges, n_nodes = CASES[case]
    generator = torch.Generator().manual_seed(17)
    sizes = [(n_edges, 3), (n_nodes, 392), (n_nodes, 392), (n_edges, 392)]
    floating = [torch.randn(*size, generator=generator, dtype=torch.float64).to(device, dtype) for size in sizes]
    src, dst = (torch.randint(n_nodes, (n_edges,), generator=generator).to(device) for _ in range(2))
    return Problem(*floating, src, dst.sort().values, reference.edge_wigner(floating[0], 4))


def kernel(problem: Problem) -> Runs:
    """The ops."""
    p = problem
    return _runs(
        p,
        lambda: edge_wigner(p.vector, 4),
        lambda source, target, wigner: rotate_to_edges(source, wigner, IRREPS, p.src, target, p.dst, node_rows=True),
        lambda rows: rotate_to_nodes(rows, p.wigner, IRREPS, p.dst, len(p.target), node_rows=True),
    )


def plain(problem: Problem) -> Runs:
    """Their references, in torch."""
    p = problem
    return _runs(
        p,
        lambda: reference.edge_wigner(p.vector, 4),
        lambda source, target, wigner: reference.rotate_to_edges(source, target, wigner, p.src, p.dst, IRREPS, True),
        lambda rows: reference.rotate_to_nodes(rows, p.wigner, p.dst, len(p.target), IRREPS, True),
    )


IMPLEMENTATIONS = {"kernel": kernel, "reference": plain}


def _runs(
    p: Problem,
    wigner: Callable[[], torch.Tensor],
    to_edges: Callable[..., torch.Tensor],
    to_nodes: Callable[..., torch.Tensor],
) -> Runs:
    def gradients(function: Callable[..., torch.Tensor], weight: torch.Tensor, n: int, *given: torch.Tensor) -> Tensors:
        leaves = [t.detach().requires_grad_(i < n) for i, t in enumerate(given)]
        result = torch.autograd.grad(function(*leaves), leaves[:n], weight)
        return {f"grad {i}": grad for i, grad in enumerate(result)}

    nodes = (p.source, p.target, p.wigner)
    return {
        "wigner": lambda: {"wigner": wigner()},
        "to_edges": lambda: {"rows": to_edges(*nodes)},
        "to_nodes": lambda: {"nodes": to_nodes(p.rows)},
        "to_edges_backward": lambda: gradients(to_edges, p.rows, 2, *nodes),
        "to_edges_backward_all": lambda: gradients(to_edges, p.rows, 3, *nodes),
        "to_nodes_backward": lambda: gradients(to_nodes, p.target, 1, p.rows),
    }
