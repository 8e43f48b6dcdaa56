"""One step of the trainer, and its parts: where the time of training goes.

The dataset is the bundled silicon, repeated; the recipe is the published one but for the networks: `small` are those of
the bundled model, two structures in a step; `published` is one network of the published size (2 to 4 Å), one structure.
Eigenvectors are computed at a fresh k-point in every step.

Directions: `step` is all of it. Its parts: `eigenvectors` (the label at its k-point), `forward` (the networks, with a
graph for the gradient), `loss` (losses and their gradient with respect to ΔH and the trace head), `backward` (from
there to the weights), `optimizer` (Adam and the running mean).

`bfloat16` is the same with torch's own products in bfloat16 where the processor has them (`--against bfloat16
--tolerance 1`, directions `forward` and `backward`): how much faster, and `max_rel_diff` how wrong, that would be.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nextham.basis import Basis
from nextham.data import bundled_model, sample
from nextham.dataset import check_sample, join, write_part
from nextham.io.csr import read_blocks
from nextham.io.stru import read_stru
from nextham.losses import total_loss
from nextham.model import load
from nextham.train import Trainer
from nextham.train.settings import settings_from_dict
from nextham.train.step import predict_batch

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

CASES = {"small": 2, "published": 1}
"""Structures in a step."""
DIRECTIONS = ("step", "eigenvectors", "forward", "loss", "backward", "optimizer")

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """A trainer before its first step.

    Args:
        trainer: with its dataset of as many samples as a step takes.
        names: those samples.
        edges: of a step, below the networks' cutoff.
        folder: holds the dataset.
    """

    trainer: Trainer
    names: tuple[str, ...]
    edges: int
    folder: tempfile.TemporaryDirectory

    def gflop(self, direction: str) -> float | None:
        """Returns the arithmetic of a step of a published network, 3 · 7 MFLOP per edge (see `bench_model`)."""
        return 0.021 * self.edges if len(self.names) == 1 and direction == "step" else None

    def gbytes(self, direction: str) -> None:
        """Returns None: not counted."""


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Writes the dataset and makes the trainer."""
    folder = tempfile.TemporaryDirectory()
    structures = CASES[case]
    names = tuple(f"Si-{i}" for i in range(structures))
    data = _dataset(Path(folder.name), names)
    small = load(bundled_model()).config.to_dict()
    settings = settings_from_dict(
        {
            "data": str(data),
            "output": str(Path(folder.name) / "run"),
            "model": small if case == "small" else {"ranges": ((2.0, 4.0),)},
            "split": {"validation": 0.0, "test": 0.0},
            "optimizer": {"structures": structures, "ema": 0.99},
            "run": {"precision": "double" if dtype == torch.float64 else "single", "device": str(device)},
        }
    )
    trainer = Trainer(settings)
    edges = sum(len(trainer.store[name].src) for name in names)
    return Problem(trainer, names, edges, folder)


def _dataset(folder: Path, names: tuple[str, ...]) -> Path:
    source = sample("Si-1")
    structure = read_stru(source / "STRU").structure
    files = {"H0": "hrs0", "H": "hrs1", "S": "srs1"}
    matrices = {
        name: read_blocks(source / f"{file}_nao.csr.xz", structure, Basis.published(structure.numbers))
        for name, file in files.items()
    }
    matrices["S"] = matrices["S"].spinless()
    facts = {**check_sample(matrices, True, 6.93), "source": "bundled"}
    for name in names:
        write_part(folder, name, matrices, facts, None)
    join(folder / "data.h5", [folder / f"{name}.h5" for name in names], {})
    return folder / "data.h5"


def trainer(problem: Problem) -> Runs:
    """The trainer as it is."""
    return _runs(problem, "highest")


def bfloat16(problem: Problem) -> Runs:
    """Products of torch in bfloat16; our kernels compute as ever."""
    return _runs(problem, "medium")


def _runs(problem: Problem, precision: str) -> Runs:
    torch.set_float32_matmul_precision(precision)
    t = problem.trainer
    settings, samples = t.settings, [t.store[name] for name in problem.names]

    def labels() -> list:
        return [s.target_at(settings.kpoints, np.random.default_rng(i)) for i, s in enumerate(samples)]

    targets = labels()
    predictions = predict_batch(t.ensemble, t.readout, samples)
    flat = [x for pair in predictions for x in pair]
    leaves = [x.detach().requires_grad_() for x in flat]
    above: list[torch.Tensor] = []

    def step() -> Tensors:
        return {"total": torch.tensor(t._step(problem.names, 0.0)["total"])}

    def eigenvectors() -> Tensors:
        return {"kpoints": torch.stack([target.kpoints for target in labels()])}

    def forward() -> Tensors:
        return {"delta": predict_batch(t.ensemble, t.readout, samples)[0][0].detach()}

    def loss() -> Tensors:
        totals = [
            total_loss(*leaves[2 * i : 2 * i + 2], target, settings.loss).total for i, target in enumerate(targets)
        ]
        above[:] = torch.autograd.grad(torch.stack(totals).mean(), leaves)
        return {"grad_delta": above[0]}

    def backward() -> Tensors:
        if not above:
            loss()
        t.gradient.zero_()
        torch.autograd.backward(flat, above, retain_graph=True)
        return {"gradient": t.gradient.clone()}

    def optimizer() -> Tensors:
        t.optimizer.step()
        torch._foreach_lerp_(t.mean, [p.detach() for p in t.parameters], 0.01)
        return {"weight": t.parameters[0].detach()}

    torch.set_float32_matmul_precision("highest")

    def with_precision(run: Callable[[], Tensors]) -> Callable[[], Tensors]:
        def in_precision() -> Tensors:
            torch.set_float32_matmul_precision(precision)
            try:
                return run()
            finally:
                torch.set_float32_matmul_precision("highest")

        return in_precision

    runs = (step, eigenvectors, forward, loss, backward, optimizer)
    return {direction: with_precision(run) for direction, run in zip(DIRECTIONS, runs, strict=True)}


IMPLEMENTATIONS = {"trainer": trainer, "bfloat16": bfloat16}
