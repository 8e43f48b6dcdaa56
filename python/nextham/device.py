"""The device that a user names."""

from __future__ import annotations

import torch

__all__ = ["checked_device"]


def checked_device(name: str) -> torch.device:
    """Returns the device of a name such as `cpu`, `cuda` or `cuda:1`.

    Raises:
        ValueError: no such device, or torch cannot use it here; the sentence says why.

    Example:
        >>> checked_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        why = "this torch is built for the CPU alone" if torch.version.cuda is None else "no driver or no GPU answers"
        raise ValueError(f"device: {name} was asked for, but torch {torch.__version__} finds no CUDA device: {why}")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(f"device: expected cuda:0 to cuda:{torch.cuda.device_count() - 1}, got {name}")
    return device
