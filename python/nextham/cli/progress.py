"""Progress bars and stage times of the commands."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Stages", "bar", "peak_memory_mb"]


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a progress bar on stderr, if that is a terminal, and yields what moves it: a function of (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class Stages:
    """Names and wall times of what a command does, printed as it goes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times one stage."""
        start = time.perf_counter()
        print(f"{name} …", end="", file=sys.stderr, flush=True)
        try:
            yield
        finally:
            print(file=sys.stderr)
        self.seconds[name] = time.perf_counter() - start


def peak_memory_mb() -> float:
    """Returns the largest resident size of this process so far, MB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1e6 if sys.platform == "darwin" else 1e3)
