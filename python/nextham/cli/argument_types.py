"""What the commands take as numbers: counts, energies, digits, sizes of memory as people write them."""

from __future__ import annotations

import argparse
import math
import re

__all__ = ["add_matrix_format", "digits", "finite", "memory_size", "natural", "positive"]

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


def add_matrix_format(parser: argparse.ArgumentParser) -> None:
    """Adds --format and --digits of ABACUS's matrices in a folder."""
    parser.add_argument(
        "--format",
        choices=("text", "text-3.11", "binary", "npz"),
        default="text",
        help="of the matrices (default text)",
    )
    parser.add_argument(
        "--digits", type=digits, default=8, metavar="N", help="digits behind the point in text (default 8)"
    )


def natural(text: str) -> int:
    """Returns a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: something else; so do the types below.
    """
    if not re.fullmatch(r"0*[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def digits(text: str) -> int:
    """Returns the digits behind the point of a number in text, 0 to 17."""
    if not text.isdecimal() or int(text) > 17:
        raise argparse.ArgumentTypeError(f"expected 0 to 17, got {text!r}")
    return int(text)


def finite(text: str) -> float:
    """Returns a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return value


def positive(text: str) -> float:
    """Returns a finite number above 0."""
    if not (value := finite(text)) > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value
