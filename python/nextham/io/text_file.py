"""Small text files, plain or compressed."""

from __future__ import annotations

import os
import re

from nextham.io.compression import load_bytes
from nextham.io.errors import FileError

__all__ = ["parse_integer", "parse_number", "read_text"]

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


def read_text(path: str | os.PathLike[str]) -> str:
    """Returns the text of a file that fits into memory, plain, gzip or xz.

    Bytes that are not UTF-8 (they occur in comments) become U+FFFD.

    Raises:
        FileError: absent, unreadable or empty file, damaged compression, or content that is not text.
    """
    content = bytes(load_bytes(path))
    if b"\x00" in content:
        raise FileError(path, "expected a text file, got binary content")
    text = content.decode("utf-8-sig", errors="replace")
    if not text.strip():
        raise FileError(path, "the file is empty")
    return text


def parse_number(path: str | os.PathLike[str], word: str, what: str, line: int) -> float:
    """Returns the decimal number that a word of a file spells.

    Raises:
        FileError: the word is none (`nan`, `inf` and `1_000` are none either), or is beyond 1e30; `what` names it.
    """
    if not _NUMBER.fullmatch(word):
        raise FileError(path, f"expected a number for {what}, got {word!r}", line)
    value = float(word)
    if abs(value) > 1e30:
        raise FileError(path, f"the number for {what} is out of range: {word}", line)
    return value


def parse_integer(path: str | os.PathLike[str], word: str, what: str, line: int) -> int:
    """Returns the integer that a word of a file spells.

    Raises:
        FileError: the word is none, or has more than nine digits; `what` names it.
    """
    if not _INTEGER.fullmatch(word):
        raise FileError(path, f"expected an integer for {what}, got {word!r}", line)
    return int(word)
