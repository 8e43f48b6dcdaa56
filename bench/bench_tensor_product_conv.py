"""Gather, tensor product and sum over a graph: `nextham_kernels.ops.tensor_product.conv` against three steps.

The cases are those of `tensor_product`, with `--rows` edges between a twentieth as many nodes. `e3nn` gathers the
nodes, runs e3nn's module and sums with `index_add`; `unfused` does the same with our `tensor_product`. Directions:
forward; both (forward and the gradients of nodes, edges and weights). Neither arithmetic nor bytes are counted.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from e3nn import o3

from bench import bench_tensor_product as products
from bench.bench_tensor_product import CASES, add_arguments, label
from nextham_kernels.ops.tensor_product import tensor_product
from nextham_kernels.ops.tensor_product.conv import edge_orders, tensor_product_conv

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "add_arguments", "label", "problem"]

DIRECTIONS = ("forward", "both")
EDGES_PER_NODE = 20

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """The product's inputs, x being of nodes, and the edges' ends."""

    products: products.Problem
    nodes: torch.Tensor
    rows: torch.Tensor
    cols: torch.Tensor
    grad: torch.Tensor

    def gflop(self, direction: str) -> None:
        """Returns None."""

    def gbytes(self, direction: str) -> None:
        """Returns None."""


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes random inputs."""
    given = products.problem(case, dtype, device, arguments)
    n, e, generator = max(1, len(given.x) // EDGES_PER_NODE), len(given.x), torch.Generator().manual_seed(3)
    rows, cols = (torch.randint(n, (e,), generator=generator).to(device) for _ in range(2))
    return Problem(given, given.x[:n].clone(), rows.sort().values, cols, given.grad[:n].clone())


def kernel(problem: Problem) -> Runs:
    """The op; the edges are sorted once, as the layers of a network share them."""
    orders = edge_orders(problem.rows, problem.cols)
    ends, n, product = (problem.rows, problem.cols), len(problem.nodes), problem.products.product
    return _runs(problem, lambda x, y, weight: tensor_product_conv(x, y, weight, *ends, n, product, orders))


def unfused(problem: Problem) -> Runs:
    """Gather, our product, sum."""
    return _steps(problem, lambda x, y, weight: tensor_product(x, y, weight, problem.products.product))


def e3nn_module(problem: Problem) -> Runs:
    """Gather, e3nn's module, sum."""
    case = problem.products.case
    out, instructions = case.instructions()
    module = o3.TensorProduct(
        case.irreps_1, case.irreps_2, out, instructions, shared_weights=case.shared, internal_weights=False
    )
    return _steps(problem, module.to(problem.nodes))


IMPLEMENTATIONS = {"kernel": kernel, "e3nn": e3nn_module, "unfused": unfused}


def _steps(problem: Problem, product: Callable[..., torch.Tensor]) -> Runs:
    def run(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        messages = product(x[problem.cols], y, weight)
        return messages.new_zeros(len(x), messages.shape[1]).index_add(0, problem.rows, messages)

    return _runs(problem, run)


def _runs(problem: Problem, function: Callable[..., torch.Tensor]) -> Runs:
    tensors = (problem.nodes, problem.products.y, problem.products.weight)
    leaves = [t.clone().requires_grad_() for t in tensors]

    def forward() -> Tensors:
        with torch.no_grad():
            return {"out": function(*tensors)}

    def both() -> Tensors:
        out = function(*leaves)
        grads = torch.autograd.grad(out, leaves, problem.grad)
        return {"out": out.detach(), **dict(zip(("grad_x", "grad_y", "grad_weight"), grads, strict=True))}

    return {"forward": forward, "both": both}
