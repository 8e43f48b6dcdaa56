"""Memory for time: a part of a computation whose intermediate results are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

__all__ = ["recomputed"]

T = TypeVar("T")


def recomputed(f: Callable[..., T], *args: object) -> T:
    """Returns f(*args), of which nothing but the arguments is kept for the backward pass.

    The same numbers come out of it, with and without. Where no gradient is recorded it is a plain call.

    Args:
        f: a function that draws no random numbers.
        args: tensors, or anything.
    """
    if not torch.is_grad_enabled():
        return f(*args)
    return checkpoint(f, *args, use_reentrant=False, preserve_rng_state=False)
