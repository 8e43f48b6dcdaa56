"""Generalized Hermitian eigenproblems on the CPU: groups of k-points, one thread each."""

from __future__ import annotations

import scipy.linalg
import torch

from nextham_kernels.ops.eigh.reference import Found, Problem, Window, batch
from nextham_kernels.threads import map_serial

# Numbers of the matrices of one group of k-points: large enough that calls cost nothing, small enough for a cache.
_GROUP = 1 << 16


def solve(problems: list[Problem], vectors: bool, window: Window, threshold: float | None) -> list[Found]:
    """Does what `reference.solve` does; the result does not depend on the number of threads beyond rounding."""
    tasks, threads = [], torch.get_num_threads()
    for i, (h, _) in enumerate(problems):
        step = max(1, min(_GROUP // max(1, h.shape[-1] ** 2), -(-len(h) // threads)))
        tasks += [(i, k, min(k + step, len(h))) for k in range(0, max(1, len(h)), step)]
    # The largest matrices first, so that no thread is left with one of them at the end.
    tasks.sort(key=lambda task: -problems[task[0]][0].shape[-1])

    def run(task: tuple[int, int, int]) -> Found:
        i, k, end = task
        h, s = problems[i]
        part = None if s is None else s[k:end]
        return batch(i, k, h[k:end], part, vectors, window, threshold, condition_of)

    done = map_serial(run, tasks)
    result = []
    for i in range(len(problems)):
        parts = [found for _, found in sorted((t[1], n) for n, t in enumerate(tasks) if t[0] == i)]
        result.append(_join([done[n] for n in parts]))
    return result


def condition_of(s: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """LAPACK's estimate of the condition numbers [q] of S = L L† in the 1-norm, from a few products with L⁻¹."""
    norm = torch.linalg.norm(s, ord=1, dim=(1, 2))
    (pocon,) = scipy.linalg.get_lapack_funcs(("pocon",), (lower[:1].numpy(),))
    rcond = [pocon(one.numpy(), float(a), uplo="L")[0] for one, a in zip(lower, norm, strict=True)]
    return 1 / torch.tensor(rcond, dtype=norm.dtype)


def _join(parts: list[Found]) -> Found:
    if len(parts) == 1:
        return parts[0]
    values, vectors, kept, condition = zip(*parts, strict=True)
    c = None if vectors[0] is None else torch.cat(vectors)
    return Found(torch.cat(values), c, torch.cat(kept), torch.cat(condition))
