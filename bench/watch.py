"""Ops watched while a network runs: each result checked against the reference in double, or each call timed."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.offline import Call
from bench.static import cost_of
from nextham_kernels import registration
from nextham_kernels.cost import Cost
from nextham_kernels.loading import gpu_kernel, use_reference
from nextham_kernels.registration import GPU_KERNELS

__all__ = ["Check", "LostDevice", "Timed", "Timing", "checked", "replaced"]


@dataclass
class Check:
    """How exact a GPU kernel is, the worst of its calls.

    Args:
        error: largest difference from the reference in float64, relative to the largest number of the result.
        own: the same of the reference in the kernel's precision.
        calls: calls that were compared; calls of the same shapes are compared once.
        failed: what it raised; empty if it ran.
    """

    error: float
    own: float
    calls: int
    failed: str = ""

    def right(self, tolerance: float) -> bool:
        """Returns whether the error is at most twice the reference's own and the tolerance (NaN is wrong)."""
        return not self.failed and self.error <= 2 * self.own + tolerance


class LostDevice(RuntimeError):
    """The device cannot be used any more after a kernel ran.

    Args:
        kernel: its function.
        why: what the device said.
    """

    def __init__(self, kernel: str, why: str) -> None:
        super().__init__(f"{kernel}: the device is lost: {why}")
        self.kernel = kernel


def checked(
    run: Callable[[], object],
    checks: dict[str, Check] | None = None,
    before: Callable[[str], None] | None = None,
) -> dict[str, Check]:
    """Runs something, and returns function of a GPU kernel → how exact it was.

    Where a kernel raises, its reference gives the result.

    Args:
        run: what calls ops.
        checks: checks so far, to which these are added.
        before: gets the name of each kernel before its call.

    Raises:
        LostDevice: after a kernel, nothing runs on the device any more.
    """
    checks, seen = {} if checks is None else checks, set()
    ops = {name: op.split("::")[1] for op, name in GPU_KERNELS.items()}

    def compare(name: str, kernel: Callable, args: tuple) -> object:
        op = getattr(torch.ops.nextham, ops[name])
        shapes = (name, *((x.shape, x.dtype) if isinstance(x, torch.Tensor) else str(x) for x in args))
        again = shapes in seen
        check = checks.setdefault(name, Check(0.0, 0.0, 0))
        if check.failed:
            with use_reference():
                return op(*args)
        if before and not again:
            before(name)
        try:
            result = kernel(*args)
            _synchronize(args)
        except Exception as error:  # a kernel that fails is a finding
            check.failed = f"{type(error).__name__}: {error}"[:1000]
            try:
                _synchronize(args)
            except Exception as lost:
                raise LostDevice(name, str(lost)) from error
            with use_reference():
                return op(*args)
        if again:
            return result
        seen.add(shapes)
        with use_reference():
            own = op(*args)
            exact = op(*(x.double() if _is_floating(x) else x for x in args))
        # Gradients that nobody asked for are not made.
        wanted = args[-1] if ops[name].endswith("_backward") else None
        check.calls += 1
        for i, (a, b, e) in enumerate(zip(_listed(result), _listed(own), _listed(exact), strict=True)):
            if e.is_floating_point() and (wanted is None or wanted[i]):
                check.error = max(check.error, _difference(a, e), key=_nan_first)
                check.own = max(check.own, _difference(b, e))
        return result

    with _watched(compare):
        run()
    return dict(sorted(checks.items()))


@contextlib.contextmanager
def replaced(names: Sequence[str]) -> Iterator[None]:
    """Inside, these functions of GPU kernels are their references."""
    ops = {name: op.split("::")[1] for op, name in GPU_KERNELS.items()}

    def run_reference(name: str, args: tuple) -> object:
        with use_reference():
            return getattr(torch.ops.nextham, ops[name])(*args)

    def chosen(name: str) -> Callable:
        return (lambda *args: run_reference(name, args)) if name in names else gpu_kernel(name)

    with mock.patch.object(registration, "gpu_kernel", chosen) if names else contextlib.nullcontext():
        yield


def _synchronize(args: Sequence[object]) -> None:
    device = next(x.device for x in args if isinstance(x, torch.Tensor))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _watched(observe: Callable[[str, Callable, tuple], object]) -> Iterator[None]:
    """Inside, every call of a GPU kernel goes through `observe(name, kernel, arguments)`."""
    inner = registration.gpu_kernel  # kernels may be replaced already

    def watched(name: str) -> Callable:
        kernel = inner(name)
        return lambda *args: observe(name, kernel, args)

    with mock.patch.object(registration, "gpu_kernel", watched):
        yield


@dataclass
class Timing:
    """What one op took, all its calls together.

    Args:
        calls: their number.
        seconds: on the device.
        cost: bytes and flops, as it counts them.
    """

    calls: int
    seconds: float
    cost: Cost


class Timed:
    """Times every call of a GPU kernel in `run()`; sizes must be large enough to hide launches.

    Args:
        device: where it runs.
        torch_too: time torch's own operations as well; only without a backward pass, in which a reference that torch
            differentiates could not run.
    """

    def __init__(self, device: torch.device, torch_too: bool) -> None:
        self.device, self.torch_too = device, torch_too
        self._calls: list[tuple[str, Cost, object, object]] = []

    def run(self, run: Callable[[], object]) -> dict[str, Timing]:
        """Runs something, and returns who took how long, the longest first."""
        with _EveryOp(self) if self.torch_too else _watched(self._kernel):
            run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found: dict[str, Timing] = {}
        for name, cost, start, stop in self._calls:
            timing = found.setdefault(name, Timing(0, 0.0, Cost(0)))
            timing.calls += 1
            timing.seconds += start.elapsed_time(stop) / 1000 if self.device.type == "cuda" else stop - start
            timing.cost += cost
        return dict(sorted(found.items(), key=lambda item: -item[1].seconds))

    def _kernel(self, name: str, kernel: Callable, args: tuple) -> object:
        return self.call(lambda: kernel(*args), lambda _: (name, gpu_kernel(f"{name}_cost")(*args)))

    def call(self, run: Callable[[], object], count: Callable[[object], tuple[str, Cost] | None]) -> object:
        """Times one call, and asks afterwards what it costs."""
        start = self._now()
        result = run()
        stop = self._now()
        counted = count(result)
        if counted is not None:
            self._calls.append((*counted, start, stop))
        return result

    def _now(self) -> object:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class _EveryOp(TorchDispatchMode):
    def __init__(self, timed: Timed) -> None:
        super().__init__()
        self.timed = timed

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        return self.timed.call(
            lambda: func(*args, **(kwargs or {})),
            lambda result: cost_of(Call(func._schema.name, args, result, view)),
        )


def _is_floating(x: object) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _listed(result: object) -> list[torch.Tensor]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _difference(a: torch.Tensor, exact: torch.Tensor) -> float:
    if not exact.numel():
        return 0.0
    return float((a.double() - exact).abs().max() / exact.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def _nan_first(x: float) -> float:
    return x if x == x else float("inf")
