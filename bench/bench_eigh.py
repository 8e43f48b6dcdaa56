"""Generalized eigenproblems at many k-points: `eigh` with random H and S, condition number of S some 40.

`kernel` is the op; `scipy` a loop of `scipy.linalg.eigh(h, s)`, whose BLAS takes its number of threads from the
environment (set OMP_NUM_THREADS to what --threads says); `batched` is the op's reference, torch.linalg on the whole
batch. `vectors` asks for everything, `values` for levels alone, `window` for the lowest tenth with vectors. What is
compared is E and |C|², which phases do not change. `gflop_per_s` counts 8 · (4/3 + 9) N³ with vectors and
8 · (4/3 + 7/3) N³ without (reduction of the pencil, tridiagonal form, divide and conquer, back-transformations).
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import scipy.linalg
import torch

from nextham_kernels.ops.eigh import eigh, reference

__all__ = ["CASES", "DIRECTIONS", "IMPLEMENTATIONS", "Problem", "problem"]

CASES = {"n52-k64": (64, 52), "n200-k64": (64, 200), "n500-k8": (8, 500), "n500-k64": (64, 500)}
DIRECTIONS = ("vectors", "values", "window")

Tensors = dict[str, torch.Tensor]
Runs = dict[str, Callable[[], Tensors]]


@dataclass(frozen=True)
class Problem:
    """H and S [q, N, N]."""

    h: torch.Tensor
    s: torch.Tensor

    def gflop(self, direction: str) -> float:
        """Returns the arithmetic of one run, the usual count of LAPACK's drivers."""
        times = 4 / 3 + (7 / 3 if direction == "values" else 9)
        return 8 * times * len(self.h) * self.h.shape[-1] ** 3 / 1e9

    def gbytes(self, direction: str) -> None:
        """Nothing: arithmetic binds."""
        return None

    @property
    def window(self) -> tuple[int, int]:
        """The lowest tenth of the levels."""
        return 0, max(1, self.h.shape[-1] // 10)


def problem(case: str, dtype: torch.dtype, device: torch.device, arguments: argparse.Namespace) -> Problem:
    """Draws H and S."""
    q, n = CASES[case]
    kind, generator = (
        (torch.complex64 if dtype == torch.float32 else torch.complex128),
        torch.Generator().manual_seed(1),
    )
    a, b = (torch.randn(q, n, n, generator=generator, dtype=torch.complex128) for _ in range(2))
    s = b @ b.mH / n + 0.1 * torch.eye(n)
    return Problem(((a + a.mH) / 2).to(device, kind), s.to(device, kind))


def kernel(problem: Problem) -> Runs:
    """The op."""

    def run(vectors: bool, window: tuple[int, int] | None) -> Tensors:
        found = eigh(problem.h, problem.s, vectors=vectors, window=window)
        return _tensors(found.values, found.vectors)

    return _runs(problem, run)


def scipy_loop(problem: Problem) -> Runs:
    """scipy, one k-point after the other."""

    def run(vectors: bool, window: tuple[int, int] | None) -> Tensors:
        subset = None if window is None else (window[0], window[1] - 1)
        values, c = [], []
        for h, s in zip(problem.h.numpy(), problem.s.numpy(), strict=True):
            found = scipy.linalg.eigh(h, s, eigvals_only=not vectors, subset_by_index=subset)
            values.append(torch.from_numpy(found[0] if vectors else found))
            if vectors:
                c.append(torch.from_numpy(found[1]))
        return _tensors(torch.stack(values), torch.stack(c) if vectors else None)

    return _runs(problem, run)


def batched(problem: Problem) -> Runs:
    """The reference."""

    def run(vectors: bool, window: tuple[int, int] | None) -> Tensors:
        (found,) = reference.solve([(problem.h, problem.s)], vectors, window, None)
        return _tensors(found.values, found.vectors)

    return _runs(problem, run)


IMPLEMENTATIONS = {"kernel": kernel, "scipy": scipy_loop, "batched": batched}


def _tensors(values: torch.Tensor, vectors: torch.Tensor | None) -> Tensors:
    return {"values": values} if vectors is None else {"values": values, "squares": vectors.abs().square()}


def _runs(problem: Problem, run: Callable[[bool, tuple[int, int] | None], Tensors]) -> Runs:
    return {
        "vectors": lambda: run(True, None),
        "values": lambda: run(False, None),
        "window": lambda: run(True, problem.window),
    }
