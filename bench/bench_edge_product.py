"""Harmonics of edges, tensor product, linear map: `nextham_kernels.nn.EdgeTensorProduct` against e3nn's three modules.

Each path has weights of its own for each edge. `e3nn` is `o3.SphericalHarmonics`, `o3.TensorProduct` ('uvu') and
`o3.Linear`, `accelerated` the same after `nextham_kernels.accelerate`. Directions: forward; both (forward and the
gradients of features, edge vectors, radial weights and the linear map). Neither arithmetic nor bytes are counted.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from e3nn import o3

import nextham_kernels
from bench.cases import EDGE_PRODUCT, EdgeProductCase
from nextham_kernels import nn
from nextham_kernels.ops.depthwise_tensor_product import depthwise_irreps

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "add_arguments", "label", "problem"]

CASES = EDGE_PRODUCT
DIRECTIONS = ("forward", "both")

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """Features, edge vectors, radial weights, the map's weights, and the cotangent of the result."""

    case: EdgeProductCase
    x: torch.Tensor
    vector: torch.Tensor
    radial: torch.Tensor
    weight: torch.Tensor
    grad: torch.Tensor

    def gflop(self, direction: str) -> None:
        """Returns None."""

    def gbytes(self, direction: str) -> None:
        """Returns None."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the number of edges."""
    parser.add_argument("--rows", type=int, default=1000, help="edges (default 1000)")


def label(case: str, arguments: argparse.Namespace) -> str:
    """Names the case with its edges."""
    return f"{case}-{arguments.rows}"


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes random inputs."""
    given, n, generator = CASES[case], arguments.rows, torch.Generator().manual_seed(17)
    module = nn.EdgeTensorProduct(given.irreps_in, given.l_max, given.irreps_out)
    shapes = [(n, module.irreps_in.dim), (n, 3), (n, module.radial_numel), module.weight.shape]
    shapes.append((n, module.irreps_out.dim))
    return Problem(given, *(torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes))


def kernel(problem: Problem) -> Runs:
    """The module, with the weights as an argument."""
    case = problem.case
    module = nn.EdgeTensorProduct(case.irreps_in, case.l_max, case.irreps_out).to(problem.x)
    call = torch.func.functional_call
    return _runs(problem, lambda x, vector, radial, weight: call(module, {"weight": weight}, (x, vector, radial)))


def e3nn_modules(problem: Problem, accelerated: bool = False) -> Runs:
    """The three modules."""
    first, case = o3.Irreps(problem.case.irreps_in), problem.case
    second = o3.Irreps.spherical_harmonics(case.l_max)
    keep = {ir for _, ir in first}
    pairs = [(i, j, ir) for i, (_, a) in enumerate(first) for j, (_, b) in enumerate(second) for ir in a * b]
    weighted = [p for p in pairs if p[2] in keep]
    order = sorted(range(len(weighted)), key=lambda p: (weighted[p][2].l, -weighted[p][2].p))
    middle = o3.Irreps([(first[weighted[p][0]].mul, weighted[p][2]) for p in order])
    paths = [(i, j, order.index(p), "uvu", True) for p, (i, j, _) in enumerate(weighted)]
    assert middle.simplify() == depthwise_irreps(str(first), str(second), str(first))[0]
    model = torch.nn.ModuleDict(
        {
            "harmonics": o3.SphericalHarmonics(second, True, "component"),
            "product": o3.TensorProduct(
                first, second, middle, paths, path_normalization="none", shared_weights=False, internal_weights=False
            ),
            "linear": o3.Linear(middle.simplify(), case.irreps_out, internal_weights=False, shared_weights=True),
        }
    ).to(problem.x)
    if accelerated:
        nextham_kernels.accelerate(model)
    # e3nn scales each of its maps; the module's weights carry the whole scale.
    scale = torch.cat(
        [torch.full((p.path_shape[0] * p.path_shape[1],), p.path_weight) for p in model["linear"].instructions]
    )
    scale = scale.to(problem.x)

    def run(x: torch.Tensor, vector: torch.Tensor, radial: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return model["linear"](model["product"](x, model["harmonics"](vector), radial), weight / scale)

    return _runs(problem, run)


IMPLEMENTATIONS = {
    "kernel": kernel,
    "e3nn": e3nn_modules,
    "accelerated": lambda problem: e3nn_modules(problem, accelerated=True),
}


def _runs(problem: Problem, function: Callable[..., torch.Tensor]) -> Runs:
    tensors = (problem.x, problem.vector, problem.radial, problem.weight)
    leaves = [t.clone().requires_grad_() for t in tensors]
    names = ("grad_x", "grad_vector", "grad_radial", "grad_weight")

    def forward() -> Tensors:
        with torch.no_grad():
            return {"out": function(*tensors)}

    def both() -> Tensors:
        out = function(*leaves)
        grads = torch.autograd.grad(out, leaves, problem.grad)
        return {"out": out.detach(), **dict(zip(names, grads, strict=True))}

    return {"forward": forward, "both": both}
