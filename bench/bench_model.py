"""The whole network on real input: irreps of H⁽⁰⁾ in, irreps of ΔH out.

Directions:

- `forward`: inference, no gradients recorded; the result is ΔH [e, d]. `published` computes the trace head too, as the
  published forward pass does; ours does not, because inference reads ΔH alone.
- `train`: forward pass, objective mean|ΔH| + mean|trace head|, backward pass to every weight; the result is their
  gradients. The objective stands in for the published loss (L1 with a trace term), which costs little beside the
  network; it reaches all weights.

`gflop_per_s` counts 28 MFLOP per edge for the ensemble of four (7 per network) forward: the arithmetic that is left
when consecutive linear maps are folded and the edge's own frame is used, 1.1 million multiply-adds per edge and layer,
the last layer on the edges in range alone; three times that for `train`. It counts work done for the user, not
operations executed, which are many times more in `published` and `reference`. There is no such count for `tiny`, and
none of bytes.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from bench.cases import MODEL, ModelCase
from bench.published import PublishedEnsemble
from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.data import sample
from nextham.io.csr import read_blocks
from nextham.io.stru import read_stru
from nextham.model.config import NextHAMConfig
from nextham.model.ensemble import Ensemble
from nextham.model.published_names import published_tensors

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "add_arguments", "problem"]

CASES = MODEL
DIRECTIONS = ("forward", "train")
MFLOP_PER_EDGE_AND_NETWORK = 7.0
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "abacus"

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """The input, and the weights that every implementation gets.

    Args:
        config: the configuration, with the ranges of the networks that run.
        h0: irreps of H⁽⁰⁾ [e, d], eV.
        vector: [e, 3], Å.
        src: [e].
        dst: [e].
        weights: `network:name` → published parameter.
        published_sizes: whether the sizes are those that the flop count is made for.
    """

    config: NextHAMConfig
    h0: torch.Tensor
    vector: torch.Tensor
    src: torch.Tensor
    dst: torch.Tensor
    weights: Tensors
    published_sizes: bool

    def gflop(self, direction: str) -> float | None:
        """Returns the arithmetic of one run (see the module's page), or None."""
        times = {"forward": 1, "train": 3}[direction]
        per_edge = times * len(self.config.ranges) * MFLOP_PER_EDGE_AND_NETWORK / 1000
        return per_edge * len(self.h0) if self.published_sizes else None

    def gbytes(self, direction: str) -> None:
        """Returns None: bytes are not counted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("--networks", type=int, default=1, choices=(1, 4), help="one network (2 to 4 Å) or all four")


def label(case: str, arguments: argparse.Namespace) -> str:
    """Returns what a line calls the case: the number of networks belongs to it."""
    return case if arguments.networks == 1 else f"{case}/{arguments.networks}-networks"


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Reads H⁽⁰⁾, and makes the weights.

    Raises:
        ValueError: the sample of the case is not there.
    """
    size = CASES[case]
    config = size.config if arguments.networks == 4 else dataclasses.replace(size.config, ranges=((2.0, 4.0),))
    h0 = _hamiltonian(case, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(17)
        ensemble = Ensemble(config)
        weights = {name: _generic(value).to(device, dtype) for name, value in published_tensors(ensemble).items()}
    padded = torch.as_tensor(h0.padded(config.shells))
    src, dst = (torch.as_tensor(index, device=device) for index in (h0.graph.src, h0.graph.dst))
    return Problem(
        config,
        ensemble.irreps_of_blocks(padded).to(device, dtype),
        torch.as_tensor(h0.graph.vector()).to(device, dtype),
        src,
        dst,
        weights,
        size.config == NextHAMConfig(),
    )


def _hamiltonian(case: str, size: ModelCase) -> Blocks:
    """H⁽⁰⁾ of a case."""
    folder = BESIDE / size.sample if size.sample != "Si-1" else sample(size.sample)
    if not folder.is_dir():
        raise ValueError(f"case {case} reads the sample {size.sample}, which is not bundled and not in {BESIDE}")
    structure = read_stru(folder / "STRU").structure
    h0 = read_blocks(folder / "hrs0_nao.csr.xz", structure, Basis.published(), unit="Ry")
    return h0.within(0.0, size.cutoff).supercell(*size.supercell)


def _generic(value: torch.Tensor) -> torch.Tensor:
    """Weights as after training: norms and biases that start as all equal get a spread of 0.1."""
    equal = bool((value == value.flatten()[0]).all())
    return value + 0.1 * torch.randn(value.shape) if equal else value.clone()


def ensemble_of(problem: Problem) -> Ensemble:
    """Returns `nextham.model.Ensemble` with the weights of the problem."""
    ensemble = Ensemble(problem.config).to(problem.h0.device, problem.h0.dtype)
    for name, parameter in published_tensors(ensemble).items():
        parameter.copy_(problem.weights[name])
    return ensemble


def ours(problem: Problem, engine: str) -> Runs:
    """`nextham.model.Ensemble` with one of its engines; its ops run as `nextham_kernels` binds them."""
    ensemble = ensemble_of(problem)
    ensemble.engine = engine

    def forward() -> Tensors:
        with torch.no_grad():
            return {"irreps": ensemble(problem.h0, problem.src, problem.dst, problem.vector, with_trace=False).irreps}

    def train() -> Tensors:
        ensemble.zero_grad()
        irreps, trace = ensemble(problem.h0, problem.src, problem.dst, problem.vector)
        _objective(irreps, trace).backward()
        return published_tensors(ensemble, gradients=True)

    return {"forward": forward, "train": train}


def edge_frame(problem: Problem) -> Runs:
    """The network in the frame of each edge."""
    return ours(problem, "edge_frame")


def reference(problem: Problem) -> Runs:
    """The plain form of the network."""
    return ours(problem, "reference")


def published(problem: Problem, mode: str | None = None) -> Runs:
    """The published formulation in e3nn modules."""
    ensemble = PublishedEnsemble(problem.config, mode).to(problem.h0.device, problem.h0.dtype)
    ensemble.load_published(problem.weights)
    own = torch.nonzero((problem.src == problem.dst) & (problem.vector == 0).all(1))[:, 0]
    onsite = own[problem.src[own].argsort()]
    inputs = (problem.h0, problem.vector, problem.src, problem.dst, onsite)

    def forward() -> Tensors:
        with torch.no_grad():
            return {"irreps": ensemble(*inputs)[0]}

    def train() -> Tensors:
        ensemble.zero_grad()
        _objective(*ensemble(*inputs)).backward()
        return {name: p.grad for name, p in ensemble.published_parameters().items()}

    return {"forward": forward, "train": train}


def published_torchscript(problem: Problem) -> Runs:
    """The same with e3nn's generated code compiled by TorchScript, e3nn's default before torch 2.10."""
    return published(problem, mode="script")


def _objective(irreps: torch.Tensor, trace: torch.Tensor) -> torch.Tensor:
    return irreps.abs().mean() + trace.abs().mean()


IMPLEMENTATIONS = {
    "edge_frame": edge_frame,
    "reference": reference,
    "published": published,
    "published_torchscript": published_torchscript,
}
"""The first is ours, unless `--impl` says otherwise."""
