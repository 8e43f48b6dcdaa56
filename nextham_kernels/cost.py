"""What a kernel costs: the least it must move and compute, from which `python -m bench --static` predicts its time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

__all__ = ["Cost", "nbytes"]


class Cost(NamedTuple):
    """Counts of one call.

    Args:
        bytes: moved through device memory: each input that is read, and each output, once; what a kernel must read
            again (a row for each edge that gathers it) as often.
        flops: plain arithmetic, two for a multiply-add, one for an exponential or a division.
        matrix_flops: on tensor cores at the rate of tf32; a product in three pieces counts three times, one of bf16
            half.
    """

    bytes: int
    flops: int = 0
    matrix_flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Returns both together."""
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


def nbytes(*tensors: torch.Tensor | Iterable[torch.Tensor]) -> int:
    """Returns the bytes of tensors, also of those on the device `meta`."""
    return sum(t.numel() * t.element_size() for t in tensors)
