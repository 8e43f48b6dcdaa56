"""Generalized Hermitian eigenproblems on the GPU: all k-points of a structure in one call of cuSOLVER.

torch.linalg.eigh solves matrices larger than 32 one after the other. cuSOLVER has a solver for many at once since CUDA
12.6.2 (cusolverDnXsyevBatched), which is called here with ctypes, in the library that torch has loaded. One matrix
alone, one larger than `LARGEST`, and all of them with an older library, go to torch.
"""

from __future__ import annotations

import ctypes
import functools
import threading

import torch

from nextham_kernels.ops.eigh.reference import Found, Problem, Window, batch

__all__ = ["condition_of", "hermitian", "solve"]

LARGEST = 512
"""Rows up to which many matrices at once are expected to be quicker than one after the other (not yet measured)."""
NUMBERS = 1 << 25
"""Numbers of the matrices of one call: 512 MB in complex128, and the solver's work space beside them."""

# cudaDataType: CUDA_R_32F, CUDA_R_64F, CUDA_C_32F, CUDA_C_64F
_TYPES = {torch.float32: 0, torch.float64: 1, torch.complex64: 4, torch.complex128: 5}
_LOWER = 0  # CUBLAS_FILL_MODE_LOWER


def solve(problems: list[Problem], vectors: bool, window: Window, threshold: float | None) -> list[Found]:
    """Does what `reference.solve` does."""
    return [batch(i, 0, h, s, vectors, window, threshold, condition_of, hermitian) for i, (h, s) in enumerate(problems)]


def condition_of(s: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """Condition numbers [q] of S = L L† in the 1-norm, by products that run for all k-points at once."""
    one = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device).expand_as(s)
    half = torch.linalg.solve_triangular(lower, one, upper=False)
    return torch.linalg.norm(s, ord=1, dim=(1, 2)) * torch.linalg.norm(half.mH @ half, ord=1, dim=(1, 2))


def hermitian(h: torch.Tensor, vectors: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Levels [q, s] and vectors [q, a, s] of Hermitian matrices [q, N, N].

    Raises:
        torch.linalg.LinAlgError: the solver did not converge; the sentence names the k-point.
        RuntimeError: the library refused a call.
    """
    q, n = h.shape[:2]
    library = _library() if q > 1 and 1 < n <= LARGEST else None
    if library is None:
        return torch.linalg.eigh(h) if vectors else (torch.linalg.eigvalsh(h), None)
    values = torch.empty(q, n, dtype=h.real.dtype, device=h.device)
    # Columns lie one after the other there, rows here: the transpose of a transpose, overwritten by the vectors.
    matrices = h.mT.clone(memory_format=torch.contiguous_format)
    step = max(1, NUMBERS // n**2)
    with torch.cuda.device_of(h):  # the library works on the current device
        for first in range(0, q, step):
            _batched(library, matrices[first : first + step], values[first : first + step], vectors, first)
    return values, matrices.mT if vectors else None


def _batched(library: ctypes.CDLL, matrices: torch.Tensor, values: torch.Tensor, vectors: bool, k: int) -> None:
    """Solves matrices in place."""
    (q, n), device = matrices.shape[:2], matrices.device
    handle, parameters = _handle(device.index, threading.get_ident())
    stream = torch.cuda.current_stream(device).cuda_stream
    _check("cusolverDnSetStream", library.cusolverDnSetStream(handle, ctypes.c_void_p(stream)))
    kind, real = ctypes.c_int(_TYPES[matrices.dtype]), ctypes.c_int(_TYPES[values.dtype])
    order, size = ctypes.c_int64(n), ctypes.c_int64(q)
    problem = (handle, parameters, ctypes.c_int(int(vectors)), ctypes.c_int(_LOWER), order, kind)
    problem += (ctypes.c_void_p(matrices.data_ptr()), order, real, ctypes.c_void_p(values.data_ptr()), kind)
    on_device, on_host = ctypes.c_size_t(), ctypes.c_size_t()
    sizes = (ctypes.byref(on_device), ctypes.byref(on_host))
    _check("cusolverDnXsyevBatched_bufferSize", library.cusolverDnXsyevBatched_bufferSize(*problem, *sizes, size))
    work = torch.empty(max(1, on_device.value), dtype=torch.uint8, device=device)
    host = torch.empty(max(1, on_host.value), dtype=torch.uint8)
    failed = torch.zeros(q, dtype=torch.int32, device=device)
    buffers = (ctypes.c_void_p(work.data_ptr()), on_device, ctypes.c_void_p(host.data_ptr()), on_host)
    status = library.cusolverDnXsyevBatched(*problem, *buffers, ctypes.c_void_p(failed.data_ptr()), size)
    _check("cusolverDnXsyevBatched", status)
    if failed.any():  # waits for the solver, so that its work space may be freed
        bad = int(failed.bool().int().argmax())
        raise torch.linalg.LinAlgError(f"eigh: the solver did not converge at k-point {k + bad}")


def _check(function: str, status: int) -> None:
    if status:
        raise RuntimeError(f"{function}: cuSOLVER returned the status {status}")


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library that torch uses; None where it lacks the solver."""
    torch.linalg.eigvalsh(torch.eye(2, device="cuda"))  # makes torch load it
    for name in ("libcusolver.so.12", "libcusolver.so.11"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        return library if hasattr(library, "cusolverDnXsyevBatched") else None
    return None


@functools.cache
def _handle(device: int, thread: int) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """A handle and parameters of the library for one thread on one device."""
    library, handle, parameters = _library(), ctypes.c_void_p(), ctypes.c_void_p()
    with torch.cuda.device(device):
        _check("cusolverDnCreate", library.cusolverDnCreate(ctypes.byref(handle)))
        _check("cusolverDnCreateParams", library.cusolverDnCreateParams(ctypes.byref(parameters)))
    return handle, parameters
