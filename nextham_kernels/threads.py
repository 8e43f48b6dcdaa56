"""Independent pieces of work on threads of which each does its linear algebra alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = ["map_serial"]

Item, Result = TypeVar("Item"), TypeVar("Result")


def map_serial(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Returns function(item) of all items, computed by `torch.get_num_threads()` threads without a graph.

    Each of them uses one thread for its torch operations: many small problems side by side are faster than each of them
    on all threads. With fewer items than threads they run one after the other, on all threads each. While it runs, the
    whole process has torch's number of threads set to one.
    """
    threads = torch.get_num_threads()

    def without_graph(item: Item) -> Result:
        with torch.no_grad():  # grad mode belongs to a thread
            return function(item)

    if threads == 1 or len(items) < threads:
        return [without_graph(item) for item in items]
    with _one_thread(threads), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(without_graph, items))


@contextmanager
def _one_thread(threads: int) -> Iterator[None]:
    torch.set_num_threads(1)  # what threads that start from now on take over
    try:
        yield
    finally:
        torch.set_num_threads(threads)
