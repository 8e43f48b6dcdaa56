"""Several processes, each with a share of every batch (`torchrun`): gradients and sums are added, nothing more."""

from __future__ import annotations

import os

import torch
from torch import distributed

__all__ = ["Processes"]


class Processes:
    """The processes of a run; one alone where torchrun did not start it.

    Args:
        device: `cpu` exchanges with gloo, `cuda` with NCCL, each process of a machine on a GPU of its own.

    Raises:
        ValueError: several processes on one GPU, or more of them than the machine has GPUs.
    """

    def __init__(self, device: str) -> None:
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if self.count == 1 or distributed.is_initialized():
            return
        if torch.device(device).type == "cpu":
            distributed.init_process_group("gloo")
            return
        if device != "cuda":
            raise ValueError(f"run.device: expected cuda, each of {self.count} processes takes a GPU, got {device}")
        mine, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if mine >= there:
            raise ValueError(f"run.device: process {mine} of this machine finds no GPU of its own, there are {there}")
        torch.cuda.set_device(mine)  # what `cuda` means from here on
        distributed.init_process_group("nccl", device_id=torch.device("cuda", mine))

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, items: list[str], size: dict[str, int]) -> list[str]:
        """Returns this process's part of a batch: the largest item goes to whoever has least so far."""
        load = [0] * self.count
        mine = []
        for item in sorted(items, key=lambda x: (-size[x], x)):
            to = load.index(min(load))
            load[to] += size[item]
            if to == self.rank:
                mine.append(item)
        return [item for item in items if item in mine]

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Adds a tensor over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def gather(self, value: object) -> list:
        """Returns the values of all processes, in their order."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Waits for all."""
        if self.count > 1:
            distributed.barrier()

    def close(self) -> None:
        """Ends the exchange."""
        if self.count > 1 and distributed.is_initialized():
            distributed.destroy_process_group()
