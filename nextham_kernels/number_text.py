"""Numbers in text: long lists of integers, reals and `(re,im)` pairs, parsed and printed.

The kernel is `csrc/number_text_cpu.cpp`; `parse_reference` and `format_reference` say in plain Python what it does.
"""

from __future__ import annotations

import math
import mmap
import re

import numpy as np

from nextham_kernels.loading import compiled, reference_only

__all__ = ["MalformedNumber", "format_numbers", "format_reference", "parse_numbers", "parse_reference"]

Text = bytes | bytearray | memoryview | mmap.mmap

_DTYPES = (np.dtype(np.float64), np.dtype(np.complex128), np.dtype(np.int32), np.dtype(np.int64))
_WORD = re.compile(rb"[^ \t\n\v\f\r]+")
_REAL = rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_GRAMMAR = {
    "f": re.compile(rb"(" + _REAL + rb")"),
    "c": re.compile(rb"\((" + _REAL + rb"),(" + _REAL + rb")\)"),
    "i": re.compile(rb"([+-]?[0-9]+)"),
}


class MalformedNumber(ValueError):
    """A word of a text that is not the number expected there.

    Attributes:
        offset: its first byte in the text; the length of the text where it ended too early.
        index: how many numbers were read before it.
        word: the word itself, at most 40 characters of it; empty at the end of the text.
    """

    def __init__(self, offset: int, index: int, word: str) -> None:
        self.offset, self.index, self.word = offset, index, word
        found = repr(word) if word else "the end of the text"
        super().__init__(f"number {index + 1} at byte {offset}: expected a number, found {found}")


def parse_numbers(text: Text, start: int, count: int, dtype: np.dtype | type) -> tuple[np.ndarray, int]:
    """Reads `count` numbers, separated by white space, from byte `start` of a text.

    A real is `[+-]digits[.digits][e[+-]digits]` (`1.`, `.5` and a leading plus included; `nan`, `inf`, hexadecimal and
    `1_000` are none), rounded to the nearest float64; one too small for float64 is a zero, one too large is malformed.
    A complex number is `(re,im)` without white space. An integer beyond its dtype is malformed.

    Args:
        text: bytes, or anything that shows its bytes (a memory-mapped file); read in place.
        start: offset of the first byte to look at.
        count: how many numbers are expected.
        dtype: float64, complex128, int32 or int64.

    Returns:
        the numbers [count], and the offset of the byte behind the last one.

    Raises:
        MalformedNumber: a word that is no such number, or a text that ends too early.
        ValueError: start or count that are no place in the text.
        TypeError: another dtype.

    Example:
        >>> parse_numbers(b" (1.5,-2e-1) (0,1)", 0, 2, np.complex128)
        (array([1.5-0.2j, 0. +1.j ]), 18)
    """
    dtype = _checked(dtype)
    if not 0 <= start <= len(text) or count < 0:
        raise ValueError(f"start, count: expected a place in {len(text)} bytes and a count, got {start} and {count}")
    numbers, n, offset = _parse(text, start, count, dtype)
    if n < count:
        word = _WORD.match(text[offset : offset + 40])
        raise MalformedNumber(offset, n, word[0].decode("ascii", "replace") if word else "")
    return numbers, offset


def format_numbers(numbers: np.ndarray, digits: int = 8, per_line: int = 0, first: int = 0) -> bytes:
    """Prints numbers as ABACUS does, one space before each: `%.8e`, `(%.8e,%.8e)` or `%d`.

    Args:
        numbers: [n], float64, complex128, int32 or int64.
        digits: digits behind the decimal point of a real, 0…17 (16 keep every bit of a float64).
        per_line: break the line before every per_line-th number except the very first; 0 puts all on one line.
        first: how many numbers of the same list were printed before these (only `per_line` looks at it).

    Returns:
        the text, without a final line break.

    Raises:
        ValueError: not one-dimensional, a number that is not finite, or digits outside 0…17.
        TypeError: another dtype.

    Example:
        >>> format_numbers(np.array([0.5, -2.0]), digits=3)
        b' 5.000e-01 -2.000e+00'
    """
    numbers = np.ascontiguousarray(numbers)
    dtype = _checked(numbers.dtype)
    if numbers.ndim != 1:
        raise ValueError(f"numbers: expected shape [n], got {list(numbers.shape)}")
    if not 0 <= digits <= 17 or per_line < 0 or first < 0:
        raise ValueError(f"digits: expected 0...17, per_line and first >= 0, got {digits}, {per_line}, {first}")
    if dtype.kind in "fc" and not np.isfinite(numbers).all():
        raise ValueError(f"numbers: expected finite numbers, got {numbers[~np.isfinite(numbers)][0]}")
    return _format(numbers, digits, per_line, first)


def parse_reference(text: Text, start: int, count: int, dtype: np.dtype) -> tuple[np.ndarray, int, int]:
    """The meaning of `parse_numbers`: (numbers, how many were read, offset behind them or of the malformed word)."""
    grammar, text = _GRAMMAR[dtype.kind], bytes(text)
    values: list[float | complex | int] = []
    end = start
    while len(values) < count:
        word = _WORD.search(text, end)
        value = _value(grammar.fullmatch(word[0]), dtype) if word else None
        if value is None:
            return np.array(values, dtype), len(values), word.start() if word else len(text)
        values.append(value)
        end = word.end()
    return np.array(values, dtype), count, end


def format_reference(numbers: np.ndarray, digits: int, per_line: int, first: int) -> bytes:
    """The meaning of `format_numbers`."""
    words = []
    for k, value in enumerate(numbers.tolist(), first):
        if numbers.dtype.kind == "c":
            word = f"({value.real:.{digits}e},{value.imag:.{digits}e})"
        else:
            word = str(value) if numbers.dtype.kind == "i" else f"{value:.{digits}e}"
        words.append(("\n " if per_line and k and k % per_line == 0 else " ") + word)
    return "".join(words).encode()


def _value(match: re.Match[bytes] | None, dtype: np.dtype) -> float | complex | int | None:
    """The number that a word spells, or None."""
    if match is None:
        return None
    if dtype.kind == "i":
        value = int(match[1]) if len(match[1]) < 4000 else math.inf
        return value if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max else None
    parts = [float(part) for part in match.groups()]
    if not all(map(math.isfinite, parts)):
        return None
    return complex(*parts) if dtype.kind == "c" else parts[0]


def _checked(dtype: np.dtype | type) -> np.dtype:
    """The dtype, if it is one of the four."""
    dtype = np.dtype(dtype)
    if dtype not in _DTYPES:
        raise TypeError(f"dtype: expected {', '.join(map(str, _DTYPES))}, got {dtype}")
    return dtype


if reference_only():
    _parse, _format = parse_reference, format_reference
else:
    _PARSERS, _PRINTERS = (
        {t: getattr(compiled(), f"{verb}_{t.name}") for t in _DTYPES} for verb in ("parse", "format")
    )

    def _parse(text: Text, start: int, count: int, dtype: np.dtype) -> tuple[np.ndarray, int, int]:
        return _PARSERS[dtype](text, start, count)

    def _format(numbers: np.ndarray, digits: int, per_line: int, first: int) -> bytes:
        return _PRINTERS[numbers.dtype](numbers, digits, per_line, first)
