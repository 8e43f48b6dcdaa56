"""Compiles GPU kernels before they are needed, for a GPU that may be elsewhere: the first call then waits for nothing.

What an op launches depends on dtypes, layouts and settings, and not on how many rows it is given (Triton is told not to
specialise counts). So a run on a few rows, on the CPU, tells what a GPU will launch. Every op inside such a run is
called twice: its CPU kernel gives the result, and the Python of its GPU kernel is run beside it, whose launches Triton
compiles into its cache on disk instead of making them. The key of an entry is made by Triton's own code from the same
arguments as on the GPU, only with a driver that names the compute capability wanted; so the first launch on such a GPU
finds it, if triton has the same version there, and reads `~/.triton/cache` (`TRITON_CACHE_DIR`) from the same place.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nextham_kernels.loading import gpu_kernel, gpu_ops
from nextham_kernels.registration import GPU_KERNELS

__all__ = ["Launch", "another_gpu", "compile_ahead", "launches"]


CAPABILITIES = (
    (7, 0), (7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 1), (10, 3), (12, 0), (12, 1),
)  # fmt: skip
"""Those that Triton 3.6 compiles for; with others its compiler may end the process."""


@dataclass(frozen=True)
class Launch:
    """One compiled form of a Triton function.

    Args:
        function: whose call launches it, such as `gate.kernel.forward`.
        kernel: the Triton function.
        key: its folder's name in Triton's cache is made of this hash.
    """

    function: str
    kernel: str
    key: str


class _Driver:
    """Names a GPU that is not there; each capability is a device of its own, so that nothing is kept for a real one."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> object:
        return importlib.import_module("triton.backends.compiler").GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> object:
        return "ahead", self.capability

    def get_current_stream(self, device: object) -> int:
        return 0


@contextlib.contextmanager
def another_gpu(capability: tuple[int, int]) -> Iterator[None]:
    """Inside, Triton compiles for a GPU of this compute capability, in this process; nothing can be launched.

    Raises:
        RuntimeError: triton is missing, or was imported with TRITON_INTERPRET=1.
    """
    gpu_kernel("gate.kernel.forward")  # says what is missing
    if not isinstance(importlib.import_module("triton.language").cdiv, importlib.import_module("triton").JITFunction):
        raise RuntimeError("compiling: expected triton imported without TRITON_INTERPRET, whose functions are Python's")
    driver = importlib.import_module("triton.runtime.driver").driver
    before = driver._active
    driver.set_active(_Driver(10 * capability[0] + capability[1]))
    try:
        yield
    finally:
        driver.set_active(before)


class _Beside(TorchDispatchMode):
    """Inside, the Python of an op's GPU kernel runs beside each call of the op, with the same arguments."""

    def __init__(self, name: Callable[[str], None]) -> None:
        super().__init__()
        self.name = name

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        function = GPU_KERNELS.get(func._schema.name, "")
        if ".kernel." in function:
            self.name(function)
            given = (x.detach().contiguous() if isinstance(x, torch.Tensor) else x for x in args)
            gpu_kernel(function)(*given)
        return result


def _collect(
    run: Callable[[], object],
    capability: tuple[int, int],
    take: Callable[[Launch, Callable[[], object]], None],
) -> None:
    """Calls `take` with each launch of a run that differs from those before, and what compiles it."""
    knobs = importlib.import_module("triton.knobs").runtime
    seen: set[str] = set()
    function = kernel = ""

    def of_function(name: str) -> None:
        nonlocal function
        function = name

    def of_kernel(*, fn: object, **_: object) -> None:
        nonlocal kernel
        kernel = fn.name

    class Taken(importlib.import_module("triton").AsyncCompileMode):
        """Gives no kernel back to Triton, which then launches nothing."""

        def submit(self, key: str, compile_fn: Callable[[], object], *_: Callable) -> None:
            key = hashlib.sha256(key.encode()).hexdigest()
            if key not in seen:
                seen.add(key)
                take(Launch(function, kernel, key), compile_fn)

    before = knobs.jit_cache_hook
    with another_gpu(capability), gpu_ops(), Taken(None), _Beside(of_function):
        knobs.jit_cache_hook = of_kernel
        try:
            run()
        finally:
            knobs.jit_cache_hook = before


def launches(run: Callable[[], object], capability: tuple[int, int]) -> list[Launch]:
    """Returns what a run would launch on a GPU, each compiled form once; nothing is compiled.

    Args:
        run: calls ops on tensors of the CPU, forward and backward alike.
        capability: compute capability, such as (9, 0).

    Raises:
        RuntimeError: triton is missing, or was imported with TRITON_INTERPRET=1.
    """
    found: list[Launch] = []
    _collect(run, capability, lambda launch, _: found.append(launch))
    return found


@contextlib.contextmanager
def _one_parse_at_a_time() -> Iterator[None]:
    """Inside, one thread at a time reads the text of a Triton function: Python 3.11's `ast.parse` fails in several."""
    functions, lock = importlib.import_module("triton.runtime.jit").JITCallable, threading.Lock()
    parse = functions.parse

    def parse_alone(self: object) -> object:
        with lock:
            return parse(self)

    functions.parse = parse_alone
    try:
        yield
    finally:
        functions.parse = parse


def compile_ahead(
    run: Callable[[], object],
    capability: tuple[int, int] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> list[Launch]:
    """Compiles every Triton kernel that a run would launch on a GPU into Triton's cache on disk.

    Products, networks and settings must be those of the later runs on the GPU, dtypes too; how many rows there are does
    not matter, but there must be some. Kernels in CUDA C++ (`bloch_sum`) are not compiled: CuPy does that in a second.

    Args:
        run: calls ops on tensors of the CPU, forward and backward alike.
        capability: compute capability of the GPU, such as (9, 0) of an H100 or H200; by default that of this machine's.
        progress: called with (done, total) kernels.
        threads: that compile at the same time; by default as many as there are processors.

    Returns:
        The kernels, each compiled form once.

    Raises:
        ValueError: no capability given, and torch finds no GPU; or one that no GPU has.
        RuntimeError: triton is missing or interprets, or a kernel does not compile; the sentence names it.

    Example:
        >>> import torch
        >>> from nextham_kernels.ahead import compile_ahead
        >>> from nextham_kernels.ops.gate import gate
        >>> def run():
        ...     gate(torch.ones(3, 5), "1x0e+1x1o")
        >>> compile_ahead(run, (9, 0))  # doctest: +SKIP
        [Launch(function='gate.kernel.forward', kernel='_forward', key='…')]
    """
    if capability is None:
        if not torch.cuda.is_available():
            raise ValueError("capability: expected one, such as (9, 0), because torch finds no GPU")
        capability = torch.cuda.get_device_capability()
    if tuple(capability) not in CAPABILITIES:
        known, given = ", ".join(f"{a}.{b}" for a, b in CAPABILITIES), ".".join(map(str, capability))
        raise ValueError(f"capability: expected one of {known}, got {given}")
    work: dict[Future, Launch] = {}
    with _one_parse_at_a_time(), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        try:
            _collect(run, capability, lambda launch, compile_fn: work.setdefault(pool.submit(compile_fn), launch))
            for done, future in enumerate(as_completed(work), 1):
                if future.exception() is not None:
                    launch = work[future]
                    where = f"{launch.function} {launch.kernel} for compute capability {capability[0]}.{capability[1]}"
                    raise RuntimeError(f"{where} does not compile: {future.exception()}") from future.exception()
                if progress is not None:
                    progress(done, len(work))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, not the hundreds that wait
    return list(work.values())
