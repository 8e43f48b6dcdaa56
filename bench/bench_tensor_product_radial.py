"""Last map of the radial network, gather, tensor product, sum: `nextham_kernels.ops.tensor_product.radial` in one.

The graphs are those of `tensor_product_conv`, 64 hidden radial features of each edge. `e3nn` multiplies them by the
matrix, gathers, runs e3nn's module and sums; `unfused` does the same with our `tensor_product_conv`. Directions:
forward; both (forward and the gradients of nodes, edges, hidden features and the matrix).
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench import bench_tensor_product as products
from bench import bench_tensor_product_conv as conv
from bench.bench_tensor_product import add_arguments, label
from nextham_kernels.ops.tensor_product.conv import edge_orders, tensor_product_conv
from nextham_kernels.ops.tensor_product.radial import tensor_product_radial

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "add_arguments", "label", "problem"]

CASES = {name: case for name, case in products.CASES.items() if not case.shared}
DIRECTIONS = ("forward", "both")
HIDDEN = 64

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """A graph with its product, and the radial network's last step."""

    graph: conv.Problem
    hidden: torch.Tensor
    matrix: torch.Tensor

    def gflop(self, direction: str) -> None:
        """Returns None."""

    def gbytes(self, direction: str) -> None:
        """Returns None."""


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes random inputs."""
    graph, generator = conv.problem(case, dtype, device, arguments), torch.Generator().manual_seed(5)
    shapes = (len(graph.rows), HIDDEN), (HIDDEN, graph.products.product.n_weights)
    hidden, matrix = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return Problem(graph, hidden, matrix / HIDDEN**0.5)


def kernel(problem: Problem) -> Runs:
    """The op."""
    graph = problem.graph
    given = graph.products.product, graph.rows, graph.cols, len(graph.nodes), edge_orders(graph.rows, graph.cols)
    return _runs(problem, lambda *tensors: tensor_product_radial(*tensors, *given))


def unfused(problem: Problem) -> Runs:
    """The weights of all edges, then our convolution."""
    graph = problem.graph
    given = graph.rows, graph.cols, len(graph.nodes), graph.products.product, edge_orders(graph.rows, graph.cols)
    return _runs(problem, lambda x, y, hidden, matrix: tensor_product_conv(x, y, hidden @ matrix, *given))


def e3nn_module(problem: Problem) -> Runs:
    """The weights of all edges, gather, e3nn's module, sum."""
    graph = problem.graph
    module = products.e3nn_product(graph.products)

    def run(x: torch.Tensor, y: torch.Tensor, hidden: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        messages = module(x[graph.cols], y, hidden @ matrix)
        return messages.new_zeros(len(x), messages.shape[1]).index_add(0, graph.rows, messages)

    return _runs(problem, run)


IMPLEMENTATIONS = {"kernel": kernel, "e3nn": e3nn_module, "unfused": unfused}


def _runs(problem: Problem, function: Callable[..., torch.Tensor]) -> Runs:
    tensors = (problem.graph.nodes, problem.graph.products.y, problem.hidden, problem.matrix)
    leaves = [t.clone().requires_grad_() for t in tensors]
    names = ("grad_x", "grad_y", "grad_hidden", "grad_matrix")

    def forward() -> Tensors:
        with torch.no_grad():
            return {"out": function(*tensors)}

    def both() -> Tensors:
        out = function(*leaves)
        grads = torch.autograd.grad(out, leaves, problem.graph.grad)
        return {"out": out.detach(), **dict(zip(names, grads, strict=True))}

    return {"forward": forward, "both": both}
