"""Memory of large results on the CPU, kept for the next result of the same size.

Linux hands out large blocks page by page, zeroed, at each first touch; that takes longer than a product that is bound
by memory takes to fill them (5 to 15 times here). So results of `SMALLEST` bytes and more lie in blocks of our own, in
huge pages where the system has them. A block whose tensor is gone is kept for the next result, up to a share of
`SHARE` of the machine's memory in all, and is offered to the system (MADV_FREE), which takes it back when memory is
short. Sizes are rounded up to eight steps per power of two, so that a number of edges that changes a little from call
to call finds its block again; what is not touched takes no memory.

The tensors are like any other, except that `resize_` cannot make them larger. Elsewhere than on Linux they are torch's.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["SHARE", "SMALLEST", "empty", "empty_like", "release", "zeros"]

SMALLEST = 4 << 20
"""Bytes from which on a result has a block: smaller ones come from memory that the C library keeps anyway."""

SHARE = 1 / 8
"""Of the machine's memory, what free blocks may hold."""

_STEP = 2 << 20  # a huge page
_lock = threading.RLock()  # a block may be given back while one is taken, by the garbage collector
_free: list[mmap.mmap] = []  # those given back last at the end


def empty(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Returns a tensor that is not initialised, of the dtype of another one; on other devices than the CPU torch's own.

    Example:
        >>> import torch
        >>> empty(torch.zeros(1, dtype=torch.float64), (1000, 1000)).dtype
        torch.float64
    """
    n = math.prod(shape)
    n_bytes = n * like.element_size()
    ours = like.device.type == "cpu" and type(like) in (torch.Tensor, torch.nn.Parameter)  # not a fake one
    if n_bytes < SMALLEST or not ours or not sys.platform.startswith("linux"):
        return like.new_empty(shape)
    size = _rounded(n_bytes)
    block = _take(size)
    if block is None:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if os.path.exists("/sys/kernel/mm/transparent_hugepage"):
            block.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(block, dtype=np.uint8)
    weakref.finalize(array, _give, block).atexit = False
    # Not a view, of which autograd would copy the gradient three times where it is written to in place.
    return like.new_empty(0).set_(torch.from_numpy(array).untyped_storage(), 0, tuple(shape))


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a contiguous tensor that is not initialised, of the shape and dtype of another one."""
    return empty(tensor, tensor.shape)


def zeros(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Returns a tensor of zeros, of the dtype of another one."""
    return empty(like, shape).zero_()


def release() -> int:
    """Gives the free blocks back to the system at once; returns their bytes."""
    with _lock:
        size = sum(map(len, _free))
        _free.clear()
    return size


def _rounded(n_bytes: int) -> int:
    """At least n_bytes, in eight steps per power of two and whole huge pages."""
    step = max(_STEP, 1 << max(0, n_bytes.bit_length() - 4))
    return -(-n_bytes // step) * step


def _take(size: int) -> mmap.mmap | None:
    with _lock:
        for i in reversed(range(len(_free))):
            if len(_free[i]) == size:
                return _free.pop(i)
    return None


def _give(block: mmap.mmap) -> None:
    block.madvise(mmap.MADV_FREE)
    with _lock:
        _free.append(block)
        most = SHARE * os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
        while sum(map(len, _free)) > most:
            _free.pop(0)
