"""The first product of a layer: `edge_tensor_product` with the irreps of NextHAM.

`gflop_per_s` counts, per edge, the products z = r x and the multiply-adds W z (twice those for the backward pass, and
the derivatives of z); `gb_per_s` the rows that are read and written. `reference` is the same algebra in plain torch,
`unfused` is `linear(depthwise_tensor_product(…))` on e3nn's axis. All edges lie along the pole, where that axis is the
edge frame but for the order of the numbers.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.depthwise_tensor_product import depthwise_irreps, depthwise_tensor_product
from nextham_kernels.ops.edge_tensor_product import edge_tensor_product, edge_tensor_product_sizes, reference
from nextham_kernels.ops.linear import linear
from nextham_kernels.ops.spherical_harmonics import spherical_harmonics

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

HIDDEN = "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"
OUT = "136x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"  # 32 scalars of the attention, 104 of the gate, then its rest
L_MAX = 5
HARMONICS = "+".join(f"1x{l}{'eo'[l % 2]}" for l in range(L_MAX + 1))

# Edges: those of a small cell, of one chunk of the engine, and of many.
CASES = {"edges-198": 198, "edges-512": 512, "edges-5000": 5000}
DIRECTIONS = ("forward", "backward")

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """Inputs of the op, and the gradient of its result; one edge in a hundred is on-site."""

    x: torch.Tensor
    radial: torch.Tensor
    weight: torch.Tensor
    onsite: torch.Tensor
    grad: torch.Tensor

    def gflop(self, direction: str) -> float:
        """Returns the arithmetic of one run."""
        parts = reference.plan(HIDDEN, L_MAX, OUT).parts
        products = sum(part.x.numel() for part in parts)
        multiply_adds = sum(part.weight.numel() * len(part.y) for part in parts)
        per_edge = {"forward": products + 2 * multiply_adds, "backward": 5 * products + 4 * multiply_adds}[direction]
        return per_edge * len(self.x) / 1e9

    def gbytes(self, direction: str) -> float:
        """Returns the size of the rows that one run reads and writes."""
        times = {"forward": 1, "backward": 2}[direction]
        numbers = times * (self.x.shape[1] + self.radial.shape[1]) + self.grad.shape[1]
        return numbers * len(self.x) * self.x.element_size() / 1e9


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes random inputs."""
    n, generator = CASES[case], torch.Generator().manual_seed(17)
    n_radial, n_weights = edge_tensor_product_sizes(HIDDEN, L_MAX, OUT)
    shapes = [(n, irreps_of(HIDDEN).dim), (n, n_radial), (n_weights,), (n, irreps_of(OUT).dim)]
    x, radial, weight, grad = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return Problem(x, radial, weight, torch.arange(n, device=device) % 100 == 50, grad)


def kernel(problem: Problem) -> Runs:
    """The op."""
    return _runs(problem, lambda *tensors: edge_tensor_product(*tensors, problem.onsite, HIDDEN, L_MAX, OUT))


def plain(problem: Problem) -> Runs:
    """Its reference."""
    return _runs(problem, lambda *tensors: reference.edge_tensor_product(*tensors, problem.onsite, HIDDEN, L_MAX, OUT))


def unfused(problem: Problem) -> Runs:
    """The two ops that it replaces."""
    product, _ = depthwise_irreps(HIDDEN, HARMONICS, HIDDEN)
    vector = torch.where(problem.onsite[:, None], 0.0, problem.x.new_tensor([0.0, 0.0, 2.0]))
    harmonics = spherical_harmonics(vector, L_MAX)

    def run(x: torch.Tensor, radial: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        flat = edge_layout(HIDDEN).from_row(x)
        out = depthwise_tensor_product(flat, harmonics, radial, HIDDEN, HARMONICS, HIDDEN)
        return edge_layout(OUT).to_row(linear(out, weight, None, product, OUT))

    return _runs(problem, run)


IMPLEMENTATIONS = {"kernel": kernel, "reference": plain, "unfused": unfused}


def _runs(problem: Problem, function: Callable[..., torch.Tensor]) -> Runs:
    tensors = (problem.x, problem.radial, problem.weight)
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = function(*leaves)

    def forward() -> Tensors:
        with torch.no_grad():
            return {"y": function(*tensors)}

    def backward() -> Tensors:
        grads = torch.autograd.grad(y, leaves, problem.grad, retain_graph=True)
        return dict(zip(("grad_x", "grad_radial", "grad_weight"), grads, strict=True))

    return {"forward": forward, "backward": backward}
