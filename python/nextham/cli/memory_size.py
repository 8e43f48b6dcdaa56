"""Sizes of memory as people write them."""

from __future__ import annotations

import argparse
import re

__all__ = ["memory_size"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def memory_size(text: str) -> int:
    """Returns the bytes of a size such as `4GB`, `500 MB`, `1.5GiB` or `2e9`; the type of a command's argument.

    Raises:
        argparse.ArgumentTypeError: something else, or nothing at all.

    Example:
        >>> memory_size("1.5 kB")
        1500
    """
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?)b?", text.strip(), re.IGNORECASE)
    try:
        size = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    except (ValueError, KeyError):
        size = 0.0
    if not size >= 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 4GB or 500MB, got {text!r}")
    return int(size)
