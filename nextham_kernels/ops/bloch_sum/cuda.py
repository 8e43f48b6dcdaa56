"""Bloch sum on the GPU: calls of the kernels in `kernel.cu`, which CuPy compiles at the first call."""

from __future__ import annotations

import functools
from pathlib import Path

import cupy
import numpy as np
import torch

from nextham_kernels.cost import Cost, nbytes

SOURCE = Path(__file__).with_name("kernel.cu")
GROUP, THREADS = 8, 256  # kGroup and kThreads of the source
CHUNKS = 4
"""Blocks of threads for the numbers of a pair of atoms: 1024 threads for the 676 or 2916 numbers of a spinor pair."""
EDGE_GROUPS = 4
"""Blocks of threads for the edges of a pair."""


@functools.cache
def _module(device: int) -> cupy.RawModule:
    return cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"), options=("--std=c++17",))


def _launch(name: str, grid: tuple[int, ...], numbers: torch.Tensor, *args: object) -> None:
    name = f"{name}_{'float' if numbers.dtype == torch.float32 else 'double'}_{numbers.shape[1]}"
    kernel = _module(numbers.device.index).get_function(name)
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream, numbers.device.index)
    with stream:
        kernel(grid, (THREADS,), tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args))


def forward(
    blocks: torch.Tensor, coefficient: torch.Tensor, edges: torch.Tensor, pairs: torch.Tensor, size: int, spins: int
) -> torch.Tensor:
    """Sums the edges of each pair of atoms."""
    n_phases, n_pairs = coefficient.shape[1], len(pairs) - 1
    dense = blocks.new_zeros(n_phases, size, size, 2)
    if n_phases and n_pairs and blocks.numel():
        grid = (n_pairs * -(-n_phases // GROUP), CHUNKS)
        sizes = (np.int64(n_phases), np.int64(size), np.int32(spins))
        _launch("forward", grid, blocks, blocks, coefficient, edges, pairs, *sizes, dense)
    return dense


def forward_cost(
    blocks: torch.Tensor, coefficient: torch.Tensor, edges: torch.Tensor, pairs: torch.Tensor, size: int, spins: int
) -> Cost:
    """Counts `forward`: the blocks are read once for each group of phases, H(k) is zeroed and written."""
    n_phases = coefficient.shape[1]
    dense = 2 * n_phases * size**2 * blocks.element_size()
    moved = nbytes(blocks) * -(-n_phases // GROUP) + nbytes(coefficient, edges) + 2 * dense
    return Cost(moved, 4 * blocks.numel() * n_phases)


def backward(
    grad: torch.Tensor,
    blocks: torch.Tensor,
    coefficient: torch.Tensor,
    edges: torch.Tensor,
    pairs: torch.Tensor,
    size: int,
    spins: int,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs the adjoint map."""
    if needs[1]:
        raise RuntimeError("bloch_sum: there is no derivative with respect to the phases")
    n_phases, n_pairs = coefficient.shape[1], len(pairs) - 1
    grad_blocks = torch.empty_like(blocks)
    if needs[0] and n_pairs and blocks.numel():
        sizes = (np.int64(n_phases), np.int64(size), np.int32(spins))
        grid = (n_pairs, CHUNKS, EDGE_GROUPS)
        _launch("backward", grid, blocks, grad, coefficient, edges, pairs, *sizes, grad_blocks)
    return [grad_blocks, *(torch.empty_like(t) for t in (coefficient, edges, pairs))]


def backward_cost(
    grad: torch.Tensor,
    blocks: torch.Tensor,
    coefficient: torch.Tensor,
    edges: torch.Tensor,
    pairs: torch.Tensor,
    size: int,
    spins: int,
    needs: list[bool],
) -> Cost:
    """Counts `backward`."""
    return Cost(nbytes(grad, blocks, coefficient, edges), 4 * blocks.numel() * coefficient.shape[1])
