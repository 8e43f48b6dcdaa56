"""Clocks, interleaved timing, peak memory, and what the machine itself can do."""

import ctypes
import gc
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from nextham_kernels import result_memory

__all__ = [
    "Ceilings",
    "Clock",
    "EventClock",
    "Quantiles",
    "Timed",
    "WallClock",
    "ceilings",
    "clock_of",
    "interleaved",
    "keep_memory",
    "peak_memory",
    "quantiles",
    "warm",
]

Run = Callable[[], object]


class Clock(Protocol):
    """Something that times one run, in seconds."""

    def measure(self, run: Run) -> float:
        """Returns the seconds that one run took."""


class WallClock:
    """Wall time, for runs on the CPU.

    Args:
        now: returns the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now

    def measure(self, run: Run) -> float:
        """Returns the seconds that one run took."""
        start = self.now()
        run()
        return self.now() - start


class EventClock:
    """Time between two CUDA events, the L2 cache flushed before the first.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        # Four times the L2 of the largest GPU in use (50 MB).
        self.flush = torch.empty(200_000_000, dtype=torch.int8, device=device)

    def measure(self, run: Run) -> float:
        """Returns the seconds that one run took on the device."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1000


def clock_of(device: torch.device) -> Clock:
    """Returns the clock of a device."""
    return EventClock(device) if device.type == "cuda" else WallClock()


class Quantiles(NamedTuple):
    """Quantiles of repeated runs, s."""

    median: float
    q20: float
    q80: float


def quantiles(seconds: Sequence[float]) -> Quantiles:
    """Returns median, 20 % and 80 % quantile, linearly interpolated between the two nearest runs."""
    q20, median, q80 = np.quantile(np.asarray(seconds, dtype=np.float64), [0.2, 0.5, 0.8])
    return Quantiles(float(median), float(q20), float(q80))


def interleaved(
    runs: Mapping[str, Run], clock: Clock, repeats: int | None = None, budget: float = 20.0
) -> dict[str, list[float]]:
    """Times several runs in turn, so that noise and a machine that slows down meet all of them alike.

    Every second round goes backwards (A B, B A, A B, …). The caller has warmed them up.

    Args:
        runs: name → what to time.
        clock: the clock.
        repeats: number of rounds; None is as many as start within `budget`, but at least 5 and at most 1,000.
        budget: seconds.

    Returns:
        name → seconds of every round.

    Raises:
        ValueError: repeats below 1.
    """
    if repeats is not None and repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order, spent, done = list(runs), 0.0, 0
    while done < repeats if repeats is not None else done < 5 or (spent < budget and done < 1000):
        for name in order:
            seconds[name].append(clock.measure(runs[name]))
            spent += seconds[name][-1]
        order.reverse()
        done += 1
    return seconds


LONG = 20.0
"""Seconds of a run that is timed once."""

ONCE = 60.0
"""Seconds of a run that is run once in all."""


class Timed:
    """A run that remembers how long it took each time.

    Args:
        run: what to run.
        clock: the clock.
    """

    def __init__(self, run: Run, clock: Clock) -> None:
        self.run, self.clock = run, clock
        self.seconds: list[float] = []

    def __call__(self) -> object:
        """Runs it and returns its result."""
        results = []
        self.seconds.append(self.clock.measure(lambda: results.append(self.run())))
        return results.pop()


def warm(runs: Mapping[str, Timed], clock: Clock, repeats: int | None = None) -> dict[str, list[float]]:
    """Times runs as `interleaved`, once more warmed up; one alone that took more than 20 s last time is not run again.

    Args:
        runs: name → what to time.
        clock: the clock.
        repeats: number of rounds; None as in `interleaved`.

    Returns:
        name → seconds of every round.
    """
    last = {name: run.seconds[-1:] for name, run in runs.items()}
    if repeats is None and len(runs) == 1 and all(seconds and seconds[0] > LONG for seconds in last.values()):
        return last
    for run in runs.values():
        run()
    return interleaved({name: run.run for name, run in runs.items()}, clock, repeats)


def keep_memory() -> None:
    """Keeps freed memory in the process, so that later runs find it there.

    A virtual machine may take back what a process gives back, and hand it out again far slower than memory is written.

    Raises:
        ValueError: another C library than glibc.
    """
    global _keeps
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    trim_threshold, largest_map_count = -1, -4
    if set_option is None or not (set_option(trim_threshold, -1) and set_option(largest_map_count, 0)):
        raise ValueError("keep-memory: expected glibc, whose allocator can be told to")
    _keeps = True


_keeps = False


class Ceilings(NamedTuple):
    """The best that the machine reached in this run."""

    gb_per_s: float
    """Copy of 256 MB, read plus written bytes."""
    gflop_per_s: float
    """Matrix product [16384, 256] × [256, 256] in float32."""


def ceilings(device: torch.device, repeats: int = 7) -> Ceilings:
    """Measures copy bandwidth and matrix-product rate with the current number of threads: the best of some runs.

    A slow moment of a shared machine thus lowers a fraction of the ceiling, and never raises it.
    """
    clock = clock_of(device)
    source = torch.ones(64_000_000, device=device)
    target = torch.empty_like(source)
    a, b = torch.ones(16384, 256, device=device), torch.ones(256, 256, device=device)
    out = torch.empty_like(a)

    def best(run: Run) -> float:
        return min(clock.measure(run) for _ in range(repeats))

    copy, product = best(lambda: target.copy_(source)), best(lambda: torch.mm(a, b, out=out))
    return Ceilings(2 * source.numel() * source.element_size() / copy / 1e9, 2 * a.numel() * 256 / product / 1e9)


def peak_memory(run: Run, device: torch.device) -> tuple[object, float | None]:
    """Runs twice and returns the second result and the memory of the second run, in MB (10⁶ bytes).

    On the CPU a first run that takes a minute is the only one.

    On a GPU that is the largest amount of memory that torch had allocated, over what it held before the first run. On
    Linux it is the peak of the process's resident memory, over its resident memory before the first run; freed
    memory is handed back to the system before both. Memory that an implementation keeps between runs (caches, scratch
    space, generated code) counts, what only the very first run needs (compilation) does not. None where the system does
    not tell.
    """
    if device.type == "cuda":
        gc.collect()
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.reset_peak_memory_stats(device)
        result = run()
        torch.cuda.synchronize(device)
        return result, (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if platform.system() != "Linux":
        run()
        return run(), None
    _give_back()
    before = _status("VmRSS")
    _peak_anew()
    start = time.perf_counter()
    result = run()
    if time.perf_counter() - start < ONCE:
        del result
        _give_back()
        _peak_anew()
        result = run()
    return result, max(0.0, (_status("VmHWM") - before) * 1024 / 1e6)


def _peak_anew() -> None:
    """Lets the peak of resident memory start anew."""
    Path("/proc/self/clear_refs").write_text("5")


def _give_back() -> None:
    """Frees what can be freed and returns it to the system (glibc and `result_memory` keep it otherwise)."""
    gc.collect()
    if _keeps:
        return
    result_memory.release()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    """A number of kB from the kernel's page about this process."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{os.getpid()}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1))
