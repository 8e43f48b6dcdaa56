"""Real spherical harmonics: calls of the C++ kernel."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from nextham_kernels.loading import kernels
from nextham_kernels.result_memory import empty


@functools.cache
def norms(l_max: int, dtype: torch.dtype) -> np.ndarray:
    """N_lm [l, m] = (2m − 1)!! √((2l + 1)(2 − δ_m0)(l − m)!/(l + m)!)."""
    table = np.zeros((l_max + 1, l_max + 1), dtype=str(dtype).removeprefix("torch."))
    for l in range(l_max + 1):
        for m in range(l + 1):
            ratio = math.factorial(l - m) / math.factorial(l + m)
            odd = math.prod(range(2 * m - 1, 0, -2))
            table[l, m] = odd * math.sqrt((2 * l + 1) * (2 if m else 1) * ratio)
    return table


def forward(vector: torch.Tensor, l_max: int) -> torch.Tensor:
    """Runs `spherical_harmonics_forward`."""
    y = empty(vector, (len(vector), (l_max + 1) ** 2))
    kernels().spherical_harmonics_forward(vector.numpy(), norms(l_max, vector.dtype), y.numpy())
    return y
