"""Tensor products of this field's models: `nextham_kernels.ops.tensor_product` against e3nn's module.

`e3nn` is the module as e3nn builds it by default (generated code with optimised einsums); `e3nn_torchscript` is the
same code compiled by TorchScript, e3nn's default before torch 2.10. `reference` is the definition in plain torch.
`cuequivariance` is its module, on the CPU with the method that it has for the CPU; where features have both parities
it orders paths in another way, so the results, and with them the run, differ. `openequivariance` has a GPU alone.
Directions: forward; both (forward and the gradients of both operands and of the weights); second (the gradients of
those gradients, what training on forces adds). `gflop_per_s` counts the multiply-adds with the non-zero coefficients
once each, whatever is executed; `gb_per_s` the operands, weights and results. Rows: `--rows`.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass

import e3nn
import numpy as np
import torch
from e3nn import o3

from bench.cases import TENSOR_PRODUCT, ProductCase
from nextham_kernels.clebsch_gordan import irreps_of, wigner_3j
from nextham_kernels.ops.tensor_product import Product, product, reference, tensor_product

__all__ = [
    "CASES",
    "DIRECTIONS",
    "IMPLEMENTATIONS",
    "NotInstalled",
    "Problem",
    "add_arguments",
    "e3nn_product",
    "label",
    "problem",
]

CASES = TENSOR_PRODUCT
DIRECTIONS = ("forward", "both", "second")

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """Inputs of the op, the cotangent of its result, and those of its gradients."""

    case: ProductCase
    product: Product
    x: torch.Tensor
    y: torch.Tensor
    weight: torch.Tensor
    grad: torch.Tensor
    grad2: tuple[torch.Tensor, ...]

    def gflop(self, direction: str) -> float | None:
        """Returns the arithmetic of one run: per path, its maps, the maps applied, and the mix of channels."""
        if direction == "second":
            return None
        per_row = 0
        for path in self.product.paths:
            (u, ir_1), (v, ir_2), (w, ir) = (
                irreps_of(i)[n]
                for i, n in (
                    (self.product.irreps_1, path.i_1),
                    (self.product.irreps_2, path.i_2),
                    (self.product.irreps_out, path.i_out),
                )
            )
            c = wigner_3j(ir_1.l, ir_2.l, ir.l).numpy()
            maps = np.abs(c).max(1) > 1e-9
            per_row += v * (np.abs(c) > 1e-9).sum() + u * v * maps.sum()
            per_row += u * v * ir.dim * (w if path.mode == "uvw" else 1)
        times = {"forward": 1, "both": 3}[direction]
        return float(2 * times * per_row * len(self.x) / 1e9)

    def gbytes(self, direction: str) -> float | None:
        """Returns the size of what one run reads and writes."""
        if direction == "second":
            return None
        inputs = self.x.numel() + self.y.numel() + self.weight.numel()
        numbers = inputs + self.grad.numel() if direction == "forward" else 3 * inputs + 2 * self.grad.numel()
        return numbers * self.x.element_size() / 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the number of rows."""
    parser.add_argument("--rows", type=int, default=1000, help="rows (edges) of the operands (default 1000)")


def label(case: str, arguments: argparse.Namespace) -> str:
    """Names the case with its rows."""
    return f"{case}-{arguments.rows}"


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes random inputs."""
    given, n, generator = CASES[case], arguments.rows, torch.Generator().manual_seed(17)
    out, instructions = given.instructions()
    paths = product(given.irreps_1, given.irreps_2, out, instructions)
    weights = (paths.n_weights,) if given.shared else (n, paths.n_weights)
    shapes = [(n, paths.irreps_1.dim), (n, paths.irreps_2.dim), weights]
    shapes = [*shapes, (n, paths.irreps_out.dim), *(shapes if arguments.direction == "second" else ())]
    x, y, weight, grad, *grad2 = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return Problem(given, paths, x, y, weight, grad, tuple(grad2))


def kernel(problem: Problem) -> Runs:
    """The op."""
    return _runs(problem, lambda x, y, weight: tensor_product(x, y, weight, problem.product))


def plain(problem: Problem) -> Runs:
    """Its reference."""
    return _runs(problem, lambda x, y, weight: reference.tensor_product(x, y, weight, problem.product.word))


def e3nn_module(problem: Problem) -> Runs:
    """e3nn's module with e3nn's settings."""
    return _runs(problem, e3nn_product(problem))


def e3nn_product(problem: Problem) -> o3.TensorProduct:
    """Returns e3nn's module of a problem."""
    return _module(problem.case, e3nn.get_optimization_defaults()["jit_mode"]).to(problem.x)


@functools.lru_cache(maxsize=1)
def _module(case: ProductCase, _: str) -> o3.TensorProduct:
    out, instructions = case.instructions()
    given = (case.irreps_1, case.irreps_2, out, instructions)
    return o3.TensorProduct(*given, shared_weights=case.shared, internal_weights=False)


def e3nn_torchscript(problem: Problem) -> Runs:
    """e3nn's module compiled by TorchScript."""
    mode = e3nn.get_optimization_defaults()["jit_mode"]
    e3nn.set_optimization_defaults(jit_mode="script")
    try:
        return e3nn_module(problem)
    finally:
        e3nn.set_optimization_defaults(jit_mode=mode)


class NotInstalled(ValueError):
    """A library to compare with is missing, or does not run on this device."""


def cuequivariance(problem: Problem) -> Runs:
    """CuEquivariance's module of the same product, on a GPU by the kernel that it chooses.

    Raises:
        NotInstalled: it is missing.
    """
    try:
        import cuequivariance as cue
        import cuequivariance_torch as cuet
    except ImportError as error:
        raise NotInstalled(f"cuequivariance: install cuequivariance-torch to compare with it: {error}") from error
    case = problem.case
    first, second, out = (cue.Irreps("O3", irreps) for irreps in (case.irreps_1, case.irreps_2, case.irreps_out))
    options = {"layout": cue.mul_ir, "shared_weights": case.shared, "internal_weights": False}
    options |= {} if problem.x.is_cuda else {"method": "naive"}
    if case.mode == "uvu":
        module = cuet.ChannelWiseTensorProduct(first, second, [ir for _, ir in out], **options)
    else:
        module = cuet.FullyConnectedTensorProduct(first, second, out, **options)
    module = module.to(problem.x.device, problem.x.dtype)
    return _runs(problem, lambda x, y, weight: module(x, y, weight if weight.ndim == 2 else weight[None]))


def openequivariance(problem: Problem) -> Runs:
    """OpenEquivariance's kernel of the same product.

    Raises:
        NotInstalled: it is missing, or there is no GPU.
    """
    if not problem.x.is_cuda:
        raise NotInstalled("openequivariance: its kernels need a GPU")
    try:
        import openequivariance as oeq
    except ImportError as error:
        raise NotInstalled(f"openequivariance: install it to compare with it: {error}") from error
    case = problem.case
    out, instructions = case.instructions()
    number = np.float32 if problem.x.dtype == torch.float32 else np.float64
    given = (o3.Irreps(case.irreps_1), o3.Irreps(case.irreps_2), o3.Irreps(out), instructions)
    options = {"shared_weights": case.shared, "internal_weights": False}
    description = oeq.TPProblem(*given, **options, irrep_dtype=number, weight_dtype=number)
    module = oeq.TensorProduct(description, torch_op=True)
    return _runs(problem, lambda x, y, weight: module(x, y, weight))


IMPLEMENTATIONS = {
    "kernel": kernel,
    "e3nn": e3nn_module,
    "e3nn_torchscript": e3nn_torchscript,
    "cuequivariance": cuequivariance,
    "openequivariance": openequivariance,
    "reference": plain,
}


def _runs(problem: Problem, function: Callable[..., torch.Tensor]) -> Runs:
    tensors = (problem.x, problem.y, problem.weight)
    leaves = [t.clone().requires_grad_() for t in tensors]
    names = ("grad_x", "grad_y", "grad_weight")

    def forward() -> Tensors:
        with torch.no_grad():
            return {"out": function(*tensors)}

    def both() -> Tensors:
        out = function(*leaves)
        grads = torch.autograd.grad(out, leaves, problem.grad)
        return {"out": out.detach(), **dict(zip(names, grads, strict=True))}

    def second() -> Tensors:
        grads = torch.autograd.grad(function(*leaves), leaves, problem.grad, create_graph=True)
        found = torch.autograd.grad(grads, leaves, problem.grad2)
        return dict(zip(names, found, strict=True))

    return {"forward": forward, "both": both, "second": second}
