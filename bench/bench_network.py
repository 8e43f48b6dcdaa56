"""A whole e3nn network, a NequIP-like energy model with forces, before and after `nextham_kernels.accelerate`.

Each of its layers: linear map of the nodes; 'uvu' product of the source node of each edge with the edge's harmonics,
its weights from a radial network; sum over the edges of a node; linear map; gate; a self-connection added. Two
identical models with the same weights: `kernel` accelerated, `e3nn` as e3nn builds it, `e3nn_torchscript` with its
generated code compiled by TorchScript. Directions: forces (energy and its gradient by the positions), train (loss of
energy and forces, and its gradient by every weight, so second derivatives).
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass

import e3nn
import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet, Gate

import nextham_kernels
from bench.cases import NETWORK, NetworkCase

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "EnergyModel", "Problem", "problem"]

CASES = NETWORK
DIRECTIONS = ("forces", "train")

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


class Layer(torch.nn.Module):
    """One message-passing step.

    Args:
        irreps_in: of the nodes before it.
        irreps_hidden: of the nodes after it.
        harmonics: of the edges.
        n_radial: radial numbers of each edge.
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_hidden: o3.Irreps, harmonics: o3.Irreps, n_radial: int) -> None:
        super().__init__()
        scalars = o3.Irreps([block for block in irreps_hidden if block.ir.l == 0])
        gated = o3.Irreps([block for block in irreps_hidden if block.ir.l > 0])
        even = {1: torch.nn.functional.silu, -1: torch.tanh}
        gates = o3.Irreps([(gated.num_irreps, "0e")] if gated.num_irreps else [])
        self.gate = Gate(scalars, [even[ir.p] for _, ir in scalars], gates, [torch.sigmoid] * len(gates), gated)
        keep = {ir for _, ir in self.gate.irreps_in}
        found = sorted(
            (ir, i, j)
            for i, (_, ir_1) in enumerate(irreps_in)
            for j, (_, ir_2) in enumerate(harmonics)
            for ir in ir_1 * ir_2
            if ir in keep
        )
        middle = o3.Irreps([(irreps_in[i].mul, ir) for ir, i, _ in found])
        paths = [(i, j, k, "uvu", True) for k, (_, i, j) in enumerate(found)]
        self.before = o3.Linear(irreps_in, irreps_in)
        self.product = o3.TensorProduct(
            irreps_in, harmonics, middle, paths, shared_weights=False, internal_weights=False
        )
        self.radial = FullyConnectedNet([n_radial, 64, 64, self.product.weight_numel], torch.nn.functional.silu)
        self.after = o3.Linear(middle.simplify(), self.gate.irreps_in)
        self.connection = o3.Linear(irreps_in, self.gate.irreps_in)

    def forward(
        self, nodes: torch.Tensor, harmonics: torch.Tensor, radial: torch.Tensor, source: torch.Tensor, to: torch.Tensor
    ) -> torch.Tensor:
        """Returns the nodes after the step."""
        messages = self.product(self.before(nodes)[source], harmonics, self.radial(radial))
        total = messages.new_zeros(len(nodes), messages.shape[1]).index_add(0, to, messages)
        return self.gate(self.after(total / 8) + self.connection(nodes))


class EnergyModel(torch.nn.Module):
    """Energy of a molecule.

    Args:
        case: sizes.
    """

    def __init__(self, case: NetworkCase) -> None:
        super().__init__()
        torch.manual_seed(5)
        hidden, harmonics = o3.Irreps(case.hidden), o3.Irreps.spherical_harmonics(case.l_max)
        self.cutoff, self.n_radial = case.cutoff, 8
        self.harmonics = o3.SphericalHarmonics(harmonics, True, "component")
        self.embedding = torch.nn.Embedding(4, hidden[0].mul)
        self.layers = torch.nn.ModuleList()
        irreps = o3.Irreps([(hidden[0].mul, "0e")])
        for _ in range(case.n_layers):
            self.layers.append(Layer(irreps, hidden, harmonics, self.n_radial))
            irreps = self.layers[-1].gate.irreps_out
        self.readout = o3.Linear(irreps, "1x0e")

    def forward(self, positions: torch.Tensor, kinds: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Returns the energy of positions [n, 3] with edges [2, e], source and target."""
        source, to = edges
        vector = positions[to] - positions[source]
        r = vector.norm(dim=1, keepdim=True)
        n = torch.arange(1, self.n_radial + 1, device=r.device)
        radial = torch.sin(n * torch.pi * r / self.cutoff) / r * (1 - (r / self.cutoff) ** 2) ** 2
        nodes, harmonics = self.embedding(kinds), self.harmonics(vector)
        for layer in self.layers:
            nodes = layer(nodes, harmonics, radial, source, to)
        return self.readout(nodes).sum()


@dataclass(frozen=True)
class Problem:
    """A box of atoms; arithmetic and bytes are not counted."""

    case: NetworkCase
    positions: torch.Tensor
    kinds: torch.Tensor
    edges: torch.Tensor

    def gflop(self, direction: str) -> None:
        """Returns None."""

    def gbytes(self, direction: str) -> None:
        """Returns None."""


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Makes a cubic lattice of atoms of 2.2 Å spacing, displaced at random."""
    given, generator = CASES[case], torch.Generator().manual_seed(17)
    grid = torch.cartesian_prod(*[torch.arange(given.n_atoms, dtype=torch.float64)] * 3) * 2.2
    positions = grid + 0.3 * torch.randn(grid.shape, generator=generator, dtype=torch.float64)
    near = (torch.cdist(positions, positions) < given.cutoff).fill_diagonal_(False)
    kinds = torch.randint(4, (len(grid),), generator=generator)
    return Problem(given, positions.to(device, dtype), kinds.to(device), near.nonzero().T.contiguous().to(device))


def accelerated(problem: Problem) -> Runs:
    """The model on our kernels."""
    model = EnergyModel(problem.case)
    report = nextham_kernels.accelerate(model)
    if report.kept or not report.replaced:
        raise ValueError(f"network: expected every e3nn module to be replaced, got {report}")
    return _runs(problem, model)


def plain(problem: Problem) -> Runs:
    """The model as e3nn builds it."""
    return _runs(problem, EnergyModel(problem.case))


def torchscript(problem: Problem) -> Runs:
    """The model with e3nn's generated code compiled by TorchScript."""
    mode = e3nn.get_optimization_defaults()["jit_mode"]
    e3nn.set_optimization_defaults(jit_mode="script")
    try:
        return plain(problem)
    finally:
        e3nn.set_optimization_defaults(jit_mode=mode)


IMPLEMENTATIONS = {"kernel": accelerated, "e3nn": plain, "e3nn_torchscript": torchscript}


def _runs(problem: Problem, model: torch.nn.Module) -> Runs:
    model = copy.deepcopy(model).to(problem.positions)
    parameters = dict(model.named_parameters())

    def energy_and_forces(create_graph: bool) -> tuple[torch.Tensor, torch.Tensor]:
        positions = problem.positions.clone().requires_grad_()
        energy = model(positions, problem.kinds, problem.edges)
        (gradient,) = torch.autograd.grad(energy, positions, create_graph=create_graph)
        return energy, -gradient

    def forces() -> Tensors:
        energy, found = energy_and_forces(False)
        return {"energy": energy.detach(), "forces": found}

    def train() -> Tensors:
        energy, found = energy_and_forces(True)
        loss = energy.square() / len(found) ** 2 + found.square().mean()
        return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))

    return {"forces": forces, "train": train}
